"""EXIF, XMP and orientation: what stays true of the pixels is kept."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from .._messages import one_line
from .errors import note

ORIENTATION = 0x0112
_DIRECTORIES = (0x8769, 0x8825)  # EXIF, GPS
_INTEROPERABILITY = 0xA005
_XMP_TAG = 700
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_INCH, _CENTIMETRE = 2, 3
_PHOTOSHOP_TAG, _IPTC_TAG = 34377, 33723
_IPTC_RESOURCE = 0x0404  # of Photoshop's
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


def kept_exif(load: Callable[[], Image.Exif], notes: list[str] | None) -> tuple[int, bytes | None]:
    """Return what `clean_exif` does of what ``load`` returns; broken data is noted and dropped."""
    try:
        return clean_exif(load())
    except Exception as error:  # parsers raise what they like on broken data
        note(notes, f"EXIF data is broken and dropped: {one_line(error)}")
        return 1, None


def note_lost(image: Image.Image, notes: list[str]) -> None:
    """Note metadata that a picture opened by Pillow has, and that no reader here keeps."""
    info = image.info
    if image.format in ("JPEG", "MPO", "GIF"):
        comment = info.get("comment")
        if comment and comment.strip(b" \0\r\n" if isinstance(comment, bytes) else None):
            notes.append("the comment is not kept")
    iptc = False
    if image.format in ("JPEG", "MPO"):
        resources = info.get("photoshop")
        iptc = isinstance(resources, dict) and bool(resources.get(_IPTC_RESOURCE))
    elif image.format == "TIFF" and _IPTC_TAG not in image.tag_v2:
        resources = image.tag_v2.get(_PHOTOSHOP_TAG)
        if isinstance(resources, tuple) and len(resources) == 1:
            (resources,) = resources
        resource = b"8BIM" + _IPTC_RESOURCE.to_bytes(2, "big")
        iptc = isinstance(resources, bytes) and resource in resources
    if iptc:
        notes.append("IPTC data is not kept")


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


def upright_dpi(
    info: dict[str, Any], orientation: int, exif: bytes | None = None
) -> tuple[float, float] | None:
    """Return pixels per inch of the picture turned by an EXIF orientation.

    Args:
        info: Pillow's.
        orientation: 1..8.
        exif: what tells the resolution where ``info`` does not, as in WebP and AVIF.
    """
    dpi = dpi_of(info) or dpi_of({"dpi": _exif_dpi(exif)})
    return dpi[::-1] if dpi is not None and orientation >= 5 else dpi


def _exif_dpi(data: bytes | None) -> tuple[float, float] | None:
    if not data:
        return None
    try:
        exif = Image.Exif()
        exif.load(data)
        inches = {_INCH: 1.0, _CENTIMETRE: 2.54}[exif.get(_RESOLUTION_UNIT, _INCH)]
        return float(exif[_X_RESOLUTION]) * inches, float(exif[_Y_RESOLUTION]) * inches
    except Exception:  # no resolution, or a broken one
        return None


def with_resolution(data: bytes | None, dpi: tuple[float, float]) -> bytes:
    """Return EXIF data that tells pixels per inch, for formats that have no other place for it.

    Raises:
        Exception: what Pillow's parser likes to raise on broken data.
    """
    told = dpi_of({"dpi": _exif_dpi(data)})
    if data and told and all(abs(a - b) <= 0.01 for a, b in zip(told, dpi, strict=True)):
        return data
    exif = Image.Exif()
    if data:
        exif.load(data)
    exif[_X_RESOLUTION], exif[_Y_RESOLUTION] = (float(value) for value in dpi)
    exif[_RESOLUTION_UNIT] = _INCH
    # Through `clean_exif`, so that all directories are written.
    return clean_exif(exif)[1] or b""


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation, 1..8, to an array [H, W, ...]."""
    if orientation in (3, 4, 6, 7):
        array = array[::-1]
    if orientation in (2, 3, 7, 8):
        array = array[:, ::-1]
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    return np.ascontiguousarray(array)
