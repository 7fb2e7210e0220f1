"""The weights that come with the package, by name."""

from __future__ import annotations

import os
from pathlib import Path

from ._tensor_files import CheckpointError, StrPath

FOLDER = Path(__file__).parent / "weights"
"""Where they are, with their model cards."""

NAMES = ("small", "small-gan", "dasr", "dasr-gan")
"""Names of weights; a build need not have all of them."""

DEFAULT = "small"


def find_weights(path: StrPath | None = None) -> Path:
    """Return the file of weights.

    Args:
        path: a name among `NAMES`, a file, which is not looked for, or None for the default
            weights.

    Raises:
        CheckpointError: the build has no weights of that name.
    """
    name = DEFAULT if path is None else os.fspath(path)
    if name not in NAMES:
        return Path(name)
    found = FOLDER / f"{name}.safetensors"
    if found.is_file():
        return found
    if path is None:
        raise CheckpointError(f"this build comes without weights ({found.name}); name your own")
    there = ", ".join(available()) or "none"
    raise CheckpointError(f"{name}: this build comes without these weights; it has {there}")


def available() -> list[str]:
    """Return the names of the weights that this build has."""
    return [name for name in NAMES if (FOLDER / f"{name}.safetensors").is_file()]
