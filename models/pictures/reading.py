"""`read_picture`: which reader a file gets, and one clear error where it cannot be read."""

from __future__ import annotations

import os
from dataclasses import replace as with_changes
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .._messages import one_line
from . import codecs, jpeg_xl, png, png_text, tiff
from .errors import PictureError, UnsupportedError, quiet_decoders, warn
from .formats import check_input_size
from .metadata import note_lost
from .picture import Picture
from .pil import open_image, to_picture

INSTALL = "pip install imagecodecs tifffile"
_HEAD = 4096
_DEEP_READERS = {
    "PNG": png.read,
    "TIFF": tiff.read,
    "JPEG2000": codecs.read_jpeg_2000,
    "AVIF": codecs.read_avif,
    "PPM": codecs.read_ppm,
}


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """Read the first picture of a file, upright, in the depth that it has.

    8 bits stay 8 bits; 9 to 16 bits of PNG, TIFF, JPEG 2000, AVIF and PPM are scaled to 16. What is
    not kept (deeper colour of other formats, further pages) is said by a `PictureWarning`.

    Args:
        path: any file that Pillow reads, a TIFF that tifffile reads, JPEG XL, or HEIF where
            pillow-heif is installed.

    Raises:
        PictureError: the file is missing, unreadable, truncated, not a picture, of values that have
            no agreed range (floating point), or of more than `MAX_PIXELS`.
    """
    path = Path(path)
    notes: list[str] = []
    try:
        with quiet_decoders():
            picture = _read(path, notes)
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError("not a picture that can be read") from None
    except OSError as error:
        raise PictureError(one_line(error)) from None
    except MemoryError:
        raise PictureError("not enough memory to read it") from None
    except Exception as error:  # decoders raise what they like on broken files
        raise PictureError(f"broken: {one_line(error)}") from None
    for text in dict.fromkeys(notes):
        warn(text)
    return picture


def _read(path: Path, notes: list[str]) -> Picture:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if jpeg_xl.is_jpeg_xl(head):
        return jpeg_xl.read(path, notes)
    if codecs.is_heif(head):
        codecs.register_heif()
    try:
        image = open_image(path)
    except UnidentifiedImageError:
        if not tiff.is_tiff(head):
            raise
        try:
            return tiff.read(path, None, notes)
        except ImportError:
            raise PictureError(f"this kind of TIFF is read after {INSTALL}") from None
    with image:
        # The further pictures of a camera's MPO file are previews and gain maps.
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            notes.append(f"only the first of {image.n_frames} pictures is read")
        note_lost(image, notes)
        if image.format != "PNG":
            return _read_opened(path, head, image, notes)
        png.note_colors(path, image, notes)
        picture = _read_opened(path, head, image, notes)
        return with_changes(picture, text=png_text.read(path, notes) or None)


def _read_opened(path: Path, head: bytes, image: Image.Image, notes: list[str]) -> Picture:
    bits, missing = _bits(path, head, image), ""
    reader = _DEEP_READERS.get(image.format or "")
    if bits > 8 and reader is not None:
        check_input_size(image.size)
        try:
            return reader(path, image, notes)
        except ImportError:
            missing = f"; {INSTALL} keeps it"
        except UnsupportedError:
            pass
    if bits > 8 and not (image.mode == "I" or image.mode.startswith(("I;16", "F"))):
        notes.append(f"{bits}-bit colour is read as 8-bit{missing}")
    if image.format == "PNG":
        png.fix_transparency(head, image)
    if image.format != "TIFF":
        return to_picture(image, notes)
    tiff.check(image, path.stat().st_size)
    try:
        return to_picture(image, notes)
    except OSError:
        try:  # compressions and layouts that only tifffile knows
            return tiff.read(path, image, notes)
        except Exception:
            pass
        raise


def _bits(path: Path, head: bytes, image: Image.Image) -> int:
    """Return the bits per channel that the file states, where Pillow hides them."""
    if image.format == "PNG":
        return png.bits(head)
    if image.format == "TIFF":
        return tiff.bits(image)
    if image.format == "JPEG2000":
        return codecs.jpeg_2000_bits(path)
    if image.format == "AVIF":
        return codecs.avif_bits(path)
    if image.format == "PPM":
        return codecs.ppm_bits(head)
    if image.format == "HEIF":
        return int(image.info.get("bit_depth", 8))
    # Decoders that reduce 16 bits themselves say so in the layout of what they read.
    for tile in image.tile:
        if any(";16" in str(argument) for argument in tile[3:]):
            return 16
    return 8
