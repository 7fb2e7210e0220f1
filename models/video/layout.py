"""Pixel formats: the planar ones that we compute with, and how others map to them."""

from __future__ import annotations

from typing import Any, NamedTuple

from .errors import VideoError, import_av

_DEPTHS = (8, 9, 10, 12, 14, 16)
_CHROMA = {(0, 0): "444", (1, 0): "422", (1, 1): "420", (0, 1): "440", (2, 0): "411", (2, 2): "410"}


class Layout(NamedTuple):
    """A planar pixel format: what is in the planes, and how deep."""

    model: str
    """``yuv``, ``gray`` or ``rgb``; the planes of ``rgb`` are G, B, R."""
    depth: int
    """Bits of a sample; above 8 in 16-bit words of the machine's order."""
    shift_x: int = 0
    """Chroma has 1 / 2 ** shift_x of the columns of luma."""
    shift_y: int = 0
    """The same of the rows."""
    alpha: bool = False
    """Whether opacity is the last plane."""

    @property
    def name(self) -> str:
        """FFmpeg's name."""
        deep = "" if self.depth == 8 else f"{self.depth}le"
        if self.model == "gray":
            return f"gray{deep}"
        alpha = "a" if self.alpha else ""
        if self.model == "rgb":
            return f"gbr{alpha}p{deep}"
        return f"yuv{alpha}{_CHROMA[self.shift_x, self.shift_y]}p{deep}"

    @property
    def peak(self) -> int:
        """The largest sample."""
        return 2**self.depth - 1

    def plane_sizes(self, width: int, height: int) -> list[tuple[int, int]]:
        """Return width and height of each plane of a frame."""
        full = (width, height)
        part = (-(-width >> self.shift_x), -(-height >> self.shift_y))
        colors = {"gray": [full], "rgb": [full] * 3, "yuv": [full, part, part]}[self.model]
        return [*colors, full] if self.alpha else colors


def is_format(name: str) -> bool:
    """Return whether this build of FFmpeg knows the pixel format ``name``."""
    av = import_av()
    try:
        av.VideoFormat(name, 16, 16)
    except ValueError:
        return False
    return True


def layout_of(name: str) -> Layout:
    """Return the planar layout that holds all of a pixel format.

    Args:
        name: FFmpeg's name, of any format.

    Raises:
        VideoError: there is no such format.
    """
    av = import_av()
    try:
        pixels = av.VideoFormat(name, 64, 64)
    except ValueError:
        raise VideoError(f"pixel format: {name!r} is unknown to FFmpeg") from None
    parts: Any = pixels.components
    alpha = any(part.is_alpha for part in parts)
    bits = max((part.bits for part in parts), default=8)
    depth = next((depth for depth in _DEPTHS if depth >= bits), 16)
    chroma = [part for part in parts if part.is_chroma and not part.is_alpha]
    if name.startswith(("xyz", "bayer")):
        layout = Layout("rgb", 16)
    elif pixels.is_rgb or pixels.has_palette:
        layout = Layout("rgb", depth, alpha=alpha)
    elif len(parts) > 2 and chroma:
        shift_x = (64 // chroma[-1].width).bit_length() - 1
        shift_y = (64 // chroma[-1].height).bit_length() - 1
        layout = Layout("yuv", depth, shift_x, shift_y, alpha)
    elif len(parts) > 2:  # 4:4:4 says nothing of chroma in some versions
        layout = Layout("yuv", depth, alpha=alpha)
    else:
        layout = Layout("gray", depth)  # opacity of grey has no planar format
    return _existing(layout)


def _existing(layout: Layout) -> Layout:
    for depth in _DEPTHS:
        deeper = layout._replace(depth=depth)
        if depth >= layout.depth and is_format(deeper.name):
            return deeper
    # 4:4:4 exists in all depths, with opacity in 16 bits as well.
    return layout._replace(depth=16, shift_x=0, shift_y=0)
