"""Reading TIFF through tifffile: 16-bit colour, and layouts that Pillow does not know."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .._messages import one_line
from .depth import rescale, unpremultiply
from .errors import PictureError
from .formats import check_input_size
from .metadata import ORIENTATION, kept_exif, turn, upright_dpi, xmp_of
from .picture import Picture

_SILENCE = logging.NullHandler()
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLORS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _PALETTE: 1, _RGB: 3, _YCBCR: 3, _CMYK: 4}
_RAW = {32803, 34892}
_DNG_VERSION = 50706
_ASSOCIATED, _UNASSOCIATED = 1, 2
_COLOR_MAP, _PROFILE, _XMP = 320, 34675, 700


def is_tiff(head: bytes) -> bool:
    """Tell whether a file that begins with ``head`` is a TIFF or BigTIFF."""
    return head[:4] in _MAGIC


def bits(image: Image.Image) -> int:
    """Return the largest number of bits per channel of a TIFF opened by Pillow."""
    value = image.tag_v2.get(258, 1)
    return max(value) if isinstance(value, tuple) else value


def check(image: Image.Image, file_size: int) -> None:
    """Refuse, before Pillow decodes it, a truncated file, or a camera's raw one.

    Raises:
        PictureError: it is one. The first picture of a raw file is a small preview.
    """
    tags = image.tag_v2
    if _DNG_VERSION in tags and tags.get(254, 0) & 1:
        raise PictureError("a camera's raw file (DNG): develop it first")
    for offsets, counts in ((273, 279), (324, 325)):
        pairs = zip(_numbers(tags.get(offsets)), _numbers(tags.get(counts)), strict=False)
        if any(offset + count > file_size for offset, count in pairs):
            raise PictureError("truncated: part of the pixels is missing")


def read(path: Path, image: Image.Image | None, notes: list[str]) -> Picture:
    """Decode the first page of a TIFF.

    Args:
        path: the file.
        image: the same file opened by Pillow, if it can.
        notes: what could not be kept is appended.

    Raises:
        ImportError: tifffile or imagecodecs is not installed.
        PictureError: the file is broken, or of a kind that has no meaning here.
    """
    import imagecodecs  # noqa: F401  tifffile calls it
    import tifffile

    # What tifffile logs about broken files is said by our one error; without any handler Python
    # would print it.
    logging.getLogger("tifffile").addHandler(_SILENCE)
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            if image is None and len(file.pages) > 1:
                notes.append(f"only the first of {len(file.pages)} pictures is read")
            _check(page, os.path.getsize(path))
            array = page.asarray()
            color, alpha = _to_rgb(page, _contiguous(page, array), notes)
            info = _info(page)
            orientation = _value(page, ORIENTATION)
    except (PictureError, MemoryError, OSError):
        raise
    except Exception as error:  # tifffile and the codecs raise what they like
        raise PictureError(f"broken: {one_line(error)}") from None
    exif = kept_exif(lambda: _exif(path, image), notes)[1]
    orientation = orientation if orientation in range(1, 9) else 1
    return Picture(
        turn(color, orientation),
        None if alpha is None else turn(alpha, orientation),
        exif=exif,
        icc_profile=None if page.photometric == _CMYK else info.get("icc_profile"),
        xmp=xmp_of(info),
        dpi=upright_dpi({} if image is None else image.info, orientation, exif),
    )


def _numbers(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, tuple) else (value,)
    return tuple(number for number in values if isinstance(number, int))


def _check(page: Any, file_size: int) -> None:
    """Refuse, before anything is decoded, what is too large, truncated or without a meaning."""
    check_input_size((page.imagewidth, page.imagelength))
    if page.imagedepth != 1:
        raise PictureError(f"{page.imagedepth} layers of a volume, not a picture")
    if page.photometric in _RAW:
        raise PictureError("a camera's raw file: develop it first")
    if page.photometric not in _COLORS:
        name = getattr(page.photometric, "name", page.photometric)
        raise PictureError(f"{page.bitspersample}-bit {name} cannot be read")
    if page.photometric == _YCBCR and page.compression not in (6, 7, 34892):
        raise PictureError("YCbCr without JPEG compression cannot be read")
    if page.dtype is None or page.dtype.kind not in "uib":
        raise PictureError(
            "floating-point values have no agreed range: convert it to 16-bit integers"
        )
    if page.samplesperpixel < _COLORS[page.photometric]:
        raise PictureError(f"broken: {page.samplesperpixel} channels of a colour picture")
    ends = [
        offset + count
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)
        if count > 0
    ]
    if len(ends) < int(np.prod(page.chunked)) or max(ends) > file_size:
        raise PictureError("truncated: part of the pixels is missing")
    row = page.imagewidth * page.samplesperpixel * page.bitspersample // 8
    plain = page.compression == 1 and not page.is_tiled
    if plain and sum(page.databytecounts) < page.imagelength * row:
        raise PictureError("truncated: part of the pixels is missing")


def _contiguous(page: Any, array: np.ndarray) -> np.ndarray:
    """Return [H, W, C]."""
    shape = page.imagelength, page.imagewidth, page.samplesperpixel
    if page.planarconfig == 2 and page.samplesperpixel > 1:
        return np.moveaxis(array.reshape(shape[2], *shape[:2]), 0, 2)
    return array.reshape(shape)


def _to_rgb(page: Any, array: np.ndarray, notes: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    array, peak = _unsigned(page, array)
    count = _COLORS[page.photometric]
    color, extra = array[..., :count], array[..., count:]
    if page.photometric == _PALETTE:
        color = _look_up(page, color[..., 0])
        extra = extra[..., :0]
    elif page.photometric == _WHITE_IS_ZERO:
        color = color.dtype.type(peak) - color
    kind, alpha = None, None
    if extra.shape[2]:
        kinds = [int(value) for value in page.extrasamples or (_UNASSOCIATED,)]
        for place, kind in enumerate(kinds[: extra.shape[2]]):
            if kind in (_ASSOCIATED, _UNASSOCIATED):
                alpha = np.ascontiguousarray(extra[..., place])
                break
        ignored = extra.shape[2] - (alpha is not None)
        if ignored:
            notes.append(f"{ignored} extra channel{'s' * (ignored > 1)} without meaning dropped")
    if alpha is not None and kind == _ASSOCIATED:
        color = unpremultiply(np.ascontiguousarray(color), alpha)
    if page.photometric == _CMYK:
        color = _cmyk_to_rgb(color, _value(page, _PROFILE), notes)
    if color.shape[-1] == 1 and color.ndim == 3:
        color = color[..., 0]
    return np.ascontiguousarray(color), alpha


def _unsigned(page: Any, array: np.ndarray) -> tuple[np.ndarray, int]:
    """Return uint8 or uint16 of the full range, palette indices as they are, and their peak."""
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    deep = page.bitspersample > 8
    if array.dtype.kind == "i" or array.dtype.itemsize > 2:
        low, high = int(array.min()), int(array.max())
        limit = 0xFFFF if deep else 0xFF
        if low < 0 or high > limit:
            raise PictureError(f"values {low}..{high} are not 16-bit")
        array = array.astype(np.uint16 if deep else np.uint8)
        return array, limit
    dtype = np.uint16 if deep else np.uint8
    if page.photometric != _PALETTE:
        array = rescale(array, 2**page.bitspersample - 1, dtype)
    return array, int(np.iinfo(dtype).max)


def _look_up(page: Any, indices: np.ndarray) -> np.ndarray:
    colors = np.asarray(_value(page, _COLOR_MAP), np.uint16).reshape(3, -1).T
    if indices.max() >= len(colors):
        raise PictureError(f"broken: colour {indices.max()} of a palette of {len(colors)}")
    if not np.any(colors % 257):
        colors = (colors // 257).astype(np.uint8)
    elif not np.any(colors & 0xFF):
        colors = (colors >> 8).astype(np.uint8)  # written so by mistake, by many
    return colors[indices]


def _cmyk_to_rgb(color: np.ndarray, profile: bytes | None, notes: list[str]) -> np.ndarray:
    import imagecodecs

    if profile:
        try:
            return imagecodecs.cms_transform(
                np.ascontiguousarray(color),
                bytes(profile),
                imagecodecs.cms_profile("srgb"),
                colorspace="cmyk",
                outcolorspace="rgb",
                outdtype=color.dtype,
            )
        except Exception:  # a broken profile, or none of CMYK
            pass
    notes.append("CMYK without a usable colour profile: colours are approximate")
    peak = int(np.iinfo(color.dtype).max)
    ink, black = peak - color[..., :3].astype(np.uint64), peak - color[..., 3:].astype(np.uint64)
    return ((ink * black + peak // 2) // peak).astype(color.dtype)


def _value(page: Any, code: int) -> Any:
    tag = page.tags.get(code)
    return None if tag is None else tag.value


def _info(page: Any) -> dict[str, Any]:
    profile, xmp = _value(page, _PROFILE), _value(page, _XMP)
    return {
        "icc_profile": bytes(profile) if profile else None,
        "xmp": xmp if isinstance(xmp, (str, bytes)) else None,
    }


def _exif(path: Path, image: Image.Image | None) -> Image.Exif:
    if image is not None:
        return image.getexif()
    exif = Image.Exif()
    with path.open("rb") as file:
        if file.read(4) in _MAGIC[:2]:  # Pillow's reader of bare directories: not BigTIFF
            file.seek(0)
            exif.load_from_fp(file)
    return exif
