"""Reading PNG beyond Pillow: 16-bit colour, and transparency of 2 and 4-bit grey."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .._messages import one_line
from .errors import PictureError
from .metadata import exif_of, kept_exif, turn, upright_dpi, xmp_of
from .picture import Picture

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE = 3
_USUAL_GAMMA = 0.45455
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}


class Chunk(NamedTuple):
    """A chunk of a PNG file; ``data`` only of small ones."""

    kind: bytes
    length: int
    data: bytes


def bits(head: bytes) -> int:
    """Return the bits per channel of the file that begins with ``head``."""
    return head[24] if len(head) > 25 and head[25] != _PALETTE else 8


def chunks(path: Path, largest: int = 1 << 20) -> Iterator[Chunk]:
    """Yield the chunks of a PNG file up to IEND or its end, skipping over image data."""
    with path.open("rb") as file:
        file.seek(len(SIGNATURE))
        while len(header := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            wanted = length <= largest and kind not in (b"IDAT", b"fdAT")
            data = file.read(length) if wanted else b""
            file.seek((0 if wanted else length) + 4, 1)
            yield Chunk(kind, length, data)
            if kind == b"IEND":
                return


def read(path: Path, image: Image.Image, notes: list[str]) -> Picture:
    """Decode 16-bit grey or colour; ``image`` is the same file opened by Pillow.

    Raises:
        ImportError: imagecodecs is not installed.
        PictureError: the data is broken.
    """
    import imagecodecs

    try:
        array = imagecodecs.png_decode(path.read_bytes())
    except Exception as error:
        raise PictureError(f"broken: {one_line(error)}") from None
    if array.shape[:2] != (image.height, image.width) or array.dtype.itemsize != 2:
        raise PictureError(f"broken: decoded as {array.dtype} {list(array.shape)}")
    info = dict(image.info)
    for chunk in chunks(path):
        if chunk.kind == b"eXIf" and chunk.data:
            info["exif"] = b"Exif\0\0" + chunk.data
    orientation, exif = kept_exif(lambda: exif_of(info), notes)
    color, alpha = separate(array)
    return Picture(
        turn(color, orientation),
        None if alpha is None else turn(alpha, orientation),
        exif=exif,
        icc_profile=info.get("icc_profile") or None,
        xmp=xmp_of(info),
        dpi=upright_dpi(info, orientation, exif),
    )


def separate(array: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Split [H, W] or [H, W, 1..4] into colour and opacity (None for an odd number of channels)."""
    if array.ndim == 2:
        return array, None
    channels = array.shape[2]
    color = array[..., 0] if channels < 3 else array[..., :3]
    return color, array[..., -1] if channels in (2, 4) else None


def note_colors(path: Path, image: Image.Image, notes: list[str]) -> None:
    """Say what about the meaning of colours is neither applied nor kept.

    Values are taken as they are. A colour profile is kept, an ``sRGB`` chunk says what is assumed
    anyway, and so do ``gAMA`` chunks of about 1/2.2, which are all that most programs write.
    """
    gamma = image.info.get("gamma")
    known = image.info.get("icc_profile") or "srgb" in image.info
    if gamma and not known and abs(gamma - _USUAL_GAMMA) > 0.03:
        notes.append(f"gamma of {gamma:.3g} is not applied, and not kept")
    for chunk in chunks(path):
        if chunk.kind == b"IDAT":
            return
        if chunk.kind == b"cICP" and len(chunk.data) == 4 and chunk.data[1] in _HDR_TRANSFERS:
            notes.append(f"HDR ({_HDR_TRANSFERS[chunk.data[1]]}) is treated as SDR")


def fix_transparency(head: bytes, image: Image.Image) -> None:
    """Scale the transparent value of 1 to 4-bit grey, whose pixels Pillow scales to 8 bits."""
    value = image.info.get("transparency")
    if not isinstance(value, int):
        return
    if image.mode == "L" and bits(head) in (2, 4):
        image.info["transparency"] = value * 255 // (2 ** bits(head) - 1)
    elif image.mode == "1" and value == 1:  # before Pillow 12
        image.info["transparency"] = 255
