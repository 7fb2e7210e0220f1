"""Writing PNG (ISO/IEC 15948) straight from arrays: 16 bits, all cores, no second copy.

Rows get Paeth's filter and are compressed piece by piece; the pieces end at byte boundaries, so
that they join to one stream. Files of photographs are as small as Pillow's.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from .deflate import deflate
from .parallel import map_in_order
from .picture import Picture
from .png_text import encoded

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES = {1: 0, 3: 2, 2: 4, 4: 6}  # by channels
_PIECE = 1 << 18  # bytes of rows that are compressed at a time
_CHUNK = 1 << 20  # bytes of an IDAT chunk, at least
_ZLIB_HEADER = b"\x78\x01"
_PAETH = 4


def write_png(file: BinaryIO, picture: Picture) -> None:
    """Write a picture of 8 or 16 bits with its metadata."""
    file.write(SIGNATURE)
    write_header(file, picture)
    for data in compressed(picture):
        write_chunk(file, b"IDAT", data)
    write_chunk(file, b"IEND")


def write_header(file: BinaryIO, picture: Picture, animation: bytes | None = None) -> None:
    """Write all chunks that precede pixels; ``animation`` is the content of ``acTL``."""
    channels = (1 if picture.color.ndim == 2 else 3) + (picture.alpha is not None)
    header = struct.pack(">IIBBBBB", *picture.size, picture.bits, _COLOR_TYPES[channels], 0, 0, 0)
    write_chunk(file, b"IHDR", header)
    if animation is not None:
        write_chunk(file, b"acTL", animation)
    if picture.icc_profile:
        write_chunk(file, b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc_profile))
    if picture.dpi:
        per_metre = (max(1, round(value / 0.0254)) for value in picture.dpi)
        write_chunk(file, b"pHYs", struct.pack(">IIB", *per_metre, 1))
    if picture.exif:
        write_chunk(file, b"eXIf", picture.exif.removeprefix(b"Exif\0\0"))
    if picture.xmp:
        write_chunk(file, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + picture.xmp)
    for kind, data in encoded(picture.text or {}):
        write_chunk(file, kind, data)


def write_chunk(file: BinaryIO, kind: bytes, data: bytes = b"") -> None:
    """Write one chunk with length and checksum."""
    file.write(struct.pack(">I4s", len(data), kind))
    file.write(data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))


def compressed(picture: Picture) -> Iterator[bytes]:
    """Yield the pieces of the zlib stream that IDAT or fdAT chunks hold."""
    color, alpha = picture.color, picture.alpha
    height, width = color.shape[:2]
    channels = (1 if color.ndim == 2 else 3) + (alpha is not None)
    step = max(1, _PIECE // (width * channels * color.itemsize))

    def piece(first: int) -> tuple[bytes, bytes]:
        start = max(first - 1, 0)  # the row above is needed
        rows = interleaved(color, alpha, slice(start, first + step), ">u2")
        filtered = paeth(rows, channels * color.itemsize, first - start)
        return deflate(filtered, raw=True, last=first + step >= height), filtered

    checksum, pending = 1, _ZLIB_HEADER
    for data, filtered in map_in_order(piece, range(0, height, step)):
        checksum = zlib.adler32(filtered, checksum)
        pending += data
        if len(pending) >= _CHUNK:
            yield pending
            pending = b""
    yield pending + struct.pack(">I", checksum)


def interleaved(color: np.ndarray, alpha: np.ndarray | None, rows: slice, deep: str) -> np.ndarray:
    """Return rows as bytes [R, B], channels interleaved, 16 bits in the byte order ``deep``."""
    part = color[rows]
    if alpha is not None:
        part = np.concatenate([part.reshape(*part.shape[:2], -1), alpha[rows][..., None]], axis=2)
    if part.itemsize == 2:
        part = part.astype(deep)
    return np.ascontiguousarray(part).reshape(len(part), -1).view(np.uint8)


def paeth(rows: np.ndarray, pixel: int, above: int) -> bytes:
    """Filter rows by Paeth's predictor.

    Args:
        rows: uint8 [R, B].
        pixel: bytes of a pixel.
        above: 1 if the first row only precedes what is wanted, 0 if nothing precedes it.

    Returns:
        The filtered rows, each behind the number of the filter.
    """
    wanted = rows[above:]
    left, up, corner = (np.zeros_like(wanted) for _ in range(3))
    left[:, pixel:] = wanted[:, :-pixel]
    up[1 - above :] = rows[:-1]
    corner[:, pixel:] = up[:, :-pixel]
    # The predictor is the neighbour closest to left + up - corner. All in bytes, with masks.
    to_left, to_up = _distance(up, corner), _distance(left, corner)
    # Steps of one direction add up, and the corner is never the closest; others cancel out.
    cancel = (up > corner) != (left > corner)
    to_corner = _distance(to_left, to_up) | (cancel.view(np.uint8) - np.uint8(1))
    use_left = -((to_left <= to_up) & (to_left <= to_corner)).view(np.uint8)
    use_up = -(to_up <= to_corner).view(np.uint8) & ~use_left
    predicted = (left & use_left) | (up & use_up) | (corner & ~(use_left | use_up))
    result = np.empty((len(wanted), rows.shape[1] + 1), np.uint8)
    result[:, 0] = _PAETH
    np.subtract(wanted, predicted, out=result[:, 1:])
    return result.tobytes()


def _distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.maximum(first, second) - np.minimum(first, second)
