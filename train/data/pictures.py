"""Decoding pictures, and how much there is to see in them."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dasr_ops.models._messages import one_line
from dasr_ops.models.pictures import PictureError, split

_FINAL = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}
_PAUSES = (0.1, 1.0)  # seconds before the second and the third try of a read that failed


def picture_suffixes() -> frozenset[str]:
    """Return the endings of file names that Pillow can read, in lower case, with the dot."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN)


def read_rgb(source: str | Path | BinaryIO, smallest: int = 1) -> np.ndarray:
    """Decode a picture to uint8 [H, W, 3], upright.

    Alpha is dropped, of an animation the first picture is taken, palettes are resolved, CMYK goes
    through its colour profile, 16 bits become 8 by rounding.

    Args:
        source: a file, or an open one.
        smallest: least side in pixels.

    Raises:
        OSError: no such file, not a picture, a damaged one, one below `smallest` (which is not
            decoded), one so large that Pillow takes it for a decompression bomb, or one whose
            values have no agreed range (mode F).
    """
    try:
        with Image.open(source) as picture:
            if min(picture.size) < smallest:
                raise OSError(f"{picture.width}x{picture.height} is below {smallest}")
            _turn_upright(picture)
            return _to_rgb(picture)
    except UnidentifiedImageError:
        raise OSError("not a picture that can be read") from None
    except OSError:
        raise
    except MemoryError:
        raise OSError("not enough memory to decode it") from None
    except Exception as error:  # decoders raise what they like on broken files
        raise OSError(one_line(error)) from error


def read_patiently(
    open_source: Callable[[], str | Path | BinaryIO], smallest: int = 1
) -> np.ndarray:
    """Do as `read_rgb`, and try again where the system says that it cannot for now."""
    for pause in _PAUSES:
        try:
            return read_rgb(open_source(), smallest)
        except OSError as error:
            if error.errno is None or error.errno in _FINAL:
                raise
            time.sleep(pause)
    return read_rgb(open_source(), smallest)


def reason(error: OSError) -> str:
    """Return why a picture cannot be read, in one line, without its path."""
    return one_line(error)


def detail(patch: np.ndarray) -> float:
    """Mean absolute difference of neighbouring pixels of uint8 [H, W, 3], in 8-bit steps."""
    grey = patch.astype(np.float32).mean(axis=2)
    return float((np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()) / 2)


def _turn_upright(picture: Image.Image) -> None:
    picture.load()  # before EXIF is read: what is raised here is about the pixels
    try:
        ImageOps.exif_transpose(picture, in_place=True)
    except Exception:  # broken EXIF says nothing about the pixels
        return


def _to_rgb(picture: Image.Image) -> np.ndarray:
    if picture.mode == "RGB":
        return np.asarray(picture)
    try:
        color = split(picture).color
    except PictureError as error:
        raise OSError(str(error)) from None
    if color.dtype != np.uint8:
        color = ((color.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(color[..., None], 3, axis=2) if color.ndim == 2 else color
