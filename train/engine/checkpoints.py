"""Checkpoints of a run: whole or not there, the last few kept, damaged ones passed over."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dasr_ops.models._messages import one_line
from dasr_ops.models._tensor_files import write_pth
from dasr_ops.models.files import TEMPORARY_PREFIX

from .errors import TrainingError

FORMAT = 1
_NAME = re.compile(r"step_(\d+)\.pt")
State = dict[str, Any]


class Checkpoints:
    """The checkpoints in a folder, `step_00005000.pt` and so on.

    A process other than the first has a part of its own beside each (`step_00005000.rank1.pt`),
    written before; a checkpoint counts when the file of the first process is there.

    Args:
        folder: made when the first one is written.
        keep: how many are kept.
        warn: called with a line of text about a checkpoint that cannot be read.
    """

    def __init__(self, folder: Path, keep: int, warn: Callable[[str], None]) -> None:
        self.folder, self.keep, self.warn = folder, keep, warn

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints there are, the newest first."""
        names = (path.name for path in self.folder.glob("step_*.pt"))
        return sorted((int(m[1]) for n in names if (m := _NAME.fullmatch(n))), reverse=True)

    def path(self, step: int, rank: int = 0) -> Path:
        """Return the file of a step and a process."""
        part = f".rank{rank}" if rank else ""
        return self.folder / f"step_{step:08d}{part}.pt"

    def save(self, step: int, state: State, rank: int = 0) -> Path:
        """Write a checkpoint.

        Raises:
            OSError: it cannot be written; what was there is still there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(step, rank)
        write_pth({**state, "format": FORMAT, "step": step}, path)
        return path

    def newest(self) -> State | None:
        """Return the newest checkpoint that can be read, None if there are none.

        Raises:
            TrainingError: there are checkpoints, but none can be read.
        """
        steps = self.steps()
        for step in steps:
            try:
                return read(self.path(step))
            except (OSError, ValueError) as error:
                self.warn(f"{self.path(step)} cannot be used: {one_line(error)}")
        if steps:
            raise TrainingError(
                f"{self.folder}: none of the {len(steps)} checkpoints can be used; remove the "
                "folder to begin again"
            )
        return None

    def part(self, step: int, rank: int) -> State | None:
        """Return what a process other than the first wrote, None if that cannot be read."""
        try:
            return read(self.path(step, rank))
        except (OSError, ValueError):
            return None

    def prune(self, newest: int) -> None:
        """Remove what is beyond those kept, and all later than the newest usable one.

        Later ones could not be used, or the run would have gone on from there.
        """
        steps = self.steps()
        later = [step for step in steps if step > newest]
        for step in (*later, *steps[len(later) + self.keep :]):
            for path in [self.path(step), *self.folder.glob(f"step_{step:08d}.rank*.pt")]:
                with suppress(OSError):
                    path.unlink()
        for leftover in self.folder.glob(f"{TEMPORARY_PREFIX}*"):  # of processes that were killed
            with suppress(OSError):
                leftover.unlink()


def read(path: Path) -> State:
    """Read a checkpoint, every byte checked.

    Raises:
        OSError, ValueError: it is missing, damaged or of another format.
    """
    # torch.load does not compare checksums: a flipped bit would go unnoticed.
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        state = None
        if broken is None:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # zipfile, zlib and pickle raise what they like on damaged files
        raise ValueError(f"damaged ({one_line(error)})") from error
    if broken is not None:
        raise ValueError(f"damaged ({broken} does not match its checksum)")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"not a checkpoint of format {FORMAT}")
    return state
