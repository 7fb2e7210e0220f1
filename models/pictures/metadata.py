"""EXIF, XMP and orientation: what stays true of the pixels is kept."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
_DIRECTORIES = (0x8769, 0x8825)  # EXIF, GPS
_INTEROPERABILITY = 0xA005
_XMP_TAG = 700
# Tags of the first TIFF directory that describe how the pixels of the *source* are stored, or that
# hold what is kept elsewhere (profile, XMP) or belongs to one program (Photoshop's layers).
_LAYOUT_TAGS = {
    *range(254, 260),
    *(262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 288, 289, 290, 291, 292, 293),
    *(297, 301, 317, 318, 319, 320, 321, 322, 323, 324, 325, 330, 332, 334, 336, 337, 338, 339),
    *(340, 341, 342, 347, 512, 513, 514, 529, 530, 531, 532, 34675),
    *(_XMP_TAG, 34377, 37724),
}
_PIXEL_SIZE_TAGS = (0xA002, 0xA003)
_XMP_ORIENTATION = (
    rb'\s*tiff:Orientation="[0-9]+"',
    rb"<tiff:Orientation>[0-9]+</tiff:Orientation>",
)


def exif_of(info: dict[str, Any]) -> Image.Exif:
    """Return the EXIF data in Pillow's ``info``: a block, PNG text, or an orientation in XMP."""
    probe = Image.new("L", (1, 1))
    probe.info = dict(info)
    return probe.getexif()


def clean_exif(exif: Image.Exif) -> tuple[int, bytes | None]:
    """Take EXIF data apart.

    Returns:
        The orientation, 1..8, and the data without it and without what describes the stored
        pixels; None if nothing is left.
    """
    orientation = exif.get(ORIENTATION, 1)
    if orientation not in range(1, 9):
        orientation = 1
    kept = Image.Exif()  # a new one, since ``exif`` belongs to somebody's picture
    for tag, value in exif.items():
        if tag not in _LAYOUT_TAGS and tag != ORIENTATION and tag not in _DIRECTORIES:
            kept[tag] = value
    for tag in _DIRECTORIES:
        directory = dict(exif.get_ifd(tag)) if tag in exif else {}
        for layout in _PIXEL_SIZE_TAGS:
            directory.pop(layout, None)
        if _INTEROPERABILITY in directory:
            directory[_INTEROPERABILITY] = dict(exif.get_ifd(_INTEROPERABILITY))
        if directory:
            kept[tag] = directory
    return int(orientation), kept.tobytes() if len(kept) else None


def xmp_of(info: dict[str, Any]) -> bytes | None:
    """Return the XMP packet in Pillow's ``info``, without its orientation."""
    packet = info.get("xmp") or info.get("XML:com.adobe.xmp")
    if isinstance(packet, str):
        packet = packet.encode("utf-8", "surrogateescape")
    if not isinstance(packet, bytes):
        return None
    for pattern in _XMP_ORIENTATION:
        packet = re.sub(pattern, b"", packet)
    return packet.rstrip(b"\0") or None


def dpi_of(info: dict[str, Any]) -> tuple[float, float] | None:
    """Return pixels per inch from Pillow's ``info``, None if they are missing or senseless."""
    try:
        horizontal, vertical = (float(value) for value in info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if not all(math.isfinite(value) and 1 <= value <= 1e5 for value in (horizontal, vertical)):
        return None
    return horizontal, vertical


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation, 1..8, to an array [H, W, ...]."""
    if orientation in (3, 4, 6, 7):
        array = array[::-1]
    if orientation in (2, 3, 7, 8):
        array = array[:, ::-1]
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    return np.ascontiguousarray(array)
