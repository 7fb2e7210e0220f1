"""Finds the torch of the environment that is being installed into, without importing it.

Build isolation hides that torch, but only its headers and libraries are needed: the extension is
built against the LibTorch stable ABI.
"""

from __future__ import annotations

import os
import re
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
        major, minor = re.findall(r"\d+", self.version)[:2]
        return int(major), int(minor)


def find_torch() -> Torch | None:
    """Return the torch to build against, or None if there is none of a usable version.

    Raises:
        ValueError: ``DASR_OPS_TORCH_DIR`` is set and names no usable torch.
    """
    if folder := os.environ.get(ENVIRONMENT_VARIABLE):
        torch = _torch_in(Path(folder))
        if torch is None:
            minimum = ".".join(map(str, MINIMUM))
            raise ValueError(
                f"{ENVIRONMENT_VARIABLE}: expected the package folder of a torch >= {minimum}, "
                f"got {folder!r}"
            )
        return torch
    return next(filter(None, map(_torch_in, _candidates())), None)


def _torch_in(folder: Path) -> Torch | None:
    if not (folder / "include" / "torch" / "csrc" / "stable").is_dir():
        return None
    try:
        text = (folder / "version.py").read_text()
    except OSError:
        return None
    match = re.search(r"__version__ = '(\d+\.\d+[^']*)'", text)
    torch = Torch(folder.resolve(), match.group(1)) if match else None
    return torch if torch is not None and torch.release >= MINIMUM else None


def _candidates() -> Iterator[Path]:
    if spec := PathFinder.find_spec("torch"):
        yield from _folder(spec.origin)
    for python in dict.fromkeys(_pythons()):
        yield from _ask(python)


def _pythons() -> Iterator[str]:
    # pip isolates a build by PYTHONPATH alone: the same interpreter without it sees the target.
    yield sys.executable
    # `python -m build` makes a virtual environment; its configuration names the maker.
    config = Path(sys.prefix) / "pyvenv.cfg"
    if config.is_file():
        command = re.search(r"^command = (.+?) -m venv ", config.read_text(), re.MULTILINE)
        if command:
            yield command.group(1)
    # uv and virtualenv leave no such trace: look into the environments that are active or usual.
    environments = [os.environ.get("VIRTUAL_ENV"), ".venv"]
    scripts = [Path(environment, "bin") for environment in environments if environment]
    scripts += map(Path, os.environ.get("PATH", "").split(os.pathsep))
    for folder in scripts:
        if (folder.parent / "pyvenv.cfg").is_file():
            yield str(folder.absolute() / "python")


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
