"""Reading JPEG XL (ISO/IEC 18181), which Pillow does not know, through imagecodecs."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .._messages import one_line
from .depth import rescale
from .errors import PictureError
from .formats import check_input_size
from .metadata import exif_of, kept_exif, upright_dpi, xmp_of
from .picture import Picture
from .png import separate

_CODESTREAM = b"\xff\x0a"
_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_SIZES = ((1, 9), (1, 13), (1, 18), (1, 30))


class _Header(NamedTuple):
    width: int
    height: int
    bits: int
    floating: bool


def is_jpeg_xl(head: bytes) -> bool:
    """Tell whether a file that begins with ``head`` is JPEG XL."""
    return head.startswith((_CODESTREAM, _CONTAINER))


def read(path: Path, notes: list[str]) -> Picture:
    """Decode the first frame, which libjxl turns upright; EXIF and XMP are kept, if uncompressed.

    Raises:
        PictureError: imagecodecs is not installed, or the file is broken.
    """
    try:
        import imagecodecs
    except ImportError:
        raise PictureError("JPEG XL is read after pip install imagecodecs") from None
    data = path.read_bytes()
    boxes = dict(_boxes(data)) if data.startswith(_CONTAINER) else {b"jxlc": data}
    header = _header(boxes.get(b"jxlc") or boxes.get(b"jxlp", b"")[4:])
    check_input_size((header.width, header.height))
    if header.floating or header.bits > 16:
        raise PictureError("floating-point values have no agreed range")
    try:
        array = imagecodecs.jpegxl_decode(data, index=0)
    except Exception as error:
        raise PictureError(f"broken: {one_line(error)}") from None
    notes.append("a colour profile of JPEG XL is not kept")
    dtype = np.uint8 if header.bits <= 8 else np.uint16
    color, alpha = separate(rescale(array, 2**header.bits - 1, dtype))
    block = boxes.get(b"Exif", b"")
    if len(block) > 4:
        block = b"Exif\0\0" + block[4 + struct.unpack(">I", block[:4])[0] :]
    orientation, exif = kept_exif(lambda: exif_of({"exif": block} if block else {}), notes)
    contiguous = None if alpha is None else np.ascontiguousarray(alpha)
    xmp = xmp_of({"xmp": boxes.get(b"xml ")})
    dpi = upright_dpi({}, orientation, exif)
    return Picture(np.ascontiguousarray(color), contiguous, exif=exif, xmp=xmp, dpi=dpi)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of boxes, the first of a kind last so that a dict keeps it."""
    found, place = [], 0
    while place + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        start = place + 8
        if length == 1:
            length, start = struct.unpack(">Q", data[start : start + 8])[0], start + 8
        end = len(data) if length == 0 else place + length
        if end < start:
            break
        found.append((kind, data[start:end]))
        place = end
    yield from reversed(found)


class _Bits:
    """Reads bits, the lowest first."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise PictureError("truncated: no header")
        value = self._value & ((1 << count) - 1)
        self._value >>= count
        return value

    def choose(self, *options: tuple[int, int]) -> int:
        """Read a U32: two bits choose (offset, bits)."""
        offset, count = options[self.take(2)]
        return offset + self.take(count)


def _header(codestream: bytes) -> _Header:
    if not codestream.startswith(_CODESTREAM):
        raise PictureError("broken: no JPEG XL codestream")
    bits = _Bits(codestream[2:66])
    width, height = _size(bits)
    if bits.take(1):  # everything else is default
        return _Header(width, height, 8, False)
    if bits.take(1):  # extra fields
        bits.take(3)  # orientation
        if bits.take(1):
            _size(bits)  # intrinsic size
        if bits.take(1):
            raise PictureError("JPEG XL with a preview cannot be read")
        if bits.take(1):  # animation
            bits.choose((100, 0), (1000, 0), (1, 10), (1, 30))
            bits.choose((1, 0), (1001, 0), (1, 8), (1, 10))
            bits.choose((0, 0), (0, 3), (0, 16), (0, 32))
            bits.take(1)
    if bits.take(1):
        return _Header(width, height, bits.choose((32, 0), (16, 0), (24, 0), (1, 6)), True)
    return _Header(width, height, bits.choose((8, 0), (10, 0), (12, 0), (1, 6)), False)


def _size(bits: _Bits) -> tuple[int, int]:
    small = bits.take(1)
    height = 8 * (bits.take(5) + 1) if small else bits.choose(*_SIZES)
    ratio = bits.take(3)
    if ratio:
        numerator, denominator = _RATIOS[ratio - 1]
        return height * numerator // denominator, height
    return 8 * (bits.take(5) + 1) if small else bits.choose(*_SIZES), height
