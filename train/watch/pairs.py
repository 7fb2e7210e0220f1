"""Finding pictures, matching them by name, and reading them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dasr_ops.models._messages import one_line
from dasr_ops.models.pictures import PictureError

from .. import data
from ..data.pictures import picture_suffixes

_SHOWN = 8  # names in a message


class SizeMismatchError(PictureError):
    """An LR picture and its ground truth do not belong together."""


def is_picture(path: Path) -> bool:
    """Whether the name is that of a picture that Pillow reads, and not hidden."""
    return path.suffix.lower() in picture_suffixes() and not path.name.startswith(".")


def find_pictures(folder: Path, suffix: str = "") -> dict[str, Path]:
    """Find the pictures below a folder, hidden files and folders left out; or take a single one.

    Args:
        folder: searched recursively, through links too; or a picture.
        suffix: removed from the end of each name, see below; files without it keep theirs.

    Returns:
        Name -> file, in the order of the names: the path relative to ``folder`` with "/", without
        the file name's extension and ``suffix``.

    Raises:
        ValueError: neither a folder nor a picture, no picture in it, or two of one name.
    """
    if folder.is_file() and is_picture(folder):
        return {folder.stem.removesuffix(suffix) or folder.stem: folder}
    if not folder.is_dir():
        raise ValueError(f"expected a folder or a picture, got {folder}")
    found: dict[str, Path] = {}
    visited: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in visited else sorted(f for f in folders if f[0] != ".")
        if real in visited:
            continue
        visited.add(real)
        for file in sorted(files):
            path = Path(place) / file
            if not is_picture(path):
                continue
            stem = path.stem.removesuffix(suffix) or path.stem
            name = path.relative_to(folder).with_name(stem).as_posix()
            if name in found:
                raise ValueError(f"{found[name]} and {path} have one name: {name}")
            found[name] = path
    if not found:
        raise ValueError(f"expected a folder with pictures, found none in {folder}")
    return dict(sorted(found.items()))


def match(
    first: Mapping[str, Path], second: Mapping[str, Path], first_folder: Path, second_folder: Path
) -> list[str]:
    """Return the names that two folders share, provided that they share all of them.

    Raises:
        ValueError: pictures without partner, which are listed.
    """
    lonely = []
    for here, there, folder in ((first, second, second_folder), (second, first, first_folder)):
        missing = [here[name].as_posix() for name in here if name not in there]
        if missing:
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            lonely.append(f"without partner in {folder}: {', '.join(missing[:_SHOWN])}{more}")
    if lonely:
        raise ValueError("; ".join(lonely))
    return list(first)


def read_rgb(path: Path) -> Tensor:
    """Read a picture as uint8 [1, 3, H, W], as `data.read_rgb` does.

    Raises:
        PictureError: not a picture, or a damaged one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # several frames, 16-bit colour: the same on each run
            pixels = data.read_rgb(path)
    except OSError as error:
        raise PictureError(one_line(error)) from None
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]


def read_size(path: Path) -> tuple[int, int]:
    """Return (height, width) as `read_rgb` will have it, from the file's header alone.

    Raises:
        PictureError: not a picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                width, height = image.size
                turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except OSError as error:
        raise PictureError(error.strerror or "not a picture that can be read") from None
    except Exception as error:  # decoders raise what they like on broken files
        raise PictureError(f"broken: {' '.join(str(error).split())[:200]}") from None
    return (width, height) if turned else (height, width)


def shared_size(gt: tuple[int, int], lr: tuple[int, int], scale: int) -> tuple[int, int]:
    """Return the part of the ground truth, from its top left, that an LR picture shows.

    Args:
        gt: (height, width) of the ground truth.
        lr: that of the LR picture.
        scale: the magnification. Ground truth may have up to ``scale - 1`` pixels more than the LR
            picture magnified: datasets drop them before they shrink.

    Raises:
        SizeMismatchError: the sizes do not fit.
    """
    size = (lr[0] * scale, lr[1] * scale)
    if not all(0 <= whole - part < scale for whole, part in zip(gt, size, strict=True)):
        raise SizeMismatchError(
            f"{lr[1]}x{lr[0]} magnified by {scale} is {size[1]}x{size[0]}, "
            f"which does not fit its ground truth of {gt[1]}x{gt[0]}"
        )
    return size
