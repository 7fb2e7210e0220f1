"""Sizes of a convolution, and how the gradient of its input falls apart into convolutions."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from ..._arguments import ConvOptions, output_size

# Beyond, a column tile of the matrix product is full.
_MAX_DEPTHWISE_MULTIPLIER = 8


class ConvShape(NamedTuple):
    """Sizes of input, kernel and sums; per dimension as (vertical, horizontal)."""

    batch: int
    groups: int
    in_channels: int
    out_channels: int
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]  # top, left
    dilation: tuple[int, int]

    @property
    def group_in(self) -> int:
        """Input channels of a group."""
        return self.in_channels // self.groups

    @property
    def group_out(self) -> int:
        """Output channels of a group."""
        return self.out_channels // self.groups

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def pixels(self) -> int:
        """Positions of the sums in one sample."""
        return self.out_size[0] * self.out_size[1]

    @property
    def is_depthwise(self) -> bool:
        """Whether sums are formed directly, bound by memory."""
        return self.group_in == 1 and self.group_out <= _MAX_DEPTHWISE_MULTIPLIER


def conv_shape(input: Tensor, weight: Tensor, options: ConvOptions) -> ConvShape:
    """Return the sizes for ``weight`` [*, O, I/g, kh, kw]."""
    kernel = (weight.shape[3], weight.shape[4])
    top, bottom, left, right = options.padding
    stride, dilation = options.stride, options.dilation
    return ConvShape(
        batch=input.shape[0],
        groups=options.groups,
        in_channels=input.shape[1],
        out_channels=weight.shape[1],
        in_size=(input.shape[2], input.shape[3]),
        out_size=(
            output_size(input.shape[2], kernel[0], stride[0], top, bottom, dilation[0]),
            output_size(input.shape[3], kernel[1], stride[1], left, right, dilation[1]),
        ),
        kernel=kernel,
        stride=(stride[0], stride[1]),
        pad=(top, left),
        dilation=(dilation[0], dilation[1]),
    )


class Phase(NamedTuple):
    """Along one dimension: results ``first::every`` and the taps ``first_tap::tap_step`` they use.

    Result q of the phase reads its source at ``q * stride + offset + a * step`` for its tap a.
    """

    first: int
    every: int
    first_tap: int
    tap_step: int
    stride: int
    offset: int
    step: int


def forward_phase(shape: ConvShape, d: int) -> Phase:
    """Return the one phase that a convolution has along dimension ``d``."""
    return Phase(0, 1, 0, 1, shape.stride[d], -shape.pad[d], shape.dilation[d])


def transposed_phases(shape: ConvShape, d: int) -> list[Phase]:
    """Return the phases of the input's gradient along ``d``; their source are the sums' gradients.

    Tap k of output o reads input h = o * stride - pad + k * dilation. For h = first + stride * q
    only every tap_step-th tap comes from a whole o, and these are evenly spaced: each phase is a
    convolution of stride 1. Phases without taps, whose gradient is 0, are left out.
    """
    stride, pad, dilation = shape.stride[d], shape.pad[d], shape.dilation[d]
    tap_step = stride // math.gcd(stride, dilation)
    phases = []
    for first_tap in range(min(tap_step, shape.kernel[d])):
        first = (first_tap * dilation - pad) % stride
        if first < shape.in_size[d]:
            offset = (first + pad - first_tap * dilation) // stride
            step = -(tap_step * dilation) // stride
            phases.append(Phase(first, stride, first_tap, tap_step, 1, offset, step))
    return phases
