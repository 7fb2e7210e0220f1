"""Arithmetic on whole pictures that needs little more memory than its result."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_BAND = 1 << 20  # values at a time


def bands(array: np.ndarray) -> Iterator[slice]:
    """Yield slices of rows that hold about a million values each."""
    rows = max(1, _BAND // max(1, array[0].size))
    for first in range(0, len(array), rows):
        yield slice(first, min(first + rows, len(array)))


def rescale(array: np.ndarray, peak: int, dtype: type[np.unsignedinteger]) -> np.ndarray:
    """Scale unsigned integers 0..``peak`` to the full range of ``dtype``, rounded.

    Args:
        array: unsigned integers of any shape, at least one-dimensional; larger ones are clipped.
        peak: less than 2**16.
        dtype: uint8 or uint16.
    """
    top = int(np.iinfo(dtype).max)
    if peak == top:
        return array.astype(dtype, copy=False)
    result = np.empty(array.shape, dtype)
    for rows in bands(array):
        values = np.minimum(array[rows], peak).astype(np.uint32)
        result[rows] = (values * top + peak // 2) // peak  # below 2**32
    return result


def to_8_bit(array: np.ndarray) -> np.ndarray:
    """Round uint16 to uint8; uint8 stays as it is."""
    return array if array.dtype == np.uint8 else rescale(array, 0xFFFF, np.uint8)


def unpremultiply(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Divide colours [H, W] or [H, W, 3] by opacity [H, W], of the same dtype; 0 stays 0."""
    peak = int(np.iinfo(color.dtype).max)
    result = np.empty_like(color)
    for rows in bands(color):
        opacity = alpha[rows].astype(np.uint32)
        if color.ndim == 3:
            opacity = opacity[..., None]
        divisor = np.maximum(opacity, 1)
        straight = (color[rows].astype(np.uint32) * peak + divisor // 2) // divisor
        result[rows] = np.where(opacity > 0, np.minimum(straight, peak), 0)
    return result


def place_on_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blend colours [H, W] or [H, W, 3] with white by opacity [H, W], of the same dtype."""
    peak = int(np.iinfo(color.dtype).max)
    result = np.empty_like(color)
    for rows in bands(color):
        opacity = alpha[rows].astype(np.uint64)
        if color.ndim == 3:
            opacity = opacity[..., None]
        blend = color[rows] * opacity + peak * (peak - opacity)
        result[rows] = (blend + peak // 2) // peak
    return result
