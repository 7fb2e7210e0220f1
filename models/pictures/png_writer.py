"""Writing PNG (ISO/IEC 15948) straight from arrays: 16 bits, all cores, no second copy.

Rows are filtered by Sub or Up, whichever leaves smaller residuals, and compressed piece by piece;
the pieces end at byte boundaries, so that they join to one stream. Files are about as small as
Pillow's, and several times faster.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from .parallel import map_in_order
from .picture import Picture

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES = {1: 0, 3: 2, 2: 4, 4: 6}  # by channels
_LEVEL = 4
_PIECE = 1 << 20  # bytes of rows that are compressed at a time
_SUB, _UP = 1, 2


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

    def piece(first: int) -> tuple[bytes, int, bytes]:
        start = max(first - 1, 0)  # the row above is needed
        rows = interleaved(color, alpha, slice(start, first + step), ">u2")
        filtered = _filter(rows, channels * color.itemsize, first - start)
        deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_FILTERED)
        data = deflate.compress(filtered)
        data += deflate.flush(zlib.Z_FINISH if first + step >= height else zlib.Z_SYNC_FLUSH)
        return data, len(filtered), filtered

    checksum, head = 1, b"\x78\x5e"
    pending = b""
    for data, _, filtered in map_in_order(piece, range(0, height, step)):
        checksum = zlib.adler32(filtered, checksum)
        if pending:
            yield pending
        pending, head = head + data, b""
    yield pending + struct.pack(">I", checksum)


def interleaved(color: np.ndarray, alpha: np.ndarray | None, rows: slice, deep: str) -> np.ndarray:
    """Return rows as bytes [R, B], channels interleaved, 16 bits in the byte order ``deep``."""
    part = color[rows]
    if alpha is not None:
        part = np.concatenate([part.reshape(*part.shape[:2], -1), alpha[rows][..., None]], axis=2)
    if part.itemsize == 2:
        part = part.astype(deep)
    return np.ascontiguousarray(part).reshape(len(part), -1).view(np.uint8)


def _filter(rows: np.ndarray, pixel: int, above: int) -> bytes:
    """Filter ``rows`` [R, B]; the first ``above`` (0 or 1) only precede what is wanted."""
    wanted = rows[above:]
    sub = wanted.copy()
    sub[:, pixel:] -= wanted[:, :-pixel]
    up = wanted.copy()
    up[1 - above :] -= rows[:-1]
    use_sub = _magnitude(sub) < _magnitude(up)
    result = np.empty((len(wanted), rows.shape[1] + 1), np.uint8)
    result[:, 0] = np.where(use_sub, _SUB, _UP)
    result[:, 1:] = up
    result[use_sub, 1:] = sub[use_sub]
    return result.tobytes()


def _magnitude(residuals: np.ndarray) -> np.ndarray:
    """Sum the residuals of each row as numbers of -128..127, without signs."""
    return np.minimum(residuals, -residuals).sum(axis=1, dtype=np.uint64)
