"""Reading the deep kinds of JPEG 2000, AVIF and PPM, and finding HEIF's reader."""

from __future__ import annotations

import mmap
import re
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from .._messages import one_line
from .depth import rescale
from .errors import PictureError, UnsupportedError
from .metadata import exif_of, kept_exif, turn, upright_dpi, xmp_of
from .picture import Picture
from .png import separate

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_J2K_START = b"\xff\x4f\xff\x51"
_SYCC = 18
_PNM = re.compile(rb"P([2356])" + rb"(?:\s|#[^\r\n]*[\r\n])+(\d+)" * 3 + rb"\s")


def is_heif(head: bytes) -> bool:
    """Tell whether a file that begins with ``head`` is HEIF other than AVIF."""
    brands = head[8 : struct.unpack(">I", head[:4])[0]] if head[4:8] == b"ftyp" else b""
    return brands[:4] in _HEIF_BRANDS and b"avif" not in brands


def register_heif() -> None:
    """Have Pillow read HEIF; raise PictureError if pillow-heif is not installed."""
    try:
        import pillow_heif
    except ImportError:
        raise PictureError("HEIF is read after pip install pillow-heif") from None
    pillow_heif.register_heif_opener()


def jpeg_2000_bits(path: Path) -> int:
    """Return the bits per channel that the header of a JPEG 2000 file states."""
    return max((bits for bits, _ in _components(path)), default=8)


def read_jpeg_2000(path: Path, image: Image.Image, notes: list[str]) -> Picture:
    """Decode 9 to 16 bits; raise UnsupportedError if imagecodecs cannot."""
    import imagecodecs

    components = set(_components(path))
    data = path.read_bytes()
    space = data.find(b"colr\x01", 0, 1 << 16)
    sycc = space > 0 and data[space + 7 : space + 11] == struct.pack(">I", _SYCC)
    if len(components) != 1 or sycc:
        raise UnsupportedError
    ((bits, plain),) = components
    if not plain or bits > 16:
        raise UnsupportedError
    return _picture(_decoded(imagecodecs.jpeg2k_decode, data), bits, image, notes)


def avif_bits(path: Path) -> int:
    """Return the bits per channel of an AVIF file, 8, 10 or 12, from its ``av1C`` box."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = data.find(b"av1C")
        flags = data[place + 6] if 0 <= place < len(data) - 6 else 0
    return 8 if not flags & 0x40 else 12 if flags & 0x20 else 10


def read_avif(path: Path, image: Image.Image, notes: list[str]) -> Picture:
    """Decode 10 or 12 bits."""
    import imagecodecs

    array = _decoded(lambda data: imagecodecs.avif_decode(data, index=0), path.read_bytes())
    return _picture(array, avif_bits(path), image, notes)


def ppm_bits(head: bytes) -> int:
    """Return the bits per channel of a PGM or PPM file that begins with ``head``."""
    match = _PNM.match(head)
    return int(match[4]).bit_length() if match else 8


def read_ppm(path: Path, image: Image.Image, notes: list[str]) -> Picture:
    """Read binary PGM and PPM of two bytes per value."""
    data = path.read_bytes()
    match = _PNM.match(data)
    if match is None or match[1] not in (b"5", b"6"):
        raise UnsupportedError
    width, height, peak = (int(match[group]) for group in (2, 3, 4))
    channels = 3 if match[1] == b"6" else 1
    count = width * height * channels
    if not 255 < peak < 65536 or len(data) < match.end() + 2 * count:
        raise PictureError("truncated: part of the pixels is missing")
    values = np.frombuffer(data, ">u2", count, match.end()).astype(np.uint16)
    values = rescale(values.reshape(height, width * channels), peak, np.uint16)
    return Picture(values.reshape(height, width, 3) if channels == 3 else values)


def _components(path: Path) -> list[tuple[int, bool]]:
    """Return bits, and whether they are unsigned and not subsampled, of each component."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = data.find(_J2K_START)
        if place < 0 or len(data) < place + 42:
            return []
        count = struct.unpack(">H", data[place + 40 : place + 42])[0]
        table = data[place + 42 : place + 42 + 3 * count]
    triples = zip(table[::3], table[1::3], table[2::3], strict=False)
    return [((s & 0x7F) + 1, s < 0x80 and (x, y) == (1, 1)) for s, x, y in triples]


def _decoded(decode, data: bytes) -> np.ndarray:
    try:
        array = decode(data)
    except Exception as error:
        raise PictureError(f"broken: {one_line(error)}") from None
    if array.dtype != np.uint16 or array.ndim not in (2, 3):
        raise UnsupportedError
    return array


def _picture(array: np.ndarray, bits: int, image: Image.Image, notes: list[str]) -> Picture:
    if array.shape[:2] != (image.height, image.width) or array.shape[2:] > (4,):
        raise UnsupportedError
    orientation, exif = kept_exif(lambda: exif_of(image.info), notes)
    color, alpha = separate(rescale(array, 2**bits - 1, np.uint16))
    return Picture(
        turn(color, orientation),
        None if alpha is None else turn(alpha, orientation),
        exif=exif,
        icc_profile=image.info.get("icc_profile") or None,
        xmp=xmp_of(image.info),
        dpi=upright_dpi(image.info, orientation, exif),
    )
