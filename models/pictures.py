"""Pictures in and out: every mode that Pillow reads, metadata kept, nothing lost without a word.

Whatever cannot be kept is said by a `PictureWarning`; what cannot be read at all is a
`PictureError`.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ._messages import one_line
from .files import atomic_path

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".avif": "AVIF",
}
"""Formats that results are written in, by the suffix of the file name."""

_LONGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383, "AVIF": 65_535}
_LONGEST_JPEG_EXIF = 65_533
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "AVIF": {"quality": 90},
    "TIFF": {"compression": "tiff_lzw"},
}
_ALPHA_FORMATS = {"PNG", "WEBP", "TIFF", "BMP", "AVIF"}
_DEEP_GREY_FORMATS = {"PNG", "TIFF"}
_GREY_FORMATS = {"PNG", "JPEG", "TIFF", "BMP"}
_METADATA_FORMATS = {"PNG", "JPEG", "WEBP", "TIFF", "AVIF"}
_ORIENTATION = 0x0112
# Tags of the first TIFF directory that describe how the pixels of the *source* are stored.
_LAYOUT_TAGS = {
    *range(254, 260),
    *(262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 288, 289, 290, 291, 292, 293),
    *(297, 301, 317, 318, 319, 320, 321, 322, 323, 324, 325, 330, 332, 334, 336, 337, 338, 339),
    *(340, 341, 342, 347, 512, 513, 514, 529, 530, 531, 532, 34675),
}
_PIXEL_SIZE_TAGS = (0xA002, 0xA003)
_EXIF_DIRECTORY = 0x8769
_DIRECTORIES = (_EXIF_DIRECTORY, 0x8825)


class PictureError(ValueError):
    """A picture that cannot be read or written; the message is one line."""


class PictureWarning(UserWarning):
    """Something about a picture that could not be kept."""


class Layers(NamedTuple):
    """A picture as the network sees it."""

    color: np.ndarray
    """uint8 [H, W, 3] for colour, uint8 [H, W] for grey, uint16 [H, W] for deep grey."""
    alpha: Image.Image | None
    """Opacity, mode L, of the size of ``color``."""


def read_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Read the first picture of a file, upright.

    Args:
        path: any file that Pillow reads.

    Returns:
        The picture, loaded, its EXIF orientation applied, with ``exif`` and ``icc_profile`` in
        ``info`` where the file has them.

    Raises:
        PictureError: the file is missing, unreadable, truncated, not a picture, or so large that
            Pillow takes it for a decompression bomb.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            # Between one and two times Pillow's limit it warns; memory is bounded here anyway.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                notes = _notes(path, image)
                image.load()
                upright = _upright(image, notes)
    except UnidentifiedImageError:
        raise PictureError("not a picture that can be read") from None
    except Image.DecompressionBombError as error:
        raise PictureError(f"too large: {one_line(error)}") from None
    except OSError as error:
        raise PictureError(one_line(error)) from None
    except MemoryError:
        raise PictureError("not enough memory to read it") from None
    except Exception as error:  # decoders raise what they like on broken files
        raise PictureError(f"broken: {one_line(error)}") from None
    for text in notes:
        warnings.warn(text, PictureWarning, stacklevel=2)
    return upright


def check_output_size(size: tuple[int, int], format: str) -> None:
    """Raise PictureError if ``format`` cannot hold a picture of ``size`` (width, height)."""
    longest = _LONGEST_SIDE.get(format)
    if longest is not None and max(size) > longest:
        raise PictureError(
            f"{size[0]}x{size[1]} pixels do not fit into {format} ({longest} at most); "
            "PNG or TIFF can hold them"
        )


def write_picture(
    image: Image.Image, path: str | os.PathLike[str], *, replace: bool = True
) -> None:
    """Write a picture, all of it or nothing, with the metadata in its ``info``.

    Args:
        image: mode L, LA, RGB, RGBA or I;16.
        path: its suffix chooses the format, see `FORMATS`.
        replace: whether an existing file is replaced.

    Raises:
        PictureError: the format is unknown or cannot hold the picture.
        FileExistsError: the file exists and ``replace`` is False.
        OSError: the file cannot be written.
    """
    path = Path(path)
    format = FORMATS.get(path.suffix.lower())
    if format is None:
        raise PictureError(f"expected a name that ends in one of {' '.join(FORMATS)}, got {path}")
    check_output_size(image.size, format)
    options = dict(_SAVE_OPTIONS.get(format, {}))
    if format in _METADATA_FORMATS:
        options |= {k: image.info[k] for k in ("exif", "icc_profile") if image.info.get(k)}
    elif image.info.get("exif") or image.info.get("icc_profile"):
        _warn(f"{format} keeps neither EXIF nor a colour profile")
    if format == "JPEG" and len(options.get("exif", b"")) > _LONGEST_JPEG_EXIF:
        _warn("EXIF data is too long for JPEG and dropped")
        options["exif"] = b""
    fitted = _fit(image, format)
    if fitted.mode.startswith("RGB") and not image.mode.startswith("RGB"):
        options["icc_profile"] = None  # a profile of grey does not describe RGB
    with atomic_path(path, replace=replace) as temporary:
        try:
            _save(fitted, temporary, format, options)
        except OSError:
            raise
        except Exception as error:  # encoders raise what they like
            raise PictureError(f"cannot be written as {format}: {one_line(error)}") from None


def split(image: Image.Image) -> Layers:
    """Take a picture apart into colour or grey and opacity.

    Args:
        image: any mode of Pillow; I and I;16 hold 16-bit grey.

    Returns:
        Its layers; CMYK as RGB through its colour profile, if it has one, LAB as RGB.

    Raises:
        PictureError: the picture is empty, or its mode has no meaning here (F).
    """
    if min(image.size) < 1:
        raise PictureError(f"empty: {image.size[0]}x{image.size[1]} pixels")
    if image.mode == "I" or image.mode.startswith("I;16"):
        deep = np.asarray(image.convert("I") if image.mode != "I" else image)
        if deep.min() < 0 or deep.max() > 0xFFFF:
            raise PictureError(f"grey values {deep.min()}..{deep.max()} are not 16-bit")
        return Layers(deep.astype(np.uint16), None)
    if image.mode == "CMYK":
        image = _cmyk_to_rgb(image)
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
        image = image.convert(target)
    except ValueError as error:
        raise PictureError(f"mode {image.mode} cannot be read: {one_line(error)}") from None
    if opaque:
        return Layers(np.asarray(image), None)
    alpha = image.getchannel("A")
    return Layers(np.asarray(image.convert("L" if grey else "RGB")), alpha)


def join(layers: Layers, source: Image.Image) -> Image.Image:
    """Put enlarged layers together again, with the metadata of ``source``.

    Args:
        layers: ``color`` enlarged, ``alpha`` still in its original size.
        source: where EXIF and colour profile come from; one of CMYK or LAB is dropped.

    Returns:
        A picture of mode L, LA, RGB, RGBA or I;16.
    """
    image = Image.fromarray(layers.color)
    if layers.alpha is not None:
        image.putalpha(layers.alpha.resize(image.size, Image.Resampling.LANCZOS))
    converted = source.mode in ("CMYK", "LAB")
    for key in ("exif",) if converted else ("exif", "icc_profile"):
        if source.info.get(key):
            image.info[key] = source.info[key]
    return image


def _save(image: Image.Image, path: Path, format: str, options: dict[str, Any]) -> None:
    if format == "TIFF" and options.get("exif"):
        exif = Image.Exif()
        exif.load(options["exif"])
        if any(tag in exif for tag in _DIRECTORIES):
            del options["compression"]  # Pillow cannot have libtiff write these
    try:
        image.save(path, format=format, **options)
    except OSError:
        raise
    except Exception:
        if not options.get("exif"):
            raise
        image.save(path, format=format, **{**options, "exif": b""})
        _warn("EXIF data cannot be written and is dropped")


def _notes(path: Path, image: Image.Image) -> list[str]:
    notes = []
    depth = _color_depth(path, image)
    if depth > 8 and not (image.mode == "I" or image.mode.startswith(("I;16", "F"))):
        notes.append(f"{depth}-bit colour is read as 8-bit")
    # The further pictures of a camera's MPO file are previews and gain maps.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        notes.append(f"only the first of {image.n_frames} pictures is read")
    return notes


def _color_depth(path: Path, image: Image.Image) -> int:
    """Return the bits per channel that the file's header states, where Pillow hides them."""
    if image.format == "PNG":
        with path.open("rb") as file:
            header = file.read(26)
        return header[24] if len(header) == 26 and header[25] != 3 else 8
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, 8)
        return max(bits) if isinstance(bits, tuple) else bits
    return 8


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    """Apply and reset the orientation; leave in ``info['exif']`` what stays true."""
    try:
        upright = ImageOps.exif_transpose(image)
        exif = image.getexif()
        for tag in [tag for tag in exif if tag in _LAYOUT_TAGS or tag == _ORIENTATION]:
            del exif[tag]
        if _EXIF_DIRECTORY in exif:
            for tag in _PIXEL_SIZE_TAGS:
                exif.get_ifd(_EXIF_DIRECTORY).pop(tag, None)
        data = exif.tobytes() if len(exif) else b""
    except Exception as error:
        notes.append(f"EXIF data is broken and dropped: {one_line(error)}")
        upright, data = image.copy(), b""
    upright.info.pop("exif", None)
    if data:
        upright.info["exif"] = data
    return upright


def _cmyk_to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile:
        try:
            import io

            from PIL import ImageCms

            rgb = ImageCms.profileToProfile(
                image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            if rgb is not None:
                return rgb
        except (ImportError, OSError, ValueError, ImageCms.PyCMSError):
            pass
    _warn("CMYK without a usable colour profile: colours are approximate")
    return image.convert("RGB")


def _fit(image: Image.Image, format: str) -> Image.Image:
    """Convert to a mode that ``format`` holds, and say what is lost."""
    if image.mode == "I;16" and format not in _DEEP_GREY_FORMATS:
        _warn(f"{format} does not hold 16-bit grey: written as 8-bit")
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("LA", "RGBA") and format not in _ALPHA_FORMATS:
        _warn(f"{format} does not hold transparency: placed on white")
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, rgba).convert("L" if image.mode == "LA" else "RGB")
    if image.mode in ("L", "LA") and format not in _GREY_FORMATS:
        return image.convert("RGB" if image.mode == "L" else "RGBA")
    if image.mode == "LA" and format == "BMP":
        return image.convert("RGBA")
    return image


def _warn(text: str) -> None:
    warnings.warn(text, PictureWarning, stacklevel=3)
