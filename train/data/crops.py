"""Squares of pictures, and where a patch lies after they were mirrored or turned."""

from __future__ import annotations

import numpy as np

CANDIDATES = 8
"""Crops tried for one patch before the most detailed one is taken."""

Corner = tuple[int, int]


def cut(picture: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    """Return [size, size, C] of a picture [H, W, C]; beyond its borders it is reflected.

    The pixel at the border is not repeated (reflection 101). `top` and `left` may be negative.
    """
    height, width = picture.shape[:2]
    if min(top, left) >= 0 and top + size <= height and left + size <= width:
        return picture[top : top + size, left : left + size]
    rows, columns = _reflected(top, size, height), _reflected(left, size, width)
    return picture[rows[:, None], columns]


def mirror(square: np.ndarray, corner: Corner, span: int) -> tuple[np.ndarray, Corner]:
    """Mirror a square left to right, and the corner (top, left) of a patch in it with it.

    Args:
        square: [S, S, C].
        corner: of the patch, 0..span each, in any unit.
        span: how far the patch can be moved, side of the square minus side of the patch.
    """
    return square[:, ::-1], (corner[0], span - corner[1])


def quarter_turn(square: np.ndarray, corner: Corner, span: int) -> tuple[np.ndarray, Corner]:
    """Turn a square by 90 degrees counterclockwise; arguments as for `mirror`."""
    return np.rot90(square), (span - corner[1], corner[0])


def _reflected(start: int, count: int, length: int) -> np.ndarray:
    period = max(1, 2 * (length - 1))
    index = np.arange(start, start + count) % period
    return np.minimum(index, period - index)
