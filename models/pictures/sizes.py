"""`read_size`: width and height without decoding."""

from __future__ import annotations

import os
from pathlib import Path

from .formats import check_input_size
from .metadata import ORIENTATION
from .pil import open_image
from .reading import read_picture

_TURNED = range(5, 9)


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return width and height that `read_picture` would give, from the file's header.

    Raises:
        PictureError: the file is missing, not a picture, or too large.
    """
    try:
        with open_image(Path(path)) as image:
            width, height = image.size
            if image.getexif().get(ORIENTATION) in _TURNED:
                width, height = height, width
    except Exception:  # what Pillow does not know at all, another reader may; or it has the reason
        return read_picture(path).size
    check_input_size((width, height))
    return width, height
