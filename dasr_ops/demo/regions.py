"""What of a picture is shown, and where it is worth a closer look."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

DETAIL = (200, 150)
"""Largest width and height of a detail, in pixels of the input."""

SMALL = 160 * 160
"""Pixels of the input up to which the whole is as quick as a detail."""

PREVIEW = (800, 800)
"""Largest width and height of the input as it is shown."""

LONGEST_SHOWN = 2400
"""Longest side of what is shown; browsers give up at hundreds of millions of pixels."""


class Box(NamedTuple):
    """A rectangle of pixels; ``right`` and ``bottom`` are outside of it."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.right - self.left, self.bottom - self.top

    def grown(self, margin: int, size: tuple[int, int]) -> Box:
        """Return the box with a margin, as far as a picture of ``size`` goes."""
        return Box(
            max(self.left - margin, 0),
            max(self.top - margin, 0),
            min(self.right + margin, size[0]),
            min(self.bottom + margin, size[1]),
        )

    def moved(self, x: int, y: int) -> Box:
        """Return the box moved to the right and down."""
        return Box(self.left + x, self.top + y, self.right + x, self.bottom + y)

    def scaled(self, scale: int) -> Box:
        """Return the box in a picture enlarged by ``scale``."""
        return Box(*(value * scale for value in self))


def detail_around(center: tuple[int, int], size: tuple[int, int]) -> Box:
    """Return the detail around a point (x, y), moved into a picture of ``size``."""
    sides = []
    for point, length, longest in zip(center, size, DETAIL, strict=True):
        side = min(length, longest)
        start = min(max(point - side // 2, 0), length - side)
        sides.append((start, start + side))
    (left, right), (top, bottom) = sides
    return Box(left, top, right, bottom)


def busiest_point(image: Image.Image) -> tuple[int, int]:
    """Return the centre (x, y) of the detail of `DETAIL` in which the most happens.

    What counts is the mean of the absolute differences of neighbouring grey values. It is taken
    from a reduced picture, so that noise counts less than structure.
    """
    width, height = image.size
    factor = max(1, max(image.size) // 400)
    grey = image.convert("L").reduce(factor) if factor > 1 else image.convert("L")
    values = np.asarray(grey, np.float32)
    busy = np.zeros(values.shape, np.float64)
    busy[:, 1:] += np.abs(np.diff(values, axis=1))
    busy[1:] += np.abs(np.diff(values, axis=0))
    sums = np.pad(busy.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    x = min(max(DETAIL[0] // factor, 1), busy.shape[1])
    y = min(max(DETAIL[1] // factor, 1), busy.shape[0])
    totals = sums[y:, x:] - sums[:-y, x:] - sums[y:, :-x] + sums[:-y, :-x]
    top, left = np.unravel_index(int(totals.argmax()), totals.shape)
    return (
        min(int(left * factor + x * factor / 2), width - 1),
        min(int(top * factor + y * factor / 2), height - 1),
    )


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size in which a picture of ``size`` is shown."""
    factor = min(1.0, LONGEST_SHOWN / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def enlarged(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> Image.Image:
    """Bring a picture, or the part of it in ``box``, to ``size`` by bicubic interpolation."""
    return image.resize(size, Image.Resampling.BICUBIC, box=box)


def framed(preview: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """Draw the outline of ``box``, in pixels of a picture of ``size``, into its preview."""
    image = preview.convert("RGBA" if "A" in preview.mode else "RGB")
    image.info = preview.info
    x, y = image.width / size[0], image.height / size[1]
    outline = (box.left * x, box.top * y, box.right * x - 1, box.bottom * y - 1)
    width = max(2, round(max(image.size) / 250))
    draw = ImageDraw.Draw(image)
    draw.rectangle(outline, outline="black", width=width * 2)
    draw.rectangle(
        tuple(
            value + sign * width // 2 for value, sign in zip(outline, (1, 1, -1, -1), strict=True)
        ),
        outline="white",
        width=width,
    )
    return image
