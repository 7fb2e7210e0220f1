"""Formats that results are written in, and how large a picture each of them holds."""

from __future__ import annotations

from .errors import PictureError

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".avif": "AVIF",
}
"""Formats that results are written in, by the suffix of the file name."""

ANIMATION_FORMATS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG", ".apng": "PNG"}
"""Formats that animations are written in, by the suffix of the file name."""

MAX_PIXELS = 300_000_000
"""Pixels of the largest picture that is read: more than any camera's, less than a zip bomb's."""

ALPHA_FORMATS = {"PNG", "WEBP", "TIFF", "AVIF"}  # readers ignore the fourth byte of BMP
DEEP_FORMATS = {"PNG", "TIFF"}
GREY_FORMATS = {"PNG", "JPEG", "TIFF", "BMP"}
METADATA_FORMATS = {"PNG", "JPEG", "WEBP", "TIFF", "AVIF"}
RESOLUTION_IN_EXIF = {"WEBP", "AVIF"}  # they have no other place for it

_LONGEST_SIDE = {
    "JPEG": 65_500,  # libjpeg's limit; the format's is 65,535
    "WEBP": 16_383,
    "AVIF": 65_536,
    "GIF": 65_535,
    "PNG": 2**31 - 1,
    "BMP": 2**31 - 1,
    "TIFF": 2**31 - 1,
}
_BMP_BYTES = 2**32 - 1 - 54


LONGEST_DURATION = {"GIF": 655_350, "WEBP": 2**24 - 1, "PNG": 65_535_000}
"""Milliseconds that a frame of an animation can last."""

MOST_PLAYS = {"GIF": 65_536, "WEBP": 65_535, "PNG": 2**31 - 1}
"""How often an animation can be told to play; for ever is something else."""


def check_output_size(size: tuple[int, int], format: str) -> None:
    """Check, before any work, that a format holds a picture.

    Args:
        size: width and height in pixels.
        format: one of the values of `FORMATS`, or ``GIF``.

    Raises:
        PictureError: it does not.
    """
    width, height = size
    if min(size) < 1:
        raise PictureError(f"empty: {width}x{height} pixels")
    longest = _LONGEST_SIDE.get(format)
    if longest is not None and max(size) > longest:
        raise PictureError(
            f"{width}x{height} pixels do not fit into {format} ({longest} at most); "
            "PNG or TIFF can hold them"
        )
    if format == "BMP" and (3 * width + 3) // 4 * 4 * height > _BMP_BYTES:
        raise PictureError(
            f"{width}x{height} pixels do not fit into BMP (4 GB at most); PNG or TIFF can hold them"
        )


def check_input_size(size: tuple[int, int]) -> None:
    """Raise PictureError for an empty picture, or one so large that it looks like a zip bomb."""
    width, height = size
    if min(size) < 1:
        raise PictureError(f"empty: {width}x{height} pixels")
    if width * height > MAX_PIXELS:
        raise PictureError(
            f"too large: {width}x{height} pixels, more than {MAX_PIXELS // 10**6} megapixels "
            "(a decompression bomb?)"
        )
