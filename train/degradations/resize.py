"""Resizing one picture: area, bilinear, bicubic, with or without an antialiasing filter."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._checks import check_picture

# The order is that of the one-hot entries of the label vector.
RESIZE_MODES = ("area", "bilinear", "bicubic")


def resize(
    image: torch.Tensor, size: tuple[int, int], mode: str, antialias: bool = False
) -> torch.Tensor:
    """Resize one picture to `size`; its borders map to the borders of the result.

    Args:
        image: float32 / float64 [C, H, W].
        size: (height, width) of the result, each 1 or more.
        mode: one of `RESIZE_MODES`. "area" averages over pixel areas. The others sample at pixel
            centres, as cv2.resize and torch.nn.functional.interpolate do, so that shrinking
            aliases; that is part of the degradation.
        antialias: widen the filter when shrinking, as Pillow and MATLAB's imresize do (bicubic
            a = -0.5, weights renormalised at the borders as in Pillow). Has no meaning for "area".

    Returns:
        [C, height, width]. Bicubic may overshoot 0..1.

    Raises:
        TypeError, ValueError: bad picture, size or mode.
    """
    check_picture(image)
    if mode not in RESIZE_MODES:
        raise ValueError(f"mode: expected one of {RESIZE_MODES}, got {mode!r}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: expected (height, width), each 1 or more, got {size}")
    if mode == "area":
        return F.interpolate(image[None], size=size, mode="area")[0]
    return F.interpolate(
        image[None], size=size, mode=mode, align_corners=False, antialias=antialias
    )[0]


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Return the nearest whole size, at least 1x1, for a picture scaled by `scale` (> 0)."""
    if scale <= 0:
        raise ValueError(f"scale: expected a number above 0, got {scale}")
    return max(1, round(height * scale)), max(1, round(width * scale))
