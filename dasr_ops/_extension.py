"""Finds and loads the compiled extension, or says in one line why there is none."""

from __future__ import annotations

import ctypes
import json
import mmap
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from ._sources import source_hash

PACKAGE_DIR = Path(__file__).resolve().parent
FILE_NAME = "_C.abi3.so"
HASH_MARKER = b"dasr_ops-source-hash:"


def embedded_hash(library: Path) -> str | None:
    """Return the source hash stored in a compiled library without loading it."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(HASH_MARKER)
        if start < 0:
            return None
        start += len(HASH_MARKER)
        return data[start : start + 32].decode("ascii", "replace")


class Extension:
    """The outcome of loading: ``info`` about the build, or ``reason`` why it is missing."""

    def __init__(self) -> None:
        self.info: dict[str, Any] = {}
        self.reason: str | None = None
        self.path: Path | None = None
        if sys.platform != "linux":
            self.reason = f"the extension is not built on {sys.platform}"
            return
        self._find()
        if self.path is not None:
            self._load(self.path)

    @property
    def loaded(self) -> bool:
        """Whether the operators of the extension are registered."""
        return self.reason is None

    def _find(self) -> None:
        # In a checkout the source folder hides an installed package: look for its binary too, but
        # trust a binary only if it was built from the sources at hand.
        csrc = PACKAGE_DIR.parent / "csrc"
        expected = source_hash(csrc) if (csrc / "ops").is_dir() else None
        folders = [PACKAGE_DIR, *(Path(entry or ".") / PACKAGE_DIR.name for entry in sys.path)]
        stale: list[Path] = []
        for folder in dict.fromkeys(folder.resolve() for folder in folders):
            candidate = folder / FILE_NAME
            if not candidate.is_file():
                continue
            if expected is None or embedded_hash(candidate) == expected:
                self.path = candidate
                return
            stale.append(candidate)
        if stale:
            self.reason = (
                f"{stale[0]} was built from other sources: rebuild with `pip install -e .`"
            )
        else:
            self.reason = f"{FILE_NAME} was not built (no C++ compiler at install time?)"

    def _load(self, path: Path) -> None:
        try:
            torch.ops.load_library(str(path))
            self._library = ctypes.CDLL(str(path))
            self._library.dasr_ops_build_info.restype = ctypes.c_char_p
            self.info = json.loads(self._library.dasr_ops_build_info().decode())
        except (OSError, RuntimeError) as error:
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.reason = f"{path} does not load with torch {torch.__version__}: {first_line}"

    def cuda_driver_version(self) -> int | None:
        """Return the CUDA version that the driver supports (13000 for 13.0), 0 without a driver."""
        return self._library.dasr_ops_cuda_driver_version() if self.loaded else None


extension = Extension()
if not extension.loaded and sys.platform == "linux":
    warnings.warn(f"dasr_ops runs without its compiled kernels: {extension.reason}", stacklevel=2)
