"""The hash that ties a compiled extension to its sources; used at build and at import."""

from __future__ import annotations

import hashlib
from pathlib import Path


def source_hash(csrc: Path) -> str:
    """Return the hash of the sources below ``csrc`` that the extension is built from."""
    digest = hashlib.sha256()
    suffixes = {".cpp", ".cu", ".cuh", ".h", ".inl"}
    # The CPU emulation of CUDA belongs to the tests: it is no part of the extension.
    files = (
        path.relative_to(csrc)
        for path in csrc.rglob("*")
        if path.suffix in suffixes and path.relative_to(csrc).parts[0] != "emulation"
    )
    for name in sorted(file.as_posix() for file in files):
        digest.update(name.encode() + b"\0" + (csrc / name).read_bytes() + b"\0")
    return digest.hexdigest()[:32]
