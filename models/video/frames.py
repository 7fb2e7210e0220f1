"""Frames of PyAV to planes of samples and back, and upright."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from .errors import import_av
from .layout import Layout


class Orientation(NamedTuple):
    """How stored pixels become upright ones: first transposed, then mirrored."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    def apply(self, images: Tensor) -> Tensor:
        """Return images [..., H, W] upright."""
        if self.transpose:
            images = images.transpose(-1, -2)
        dims = [dim for dim, mirror in ((-1, self.mirror_x), (-2, self.mirror_y)) if mirror]
        return images.flip(dims) if dims else images


def orientation_of(frame: Any) -> tuple[Orientation, bool]:
    """Read the display matrix of a frame.

    Returns:
        The orientation, and whether the matrix is of multiples of a quarter turn, as those of
        cameras are; of others the nearest is meant.
    """
    try:
        data = bytes(frame.side_data["DISPLAYMATRIX"])
    except KeyError:
        return Orientation(), True
    a, b, _, c, d = np.frombuffer(data, np.int32, 9)[:5].astype(float)
    transpose = abs(b) + abs(c) > abs(a) + abs(d)
    large, small = ((b, c), (a, d)) if transpose else ((a, d), (b, c))
    exact = max(map(abs, small)) <= 0.01 * min(map(abs, large))
    # Column x and row y are shown at (a x + c y, b x + d y).
    shown_x, shown_y = (c, b) if transpose else (a, d)
    return Orientation(transpose, bool(shown_x < 0), bool(shown_y < 0)), bool(exact)


def read_planes(frame: Any, layout: Layout, size: tuple[int, int]) -> list[np.ndarray]:
    """Copy the samples of a frame.

    Args:
        frame: an `av.VideoFrame` of any pixel format.
        layout: what to read; packed formats are taken apart without loss.
        size: (width, height) to read; frames of other sizes are scaled to it.

    Returns:
        Planes [h, w], uint8 or uint16.
    """
    resized = {} if (frame.width, frame.height) == size else dict(zip(("width", "height"), size))  # noqa: B905
    # yuvj is yuv of full range, by an old name.
    same = frame.format.name.replace("yuvj", "yuv") == layout.name
    if resized or not same or any(plane.line_size < 0 for plane in frame.planes):
        frame = frame.reformat(format=layout.name, **resized)
    kind = np.dtype(np.uint8 if layout.depth == 8 else "<u2")
    planes = []
    for plane, (width, height) in zip(frame.planes, layout.plane_sizes(*size), strict=True):
        rows = np.frombuffer(plane, kind).reshape(-1, plane.line_size // kind.itemsize)
        planes.append(rows[:height, :width].astype(kind.newbyteorder("="), copy=True))
    return planes


def make_frame(planes: list[np.ndarray], layout: Layout, pixel_format: str) -> Any:
    """Return a frame of ``pixel_format`` that holds the samples of ``planes``."""
    av = import_av()
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, layout.name)
    kind = np.dtype(np.uint8 if layout.depth == 8 else "<u2")
    for plane, samples in zip(frame.planes, planes, strict=True):
        rows = np.frombuffer(plane, kind).reshape(-1, plane.line_size // kind.itemsize)
        rows[: samples.shape[0], : samples.shape[1]] = samples
    return frame if pixel_format == layout.name else frame.reformat(format=pixel_format)
