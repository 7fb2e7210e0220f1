"""Carry a run to another machine in a few small files.

    python -m dasr_ops.train.transfer pack RUN FOLDER      # the newest checkpoint of RUN
    python -m dasr_ops.train.transfer unpack FOLDER RUN    # then: dasr train RUN

A checkpoint of a DASR of the paper's size takes 200 MB, most of which can be computed again or soon
recovers. What is carried: the weights of G and P as they are, the discriminator's in float16, the
settings and the logs. The averages begin at the weights, optimisers begin anew with a rising rate,
and the pool of pairs begins empty; samples and learning rate go on with the step.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dasr_ops.models._tensor_files import write_pth
from dasr_ops.models.files import atomic_path

from .config_files import CONFIG_NAME
from .engine.checkpoints import FORMAT, Checkpoints, State
from .photo_pack import parse_bytes

LIST = "run.json"
PART_SIZE = 15 * 2**20
_TEXTS = (CONFIG_NAME, "log.csv", "validation.csv", "train.log")


def pack(run: Path, folder: Path, part_size: int = PART_SIZE) -> int:
    """Write the newest checkpoint of a run into a folder.

    Args:
        run: folder of the run.
        folder: for ``run.json`` and parts of at most ``part_size`` bytes; made, and an older pack
            in it is replaced.
        part_size: bytes, 1 or more.

    Returns:
        The step of the checkpoint.

    Raises:
        ValueError: there is no checkpoint, or ``part_size`` is below 1.
        TrainingError: none of the checkpoints can be read.
        OSError: the folder cannot be written to.
    """
    if part_size < 1:
        raise ValueError(f"part_size: expected 1 or more, got {part_size}")
    state = Checkpoints(run / "checkpoints", 1, _warn).newest()
    if state is None:
        raise ValueError(f"{run}: expected the folder of a run, there is no checkpoint in it")
    content = io.BytesIO()
    torch.save(_light(state, run), content)
    data = content.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("run.*.part"):
        old.unlink()
    parts = []
    for number, start in enumerate(range(0, len(data), part_size)):
        part = data[start : start + part_size]
        parts.append(
            {
                "name": f"run.{number:02d}.part",
                "bytes": len(part),
                "sha256": hashlib.sha256(part).hexdigest(),
            }
        )
        with atomic_path(folder / parts[-1]["name"]) as temporary:
            temporary.write_bytes(part)
    with atomic_path(folder / LIST) as temporary:  # last: what it lists is there
        listed = {"format": FORMAT, "step": state["step"], "parts": parts}
        temporary.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    return state["step"]


def unpack(folder: Path, run: Path) -> int:
    """Make a run of what `pack` wrote, or take an older run on to where the pack is.

    Args:
        folder: of the pack.
        run: folder of the run; made.

    Returns:
        The step from which the run goes on.

    Raises:
        ValueError: the pack is incomplete or damaged, or the run is as far already.
        OSError: the run's folder cannot be written to.
    """
    state = _read(folder)
    step, texts = state["step"], state.pop("texts")
    checkpoints = Checkpoints(run / "checkpoints", 1, _warn)
    there = checkpoints.steps()
    if there and there[0] >= step:
        raise ValueError(f"{run}: is at step {there[0]} already, the pack at {step}")
    run.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with atomic_path(run / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    checkpoints.folder.mkdir(exist_ok=True)
    write_pth(state, checkpoints.path(step))
    return step


def _light(state: State, run: Path) -> State:
    learner = state["learner"]
    carried: dict[str, Any] = {"restorer": learner["restorer"], "scaler": learner["scaler"]}
    if "discriminator" in learner:
        carried["discriminator"] = {
            # Of the small ones, those of the spectral norms, every digit counts.
            name: value.half() if value.dim() > 1 else value
            for name, value in learner["discriminator"].items()
        }
    texts = {name: (run / name).read_text("utf-8") for name in _TEXTS if (run / name).is_file()}
    kept = {name: state[name] for name in ("format", "step", "config", "processes")}
    return {**kept, "learner": carried, "texts": texts}


def _read(folder: Path) -> State:
    try:
        listed = json.loads((folder / LIST).read_text("utf-8"))
        entries = [(part["name"], part["bytes"], part["sha256"]) for part in listed["parts"]]
    except OSError as error:
        raise ValueError(f"{folder}: expected a pack: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / LIST}: damaged") from error
    data = bytearray()
    for name, size, checksum in entries:
        path = folder / Path(name).name
        part = path.read_bytes() if path.is_file() else b""
        if len(part) != size or hashlib.sha256(part).hexdigest() != checksum:
            raise ValueError(f"{path}: missing or damaged")
        data += part
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    judge: Mapping[str, torch.Tensor] = state["learner"].get("discriminator", {})
    if judge:
        state["learner"]["discriminator"] = {name: w.float() for name, w in judge.items()}
    return state


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m dasr_ops.train.transfer`` and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dasr_ops.train.transfer", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packer = commands.add_parser("pack", help="write the newest checkpoint of a run into a folder")
    packer.add_argument("run", type=Path)
    packer.add_argument("folder", type=Path)
    packer.add_argument(
        "--part-size", type=parse_bytes, default=PART_SIZE, help="of a file, such as 15Mi (default)"
    )
    unpacker = commands.add_parser("unpack", help="make a run of such a folder, or take one on")
    unpacker.add_argument("folder", type=Path)
    unpacker.add_argument("run", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "pack":
            step = pack(options.run, options.folder, options.part_size)
            print(f"{options.folder}: step {step}")
        else:
            step = unpack(options.folder, options.run)
            print(f"{options.run}: step {step}; go on with dasr train {options.run}")
    except (ValueError, OSError, RuntimeError) as error:  # TrainingError is one of them
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
