"""Pictures as arrays and tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from .pictures import Picture


def lr_of(color: np.ndarray) -> Tensor:
    """Return uint8 or uint16 [H, W, 3] or [H, W] as float32 [1, 3, H, W], 0..1."""
    peak = float(np.iinfo(color.dtype).max)
    # PyTorch warns of arrays that it must not write to, such as those of Pillow.
    pixels = torch.from_numpy(np.require(color, requirements=["C", "W"]))
    lr = pixels.to(torch.float32).div_(peak).unsqueeze(0)  # its format is channels_last already
    return lr.unsqueeze(1).expand(-1, 3, -1, -1) if color.ndim == 2 else lr.permute(0, 3, 1, 2)


def picture_of(array: np.ndarray) -> Picture:
    """Return the picture in an array [H, W] or [H, W, C], uint8 or uint16, of 1 to 4 channels.

    Raises:
        TypeError, ValueError: the array is of another type or shape.
    """
    from .pictures import Picture

    if array.dtype.kind == "u":
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"Upscaler: image: expected a uint8 or uint16 array, got {array.dtype}")
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 2, 3, 4) or 0 in array.shape:
        raise ValueError(
            "Upscaler: image: expected [H, W] or [H, W, C] with 1 to 4 channels, none of them 0, "
            f"got {list(array.shape)}"
        )
    layers = array.reshape(*array.shape[:2], channels)
    color = layers[:, :, 0] if channels < 3 else layers[:, :, :3]
    return Picture(color, layers[:, :, -1] if channels in (2, 4) else None)


def array_of(picture: Picture, like: np.ndarray) -> np.ndarray:
    """Return a picture as an array with the dimensions and channels of ``like``."""
    height, width = picture.color.shape[:2]
    parts = [picture.color.reshape(height, width, -1)]
    if picture.alpha is not None:
        parts.append(picture.alpha[:, :, None])
    result = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
    return result.reshape(height, width, *like.shape[2:])
