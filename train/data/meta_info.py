"""Lists of pictures as BasicSR writes them."""

from __future__ import annotations

import re
from pathlib import Path

META_INFO = "meta_info.txt"
"""The list in the folder of a database."""

# The size stands behind the name, in databases the compression level behind that.
_SIZE = re.compile(r"\s+\(\s*\d+\s*,\s*\d+\s*(,\s*\d+\s*)?\)(\s+\d+)?$")


def read_lines(path: Path, name: str) -> list[str]:
    """Return the pictures that a file lists, one to a line, without sizes and comments.

    Args:
        path: of the file.
        name: what error messages call the argument.

    Raises:
        ValueError: not a text file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{name}: expected a text file with one picture to a line, got {path}: {error}"
        ) from None
    lines = (line.strip() for line in text.split("\n"))
    return [_SIZE.sub("", line) for line in lines if line and not line.startswith("#")]


def format_line(name: str, height: int, width: int, channels: int, level: int) -> str:
    """Return the line of a PNG in a database's list."""
    return f"{name}.png ({height},{width},{channels}) {level}\n"
