"""Finds and loads the compiled extension, or says in one line why there is none."""

from __future__ import annotations

import ctypes
import json
import mmap
import struct
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from ._sources import source_hash

FILE_NAME = "_C.abi3.so"
HASH_MARKER = b"dasr_ops-source-hash:"


class Extension:
    """The outcome of loading: ``info`` about the build, or ``reason`` why it is missing."""

    def __init__(self, package_dir: Path) -> None:
        self.info: dict[str, str | None] = {}
        self.reason: str | None = None
        self.path: Path | None = None
        self._library: Any = None
        try:
            self.path = find_library(package_dir)
            self._load(self.path)
        # A library that is none of ours lacks the functions (AttributeError).
        except (OSError, RuntimeError, ValueError, AttributeError) as error:
            self.reason = str(error).partition("\n")[0] or type(error).__name__

    @property
    def loaded(self) -> bool:
        """Whether the operators of the extension are registered."""
        return self.reason is None

    def cuda_driver_version(self) -> int | None:
        """Return the CUDA version that the driver supports (13000 for 13.0), 0 without a driver."""
        return self._library.dasr_ops_cuda_driver_version() if self.loaded else None

    def _load(self, path: Path) -> None:
        try:
            torch.ops.load_library(str(path))
        except (OSError, RuntimeError) as error:
            raise RuntimeError(
                f"{path} does not load with torch {torch.__version__}: {error}"
            ) from error
        self._library = ctypes.CDLL(str(path))
        self._library.dasr_ops_build_info.restype = ctypes.c_char_p
        self._library.dasr_ops_cpu_isa.restype = ctypes.c_char_p
        info = json.loads(self._library.dasr_ops_build_info().decode())
        # What was left out of the build is empty there.
        self.info = {key: value or None for key, value in info.items()}
        self.info["cpu_isa"] = self._library.dasr_ops_cpu_isa().decode()


def find_library(package_dir: Path) -> Path:
    """Return the compiled library that belongs to the package in ``package_dir``.

    In a checkout the source folder hides an installed package. Its library is looked for too, but
    beside sources only a library that was built from them is good.

    Raises:
        RuntimeError: there is none, or only unusable ones; the message says why.
        OSError: a file cannot be read.
    """
    if sys.platform != "linux":
        raise RuntimeError(f"the extension is not built on {sys.platform}")
    csrc = package_dir.parent / "csrc"
    expected = None
    candidates = [package_dir / FILE_NAME]
    if (csrc / "dasr_ops_build").is_dir():
        expected = source_hash(csrc)
        folders = [Path(entry) for entry in sys.path if isinstance(entry, str)]
        candidates += [folder / package_dir.name / FILE_NAME for folder in folders]
    refused = []
    for candidate in dict.fromkeys(candidates):
        if not candidate.is_file():
            continue
        fault = _fault(candidate, expected)
        if fault is None:
            return candidate
        refused.append(f"{candidate} {fault}: rebuild with `pip install -e .`")
    raise RuntimeError(
        refused[0] if refused else f"{FILE_NAME} was not built (no C++ compiler at install time?)"
    )


def embedded_hash(library: Path) -> str | None:
    """Return the source hash stored in a compiled library without loading it."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(HASH_MARKER)
        if start < 0:
            return None
        start += len(HASH_MARKER)
        return data[start : start + 32].decode("ascii", "replace")


def _fault(library: Path, expected_hash: str | None) -> str | None:
    # Loading a truncated library kills the process: the system maps what is not there.
    if not _is_complete(library):
        return "is truncated"
    found = embedded_hash(library)
    if found is None:
        return "is no extension of dasr_ops"
    if expected_hash is not None and found != expected_hash:
        return "was built from other sources"
    return None


def _is_complete(library: Path) -> bool:
    # A 64-bit ELF file ends with its section table, whose place and size stand in its header.
    with library.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or header[:5] != b"\x7fELF\x02":
        return False
    (offset,) = struct.unpack_from("<Q", header, 0x28)
    entry_size, count = struct.unpack_from("<HH", header, 0x3A)
    return library.stat().st_size >= offset + entry_size * count


extension = Extension(Path(__file__).resolve().parent)
if not extension.loaded and sys.platform == "linux":
    warnings.warn(f"dasr_ops runs without its compiled kernels: {extension.reason}", stacklevel=2)
