"""Finds the torch of the environment that is being installed into, without importing it.

Build isolation hides that torch, but only its headers and libraries are needed: the extension is
built against the LibTorch stable ABI.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

ENVIRONMENT_VARIABLE = "DASR_OPS_TORCH_DIR"
MINIMUM = (2, 11)


@dataclass(frozen=True)
class Torch:
    """An installed torch: its package folder and version."""

    folder: Path
    version: str

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version."""
        major, minor = re.match(r"(\d+)\.(\d+)", self.version).groups()
        return int(major), int(minor)


def find_torch() -> Torch | None:
    """Return the torch to build against, or None if there is none of a usable version."""
    for folder in _candidates():
        version_file = folder / "version.py"
        if not (folder / "include" / "torch" / "csrc" / "stable").is_dir():
            continue
        match = re.search(r"__version__ = '([^']+)'", version_file.read_text())
        torch = Torch(folder, match.group(1)) if match else None
        if torch is not None and torch.release >= MINIMUM:
            return torch
    return None


def _candidates() -> Iterator[Path]:
    if folder := os.environ.get(ENVIRONMENT_VARIABLE):
        yield Path(folder)
    if spec := PathFinder.find_spec("torch"):
        yield from _folder(spec.origin)
    # pip isolates a build by PYTHONPATH alone: the same interpreter without it sees the target.
    yield from _ask(sys.executable)
    # `python -m build` makes a virtual environment; its configuration names the maker.
    config = Path(sys.prefix) / "pyvenv.cfg"
    if config.is_file():
        for line in config.read_text().splitlines():
            key, _, value = (part.strip() for part in line.partition("="))
            if key == "command" and value:
                yield from _ask(shlex.split(value)[0])
            elif key == "executable":
                yield from _ask(value)
    if environment := os.environ.get("VIRTUAL_ENV"):
        yield from _ask(str(Path(environment) / "bin" / "python"))


def _ask(python: str) -> Iterator[Path]:
    code = (
        "from importlib.machinery import PathFinder as f;"
        "s = f.find_spec('torch'); print(s.origin if s else '')"
    )
    try:
        result = subprocess.run(
            [python, "-E", "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return
    yield from _folder(result.stdout.strip())


def _folder(origin: str | None) -> Iterator[Path]:
    if origin:
        yield Path(origin).parent
