"""`write_picture`: all of a file or nothing, and a word about what its format does not hold."""

from __future__ import annotations

import io
import os
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .._messages import one_line
from ..files import atomic_path
from .depth import place_on_white, to_8_bit
from .errors import PictureError, warn
from .formats import (
    ALPHA_FORMATS,
    DEEP_FORMATS,
    FORMATS,
    GREY_FORMATS,
    METADATA_FORMATS,
    RESOLUTION_IN_EXIF,
    check_output_size,
)
from .metadata import with_resolution
from .picture import Picture
from .png_text import listed
from .png_writer import write_png
from .tiff_writer import write_tiff

_QUALITY = {"JPEG": 95, "WEBP": 95, "AVIF": 90}
_LONGEST_JPEG_EXIF = 65_533
_XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
_LONGEST_JPEG_XMP = 65_533 - len(_XMP_HEADER)
_FULL_CHROMA = 90  # from this quality on colour has the resolution of brightness
_KEYS = ("exif", "icc_profile", "xmp", "dpi")


def write_picture(
    picture: Picture,
    path: str | os.PathLike[str],
    *,
    replace: bool = True,
    quality: int | None = None,
) -> None:
    """Write a picture, all of it or nothing, with its metadata.

    PNG holds everything, TIFF all but text entries. Elsewhere 16 bits become 8, and JPEG and BMP
    get transparent pictures on white, all with a `PictureWarning`.

    Args:
        picture: what to write.
        path: its suffix chooses the format, see `FORMATS`.
        replace: whether an existing file is replaced.
        quality: of JPEG, WebP and AVIF, 1..100; 100 is lossless for WebP. None for 95, AVIF 90.
            PNG, TIFF and BMP are lossless whatever it is.

    Raises:
        TypeError, ValueError: an argument is not as described.
        PictureError: the format is unknown or cannot hold the picture.
        FileExistsError: the file exists and ``replace`` is False.
        OSError: the file cannot be written.
    """
    if not isinstance(picture, Picture):
        raise TypeError(f"write_picture: picture: expected a Picture, got {type(picture).__name__}")
    check_quality("write_picture", quality)
    path = Path(path)
    format = FORMATS.get(path.suffix.lower())
    if format is None:
        raise PictureError(f"expected a name that ends in one of {' '.join(FORMATS)}, got {path}")
    check_output_size(picture.size, format)
    if not replace and path.exists():
        raise FileExistsError(f"{path} exists")
    fitted = fit(picture, format)
    with atomic_path(path, replace=replace) as temporary:
        try:
            _write(fitted, temporary, format, quality or _QUALITY.get(format, 0))
        except (OSError, MemoryError):
            raise
        except Exception as error:  # encoders raise what they like
            raise PictureError(f"cannot be written as {format}: {one_line(error)}") from error


def check_quality(owner: str, quality: int | None) -> None:
    """Raise TypeError or ValueError unless ``quality`` is None or an int of 1..100."""
    if quality is None:
        return
    if not isinstance(quality, int) or isinstance(quality, bool):
        raise TypeError(f"{owner}: quality: expected an int, got {quality!r}")
    if not 1 <= quality <= 100:
        raise ValueError(f"{owner}: quality: expected 1 to 100, got {quality}")


def fit(picture: Picture, format: str) -> Picture:
    """Turn a picture into what ``format`` holds, and say what is lost."""
    color, alpha, changes = picture.color, picture.alpha, {}
    if alpha is not None and format not in ALPHA_FORMATS:
        warn(f"{format} does not hold transparency: placed on white")
        color, alpha = place_on_white(color, alpha), None
    if picture.bits > 8 and format not in DEEP_FORMATS:
        kind = "grey" if color.ndim == 2 else "colour"
        warn(f"{format} does not hold 16-bit {kind}: written as 8-bit")
        color = to_8_bit(color)
        alpha = None if alpha is None else to_8_bit(alpha)
    if color.ndim == 2 and format not in GREY_FORMATS:
        color = np.repeat(color[..., None], 3, axis=2)
        if (picture.icc_profile or b"")[16:20] != b"RGB ":
            changes["icc_profile"] = None  # a profile of grey does not describe RGB
    if format not in METADATA_FORMATS and (picture.exif or picture.icc_profile or picture.xmp):
        warn(f"{format} keeps neither EXIF nor a colour profile")
    if format == "JPEG" and len(picture.exif or b"") > _LONGEST_JPEG_EXIF:
        warn("EXIF data is too long for JPEG and dropped")
        changes["exif"] = None
    if format == "JPEG" and len(picture.xmp or b"") > _LONGEST_JPEG_XMP:
        warn("XMP data is too long for JPEG and dropped")
        changes["xmp"] = None
    if format != "PNG" and picture.text:
        warn(f"{format}: {listed(picture.text)} not kept")
    if format in RESOLUTION_IN_EXIF and picture.dpi:
        try:
            changes["exif"] = with_resolution(picture.exif, picture.dpi)
        except Exception:  # of broken EXIF data
            warn(f"{format}: the resolution (dpi) is not kept")
    return with_changes(picture, color=color, alpha=alpha, **changes)


def _write(picture: Picture, path: Path, format: str, quality: int) -> None:
    if format == "PNG":
        with path.open("wb") as file:
            write_png(file, picture)
    elif format == "TIFF":
        try:
            write_tiff(path, picture)
        except ImportError:
            if picture.bits == 16:
                warn("written as 8-bit; pip install tifffile keeps 16 bits")
            _save(picture, path, "TIFF", {"compression": "tiff_lzw"})
    elif format == "JPEG":
        subsampling = 0 if quality >= _FULL_CHROMA else 2
        options = {"quality": quality, "subsampling": subsampling}
        if not _write_jpeg(picture, path, options):
            _save(picture, path, "JPEG", options)
    elif format == "WEBP":
        _save(picture, path, "WEBP", {"quality": quality, "lossless": quality == 100})
    elif format == "AVIF":
        full = {"subsampling": "4:4:4"} if quality == 100 else {}
        _save(picture, path, "AVIF", {"quality": quality, **full})
    else:
        _save(picture, path, format, {})


def _write_jpeg(picture: Picture, path: Path, options: dict[str, Any]) -> bool:
    """Encode from the array, without Pillow's copy of four bytes per pixel; False if impossible."""
    try:
        import imagecodecs
    except ImportError:
        return False
    # The segments before the tables, metadata among them, are those that Pillow writes.
    small = io.BytesIO()
    shape = (8, 8, *picture.color.shape[2:])
    blank = with_changes(picture, color=np.zeros(shape, np.uint8), xmp=None)
    _save(blank, small, "JPEG", options)
    metadata = small.getvalue()[: _end_of_metadata(small.getvalue())]
    if picture.xmp:
        block = _XMP_HEADER + picture.xmp
        metadata += b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block
    data = imagecodecs.jpeg8_encode(
        np.ascontiguousarray(picture.color),
        level=options["quality"],
        subsampling="444" if options["subsampling"] == 0 else "420",
    )
    with path.open("wb") as file:
        file.write(metadata)
        file.write(memoryview(data)[_end_of_metadata(data) :])
    return True


def _end_of_metadata(data: bytes) -> int:
    """Return where the application segments and comments at the start of a JPEG end."""
    place = 2
    while data[place] == 0xFF and (0xE0 <= data[place + 1] <= 0xEF or data[place + 1] == 0xFE):
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return place


def _save(
    picture: Picture, target: Path | io.BytesIO, format: str, options: dict[str, Any]
) -> None:
    """Have Pillow write 8 bits, or deep grey."""
    if format == "TIFF" and picture.exif:
        exif = Image.Exif()
        exif.load(picture.exif)
        if any(tag in exif for tag in (0x8769, 0x8825)):
            options = {}  # Pillow cannot have libtiff write these directories
    if format in METADATA_FORMATS:
        options = options | {key: getattr(picture, key) for key in _KEYS if getattr(picture, key)}
    elif picture.dpi:
        options = options | {"dpi": picture.dpi}
    image = picture.to_pil()
    image.info.clear()
    try:
        image.save(target, format=format, **options)
    except OSError:
        raise
    except Exception:
        if not picture.exif:
            raise
        if isinstance(target, io.BytesIO):
            target.seek(0)
            target.truncate()
        image.save(target, format=format, **(options | {"exif": b""}))
        warn("EXIF data cannot be written and is dropped")
