"""Opacity: colours for what is invisible, so that nothing bleeds, and enlarging."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .depth import bands


def fill_transparent(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Give invisible pixels the colour of their visible neighbours.

    What the colour of invisible pixels is says nothing about the picture, often it is black or
    white, and it bleeds into what is visible wherever neighbours are mixed. Holes of any size are
    filled smoothly by push-pull over a pyramid, weighted by opacity (Gortler et al., The Lumigraph,
    SIGGRAPH 1996), in time and memory proportional to the number of pixels.

    Args:
        color: uint8 or uint16, [H, W] or [H, W, 3].
        alpha: opacity [H, W] of the same dtype.

    Returns:
        Colours of the same shape and dtype; those of pixels with any opacity are unchanged, and
        ``color`` itself is returned where none or all are invisible.
    """
    invisible = alpha == 0
    if not invisible.any() or invisible.all():
        return color
    pyramid = [_halved(color, alpha)]
    while max(pyramid[-1].shape[:2]) > 1:
        pyramid.append(_reduce(pyramid[-1]))
    filled: np.ndarray | None = None
    while pyramid:
        layer = pyramid.pop()
        total = layer[..., -1:]
        mean = layer[..., :-1] / np.maximum(total, np.float32(1e-12))
        if filled is not None:
            weight = np.minimum(total, 1)
            coarser = _enlarge(filled, 0, layer.shape[0], layer.shape[1])
            mean = mean * weight + coarser * (1 - weight)
        filled = mean
    result = color.copy()
    peak = np.iinfo(color.dtype).max
    for rows in bands(color):
        holes = invisible[rows]
        if holes.any():
            smooth = _enlarge(filled, rows.start, rows.stop, color.shape[1])
            values = np.clip(np.rint(smooth[holes]), 0, peak).astype(color.dtype)
            result[rows][holes] = values if color.ndim == 3 else values[:, 0]
    return result


def enlarge_alpha(alpha: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarge opacity by Lanczos's method, clamped to its range.

    Args:
        alpha: uint8 or uint16 [H, W].
        size: width and height of the result.

    Returns:
        Opacity of ``size``, of the same dtype; what is opaque all over stays so.
    """
    width, height = size
    peak = np.iinfo(alpha.dtype).max
    low = int(alpha.min())
    if low == int(alpha.max()):
        return np.full((height, width), low, alpha.dtype)
    if alpha.dtype == np.uint8:
        image = Image.fromarray(np.ascontiguousarray(alpha))
        return np.asarray(image.resize(size, Image.Resampling.LANCZOS))
    image = Image.fromarray(alpha.astype(np.float32))
    result = np.empty((height, width), alpha.dtype)
    step = image.height / height
    for rows in bands(result):  # Pillow's filter sees beyond the box, so that bands show no seams
        box = (0, rows.start * step, image.width, min(rows.stop * step, image.height))
        band = image.resize((width, rows.stop - rows.start), Image.Resampling.LANCZOS, box=box)
        result[rows] = np.clip(np.rint(np.asarray(band)), 0, peak)
    return result


def _halved(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return the first level: colour times weight, and weight, summed over 2x2 pixels."""
    channels = 1 if color.ndim == 2 else 3
    height, width = alpha.shape
    result = np.empty(((height + 1) // 2, (width + 1) // 2, channels + 1), np.float32)
    peak = np.float32(np.iinfo(alpha.dtype).max)
    step = max(1, (1 << 18) // width)
    for first in range(0, len(result), step):
        rows = slice(2 * first, min(2 * (first + step), height))
        weight = (alpha[rows].astype(np.float32) / peak)[..., None]
        layer = np.concatenate(
            [color[rows].reshape(*weight.shape[:2], channels) * weight, weight], 2
        )
        result[first : first + step] = _reduce(layer)
    return result


def _reduce(layer: np.ndarray) -> np.ndarray:
    """Sum 2x2 blocks of [H, W, C]; odd sides count as followed by nothing."""
    height, width = layer.shape[:2]
    if height % 2 or width % 2:
        layer = np.pad(layer, ((0, height % 2), (0, width % 2), (0, 0)))
    rows = layer[0::2] + layer[1::2]
    return rows[:, 0::2] + rows[:, 1::2]


def _enlarge(layer: np.ndarray, first: int, last: int, width: int) -> np.ndarray:
    """Double [H, W, C] bilinearly; return rows ``first`` to ``last`` and ``width`` columns."""

    def mix(start: int, stop: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        index = np.arange(start, stop)
        near = index // 2
        far = np.clip(near + np.where(index % 2, 1, -1), 0, count - 1)
        return near, far

    near, far = mix(first, last, layer.shape[0])
    rows = np.float32(0.75) * layer[near] + np.float32(0.25) * layer[far]
    near, far = mix(0, width, layer.shape[1])
    return np.float32(0.75) * rows[:, near] + np.float32(0.25) * rows[:, far]
