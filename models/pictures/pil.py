"""Pillow's pictures: opened without its pixel limit, and taken apart into arrays."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from .._messages import one_line
from .depth import bands
from .errors import PictureError, note
from .formats import check_input_size
from .metadata import kept_exif, turn, upright_dpi, xmp_of
from .picture import Picture

_limit_lock = threading.RLock()


class Layers(NamedTuple):
    """The pixels of a picture."""

    color: np.ndarray
    """uint8 [H, W, 3] for colour, uint8 [H, W] for grey, uint16 [H, W] for deep grey."""
    alpha: np.ndarray | None
    """Opacity [H, W] of the same dtype."""


@contextmanager
def without_pixel_limit() -> Iterator[None]:
    """Lift Pillow's limit, which is below what phones take; sizes are checked against ours."""
    with _limit_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def open_image(file: Path | BinaryIO) -> Image.Image:
    """Read the header of a picture, and refuse sizes that only a zip bomb has.

    Raises:
        PictureError, UnidentifiedImageError, OSError, and what a decoder likes to raise.
    """
    with without_pixel_limit():
        image = Image.open(file)
    try:
        check_input_size(image.size)
    except PictureError:
        image.close()
        raise
    return image


def decoding(image: Image.Image) -> AbstractContextManager[None]:
    """Lift Pillow's limit for a picture whose size has been checked, if it is beyond that limit."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is None or image.width * image.height <= limit:
        return nullcontext()
    return without_pixel_limit()


def to_picture(image: Image.Image, notes: list[str] | None = None) -> Picture:
    """Turn a picture of Pillow into ours, upright.

    Args:
        image: any mode but F.
        notes: what could not be kept is appended; None to warn instead.

    Raises:
        PictureError: the picture is empty, or its mode has no meaning here.
    """
    with decoding(image):
        image.load()
    orientation, exif = kept_exif(image.getexif, notes)
    color, alpha = split(image, notes)
    profile = image.info.get("icc_profile") if image.mode not in ("CMYK", "LAB") else None
    return Picture(
        turn(color, orientation),
        None if alpha is None else turn(alpha, orientation),
        exif=exif,
        icc_profile=profile or None,
        xmp=xmp_of(image.info),
        dpi=upright_dpi(image.info, orientation, exif),
    )


def split(image: Image.Image, notes: list[str] | None = None) -> Layers:
    """Take a picture of Pillow apart into colour or grey and opacity, as it is stored.

    Args:
        image: any mode; I and I;16 hold 16-bit grey.
        notes: what could not be kept is appended; None to warn instead.

    Returns:
        Its layers; CMYK as RGB through its colour profile, if it has one, LAB as RGB.

    Raises:
        PictureError: the picture is empty, or its mode has no meaning here (F).
    """
    if min(image.size) < 1:
        raise PictureError(f"empty: {image.size[0]}x{image.size[1]} pixels")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _deep_grey(image)
    if image.mode == "CMYK":
        image = _cmyk_to_rgb(image, notes)
    grey = image.mode in ("1", "L", "LA", "La")
    opaque = image.mode not in ("LA", "La", "RGBa", "PA") and not image.has_transparency_data
    target = ("L" if opaque else "LA") if grey else ("RGB" if opaque else "RGBA")
    try:
        if image.mode == "La":
            image = image.convert("LA")
        elif image.mode == "RGBa":
            image = image.convert("RGBA")
        elif image.mode == "F":
            raise ValueError("floating-point values have no agreed range")
        if image.mode != target:
            image = image.convert(target)
    except ValueError as error:
        raise PictureError(f"mode {image.mode} cannot be read: {one_line(error)}") from None
    array = _array(image)
    if opaque:
        return Layers(array, None)
    color = array[..., 0] if grey else array[..., :3]
    return Layers(np.ascontiguousarray(color), np.ascontiguousarray(array[..., -1]))


def _array(image: Image.Image) -> np.ndarray:
    """Copy pixels band by band: at once, Pillow needs memory for two copies more."""
    channels = len(image.getbands())
    shape = (image.height, image.width, channels) if channels > 1 else (image.height, image.width)
    result = np.empty(shape, np.uint8)
    for rows in bands(result):
        result[rows] = np.asarray(image.crop((0, rows.start, image.width, rows.stop)))
    return result


def cmyk_profile_to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image | None:
    """Convert mode CMYK to RGB through a colour profile; None if that is not possible."""
    if not profile:
        return None
    try:
        from PIL import ImageCms
    except ImportError:
        return None
    try:
        return ImageCms.profileToProfile(
            image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (OSError, ValueError, ImageCms.PyCMSError):
        return None


def _deep_grey(image: Image.Image) -> Layers:
    deep = np.asarray(image.convert("I") if image.mode != "I" else image)
    low, high = deep.min(), deep.max()
    if low < 0 or high > 0xFFFF:
        raise PictureError(f"grey values {low}..{high} are not 16-bit")
    color = deep.astype(np.uint16)
    transparent = image.info.get("transparency")  # of a PNG: the value that is not to be seen
    if not isinstance(transparent, int):
        return Layers(color, None)
    return Layers(color, np.where(color == transparent, 0, 0xFFFF).astype(np.uint16))


def _cmyk_to_rgb(image: Image.Image, notes: list[str] | None) -> Image.Image:
    rgb = cmyk_profile_to_srgb(image, image.info.get("icc_profile"))
    if rgb is None:
        note(notes, "CMYK without a usable colour profile: colours are approximate")
        rgb = image.convert("RGB")
    return rgb
