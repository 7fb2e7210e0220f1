"""Writing TIFF and BigTIFF strip by strip: 8 and 16 bits, deflate with horizontal differences."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from .._messages import one_line
from .deflate import deflate
from .errors import warn
from .parallel import map_in_order
from .picture import Picture
from .png_writer import interleaved

_STRIP = 1 << 19  # bytes
_LARGEST_CLASSIC = 2**32 - 2**25  # compression may fail to compress
_XMP = 700


def write_tiff(path: Path, picture: Picture) -> None:
    """Write a picture of 8 or 16 bits with its metadata.

    Raises:
        ImportError: tifffile is not installed.
    """
    import tifffile

    color, alpha = picture.color, picture.alpha
    channels = (1 if color.ndim == 2 else 3) + (alpha is not None)
    height, width = color.shape[:2]
    rows = max(1, _STRIP // (width * channels * color.itemsize))
    big = (color.nbytes + (0 if alpha is None else alpha.nbytes)) * 1.01 > _LARGEST_CLASSIC
    with tifffile.TiffWriter(path, bigtiff=big, byteorder="<") as file:
        file.write(
            _strips(picture, rows),
            shape=(height, width) if channels == 1 else (height, width, channels),
            dtype=color.dtype,
            photometric="minisblack" if color.ndim == 2 else "rgb",
            planarconfig=None if channels == 1 else "contig",
            extrasamples=None if alpha is None else ["unassalpha"],
            rowsperstrip=rows,
            compression="adobe_deflate",
            predictor=True,
            iccprofile=picture.icc_profile,
            resolution=picture.dpi or (1, 1),
            resolutionunit="inch" if picture.dpi else "none",
            extratags=[(_XMP, 1, len(picture.xmp), picture.xmp, True)] if picture.xmp else [],
            metadata=None,
            software=False,
        )
    if picture.exif and big:
        warn("EXIF data is not kept in TIFF files above 4 GB")
    elif picture.exif:
        _add_exif(path, picture.exif)


def _strips(picture: Picture, count: int) -> Iterator[bytes]:
    color, alpha = picture.color, picture.alpha

    def strip(first: int) -> bytes:
        rows = interleaved(color, alpha, slice(first, first + count), "<u2")
        samples = rows.view(color.dtype.newbyteorder("<")).reshape(len(rows), color.shape[1], -1)
        differences = samples.copy()
        differences[:, 1:] -= samples[:, :-1]
        return deflate(differences.tobytes())

    return map_in_order(strip, range(0, len(color), count))


def _add_exif(path: Path, data: bytes) -> None:
    """Put the directories of EXIF data into a classic little-endian TIFF.

    A new first directory, written behind the pixels, has the entries of the old one and those of
    the EXIF data that it lacks.
    """
    with path.open("r+b") as file:
        file.seek(4)
        (old,) = struct.unpack("<I", file.read(4))
        file.seek(old)
        (count,) = struct.unpack("<H", file.read(2))
        entries = _entries(file.read(12 * count))
        place = (file.seek(0, 2) + 1) // 2 * 2
        try:
            exif = Image.Exif()
            exif.load(data)
            exif.endian = "<"
            block = exif.tobytes(place)[len(b"Exif\0\0") + 8 :]
        except Exception as error:  # Pillow's parser raises what it likes
            warn(f"EXIF data cannot be written and is dropped: {one_line(error)}")
            return
        (count,) = struct.unpack("<H", block[:2])
        merged = _entries(block[2 : 2 + 12 * count]) | entries
        table = b"".join(entry for _, entry in sorted(merged.items()))
        file.seek(place)
        file.write(block)
        directory = (file.tell() + 1) // 2 * 2
        file.seek(directory)
        file.write(struct.pack("<H", len(merged)) + table + b"\0" * 4)
        file.seek(4)
        file.write(struct.pack("<I", directory))


def _entries(table: bytes) -> dict[int, bytes]:
    """Return the entries of a directory by tag."""
    parts = (table[place : place + 12] for place in range(0, len(table), 12))
    return {struct.unpack("<H", entry[:2])[0]: entry for entry in parts}
