"""Samples of video to RGB and back, in float32, with the right matrix, range and chroma position.

Matrices and ranges: Rec. ITU-T H.273 (07/2021), section 8.3.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .layout import Layout

BT709, UNSPECIFIED, BT601, BT2020 = 1, 2, 6, 9
FULL_RANGE = 2
PQ, HLG = 16, 18

_LUMA_WEIGHTS = {  # Kr, Kb
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}


class Colors(NamedTuple):
    """What samples mean. The numbers are those of H.273."""

    matrix: int
    """How Y'CbCr is made of R'G'B'; never unspecified."""
    full: bool
    """Whether samples use their full range."""
    centered: bool = False
    """Whether chroma lies between the luma columns (JPEG, MPEG-1) instead of on every other."""

    @property
    def known(self) -> bool:
        """Whether the matrix is one that we compute; others are treated like Rec. 709."""
        return self.matrix in _LUMA_WEIGHTS and self.matrix != 10


def usual_matrix(width: int, height: int) -> int:
    """Return the matrix that players assume where a stream says nothing."""
    return BT709 if width >= 1280 or height > 576 else BT601


def to_tensor(plane: np.ndarray, device: torch.device | str) -> Tensor:
    """Return samples, uint8 or uint16, as float32 on ``device``."""
    if plane.dtype == np.uint8:
        return torch.from_numpy(plane).to(device).float()
    # Few operations know torch.uint16.
    words = torch.from_numpy(plane.view(np.int16)).to(device)
    return words.to(torch.int32).bitwise_and_(0xFFFF).float()


def to_plane(values: Tensor, peak: int) -> np.ndarray:
    """Round samples to uint8, or uint16 where ``peak`` is above 255."""
    whole = values.clamp(0, peak).round_()
    if peak <= 255:
        return whole.to(torch.uint8).cpu().numpy()
    return whole.to(torch.int32).to(torch.int16).cpu().numpy().view(np.uint16)


def to_rgb(
    planes: list[np.ndarray], layout: Layout, colors: Colors, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the colours of a frame.

    Args:
        planes: samples [h, w], uint8 or uint16, as ``layout`` says.
        layout: what they are.
        colors: what they mean.
        device: where to compute.

    Returns:
        [1, 3, H, W], float32, clamped to 0..1.
    """
    samples = [to_tensor(plane, device) for plane in planes]
    if layout.model == "rgb":
        green, blue, red = samples[:3]
        return torch.stack((red, green, blue)).div_(layout.peak).clamp_(0, 1)[None]
    black, white, middle, swing = _range(layout.depth, colors.full)
    luma = (samples[0] - black) / white
    if layout.model == "gray":
        return luma.clamp_(0, 1).expand(1, 3, -1, -1)
    size = luma.shape
    cb, cr = (
        (_enlarge(plane, size, layout, colors.centered) - middle) / swing for plane in samples[1:3]
    )
    kr, kb = _LUMA_WEIGHTS.get(colors.matrix, _LUMA_WEIGHTS[BT709])
    kg = 1 - kr - kb
    red = luma + 2 * (1 - kr) * cr
    blue = luma + 2 * (1 - kb) * cb
    green = luma - (2 * kr * (1 - kr) / kg) * cr - (2 * kb * (1 - kb) / kg) * cb
    return torch.stack((red, green, blue)).clamp_(0, 1)[None]


def from_rgb(rgb: Tensor, layout: Layout, colors: Colors) -> list[np.ndarray]:
    """Return the samples of a frame, without those of opacity; the reverse of `to_rgb`.

    Args:
        rgb: [1, 3, H, W], float32, 0..1.
        layout: of the samples.
        colors: their meaning; chroma is put where it says.

    Returns:
        Planes [h, w], uint8, or uint16 where the layout is deeper than 8 bits.
    """
    red, green, blue = rgb[0].float()
    if layout.model == "rgb":
        return [to_plane(plane * layout.peak, layout.peak) for plane in (green, blue, red)]
    kr, kb = _LUMA_WEIGHTS.get(colors.matrix, _LUMA_WEIGHTS[BT709])
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    black, white, middle, swing = _range(layout.depth, colors.full)
    planes = [to_plane(luma * white + black, layout.peak)]
    if layout.model == "yuv":
        for color, weight in ((blue, kb), (red, kr)):
            chroma = (color - luma) / (2 * (1 - weight))
            chroma = _reduce(chroma, layout, colors.centered)
            planes.append(to_plane(chroma * swing + middle, layout.peak))
    return planes


def _range(depth: int, full: bool) -> tuple[float, float, float, float]:
    """Return the sample of black, white above it, the sample of no colour, the span of chroma."""
    middle = float(2 ** (depth - 1))
    if full:
        return 0.0, float(2**depth - 1), middle, float(2**depth - 1)
    unit = 2 ** (depth - 8)
    return 16.0 * unit, 219.0 * unit, middle, 224.0 * unit


def _enlarge(chroma: Tensor, size: torch.Size, layout: Layout, centered: bool) -> Tensor:
    """Bring chroma to the size of luma by linear interpolation.

    That is what JPEG decoders do ("fancy upsampling"), and so what the network saw in training.
    """
    chroma = _interpolate(chroma, 0, size[0], 1 << layout.shift_y, True)
    return _interpolate(chroma, 1, size[1], 1 << layout.shift_x, centered)


def _interpolate(values: Tensor, dim: int, size: int, factor: int, centered: bool) -> Tensor:
    if factor == 1:
        return values
    at = torch.arange(size, device=values.device, dtype=torch.float32)
    if centered:
        at = at - (factor - 1) / 2
    at = (at / factor).clamp_(0, values.shape[dim] - 1)
    first = at.floor().long()
    second = (first + 1).clamp_(max=values.shape[dim] - 1)
    part = at - first
    if dim == 0:
        part = part[:, None]
    left = values.index_select(dim, first)
    return left + (values.index_select(dim, second) - left) * part


def _reduce(chroma: Tensor, layout: Layout, centered: bool) -> Tensor:
    """Bring chroma from the size of luma to its own by averaging around each position."""
    chroma = _average(chroma, 0, 1 << layout.shift_y, True)
    return _average(chroma, 1, 1 << layout.shift_x, centered)


def _average(values: Tensor, dim: int, factor: int, centered: bool) -> Tensor:
    if factor == 1:
        return values
    size = values.shape[dim]
    count = -(-size // factor)
    if centered:
        weights = {offset: 1 / factor for offset in range(factor)}
    else:  # a triangle around every other column
        weights = {
            offset: (factor - abs(offset)) / factor**2 for offset in range(1 - factor, factor)
        }
    result = None
    for offset, weight in weights.items():
        at = torch.arange(count, device=values.device) * factor + offset
        term = values.index_select(dim, at.clamp_(0, size - 1)) * weight
        result = term if result is None else result + term
    assert result is not None
    return result
