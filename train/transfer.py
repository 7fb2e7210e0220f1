"""Carry a run to another machine in a few small files.

    python -m dasr_ops.train.transfer pack RUN FOLDER      # the newest checkpoint of RUN
    python -m dasr_ops.train.transfer unpack FOLDER RUN    # then: dasr train RUN

A checkpoint of a DASR of the paper's size takes 150 MB, most of which soon recovers if it is lost.
What is carried: the weights of all networks and of the averages in float16, the settings and the
logs. Optimisers begin anew with a rising rate, and the pool of pairs begins empty; samples and
learning rate go on with the step. Where training data lie may differ.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dasr_ops.models._messages import one_line
from dasr_ops.models._tensor_files import write_pth
from dasr_ops.models.files import atomic_path

from .config_files import CONFIG_NAME
from .engine.changes import changes
from .engine.checkpoints import FORMAT, Checkpoints, State
from .engine.lock import locked
from .photo_pack import parse_bytes

LIST = "run.json"
PART_SIZE = 15 * 2**20
_LOGS = ("log.csv", "validation.csv", "train.log")
_PARTS = "run.*.part"


def pack(run: Path, folder: Path, part_size: int = PART_SIZE) -> int:
    """Write the newest checkpoint of a run into a folder.

    Args:
        run: folder of the run.
        folder: for ``run.json`` and parts of at most ``part_size`` bytes; made. An older pack in it
            is there until the new one is whole.
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
    whole, parts = hashlib.sha256(data).hexdigest(), []
    for number, start in enumerate(range(0, len(data), part_size)):
        part, name = data[start : start + part_size], f"run.{whole[:8]}.{number:02d}.part"
        parts.append({"name": name, "sha256": hashlib.sha256(part).hexdigest()})
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(part)
    with atomic_path(folder / LIST) as temporary:
        listed = {"format": FORMAT, "step": state["step"], "parts": parts}
        temporary.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    for old in {*folder.glob(_PARTS)} - {folder / part["name"] for part in parts}:
        with suppress(OSError):
            old.unlink()
    return state["step"]


def unpack(folder: Path, run: Path) -> int:
    """Make a run of what `pack` wrote, or take the same run on from an older checkpoint.

    Args:
        folder: of the pack.
        run: folder of the run; made.

    Returns:
        The step from which the run goes on.

    Raises:
        ValueError: the pack is incomplete, damaged or of another version, or the folder holds
            another run, or one that is as far already.
        TrainingError: the run is going on, or none of its checkpoints can be read.
        OSError: the run's folder cannot be written to.
    """
    state = _read(folder)
    step, config, logs = state["step"], state.pop("yaml"), state.pop("logs")
    run.mkdir(parents=True, exist_ok=True)
    with locked(run):
        checkpoints = Checkpoints(run / "checkpoints", 1, _warn)
        there = checkpoints.newest()
        if there is not None:
            different = changes(there["config"], state["config"], moved=True)
            if different:
                raise ValueError(f"{run}: holds another run: {'; '.join(different)}")
            if there["step"] > step or (there["step"] == step and not there.get("carried")):
                raise ValueError(f"{run}: is at step {there['step']} already, the pack at {step}")
        checkpoints.folder.mkdir(exist_ok=True)
        write_pth(state, checkpoints.path(step))
        # Settings last: where they are, a checkpoint is. Where they are not, unpack again.
        for name, text in {**logs, CONFIG_NAME: config}.items():
            with atomic_path(run / name) as temporary:
                temporary.write_text(text, encoding="utf-8", newline="")
    return step


def _light(state: State, run: Path) -> State:
    learner = state["learner"]
    restorer = _halves(learner["restorer"])
    carried: dict[str, Any] = {
        "restorer": restorer,
        # The difference: in float16 it is exact enough to keep what averaging gains.
        "average": {
            name: (value - restorer[name].to(value.dtype)).to(restorer[name].dtype)
            for name, value in learner["average"].items()
        },
        "scaler": learner["scaler"],
    }
    if "discriminator" in learner:
        carried["discriminator"] = _halves(learner["discriminator"])
    logs = {
        name: (run / name).read_text("utf-8", errors="replace")
        for name in _LOGS
        if (run / name).is_file()
    }
    kept = {name: state[name] for name in ("format", "step", "config", "processes")}
    settings = (run / CONFIG_NAME).read_text("utf-8")
    return {**kept, "learner": carried, "carried": True, "yaml": settings, "logs": logs}


def _halves(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return kernels in float16; of the rest, spectral norms among it, every digit counts."""
    return {name: value.half() if value.dim() > 1 else value for name, value in state.items()}


def _read(folder: Path) -> State:
    try:
        listed = json.loads((folder / LIST).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: expected a pack: {one_line(error)}") from error
    if not isinstance(listed, dict) or listed.get("format") != FORMAT:
        raise ValueError(f"{folder / LIST}: not of format {FORMAT}")
    try:
        entries = [(str(part["name"]), part["sha256"]) for part in listed["parts"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / LIST}: damaged") from error
    data = bytearray()
    for name, checksum in entries:
        path = folder / Path(name).name
        part = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(part).hexdigest() != checksum:
            raise ValueError(f"{path}: missing or damaged")
        data += part
    try:
        return _heavy(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    except Exception as error:  # pickle raises what it likes
        raise ValueError(f"{folder}: not a pack of this version ({one_line(error)})") from error


def _heavy(state: State) -> State:
    """Check the content of a pack, and undo `_light`."""
    if state["format"] != FORMAT or not isinstance(state["step"], int):
        raise ValueError("format")
    texts = [state["yaml"], *state["logs"].values()]
    if not set(state["logs"]) <= set(_LOGS) or not all(isinstance(text, str) for text in texts):
        raise ValueError("logs")
    learner = state["learner"]
    for name in {"restorer", "average", "discriminator"} & set(learner):
        learner[name] = {
            key: value.float() if value.dtype == torch.float16 else value
            for key, value in learner[name].items()
        }
    for name, value in learner["restorer"].items():
        learner["average"][name] = learner["average"][name] + value
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
