"""Tensors with guards around them, and bounds of the errors of sums."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .conv_gemm_calls import torch_memory

GUARD = 64
Guard = tuple[Tensor, int, int]


# Options of what follows a convolution, for the tests' check_forward; a residual is its layout and
# type (None: that of the input).
EPILOGUES: dict[str, dict[str, Any]] = {
    "bias": {"bias": True},
    "mixed bias": {"bias": True, "experts": 5},
    "relu": {"bias": True, "experts": 3, "slope": 0.0},
    "leaky": {"slope": 0.2},
    "negative slope": {"bias": True, "slope": -0.3, "mask": True},
    "residual": {"bias": True, "experts": 2, "residual": ("nhwc", None), "scale": 0.7},
    "narrow residual": {"residual": ("nhwc", torch.bfloat16)},
    "residual of another layout": {"residual": ("nchw", torch.float32), "scale": -1.5},
    "residual behind relu": {"slope": 0.0, "residual": ("nhwc", None), "mask": True},
    "shuffle": {"bias": True, "upscale": 2},
    "shuffle by 3": {"upscale": 3, "slope": 0.1},
    "shuffle, relu, residual": {
        "upscale": 2,
        "slope": 0.0,
        "residual": ("nhwc", None),
        "scale": 0.5,
        "mask": True,
        "bias": True,
        "experts": 4,
    },
}


def guarded(
    size: tuple[int, ...], format: str, dtype: torch.dtype, offset: int = 0
) -> tuple[Tensor, Guard]:
    """A NaN-filled tensor `offset` elements from an aligned address, and the memory around it."""
    numel = math.prod(size)
    memory = torch.full((numel + 2 * GUARD + offset,), -7.0, dtype=dtype)
    start = GUARD + offset
    inside = memory[start : start + numel].fill_(math.nan)
    tensor = inside.view(size)
    if len(size) == 4:
        tensor = inside.as_strided(size, torch_memory(size, format, dtype).stride())
    return tensor, (memory, start, numel)


def check_guards(guard: Guard) -> None:
    """Everything inside was written, and nothing outside."""
    memory, start, numel = guard
    assert (memory[:start] == -7).all() and (memory[start + numel :] == -7).all()
    assert not memory[start : start + numel].isnan().any(), "not all of the output was written"


def random(size: tuple[int, ...], format: str, dtype: torch.dtype, offset: int = 0) -> Tensor:
    """Normal numbers in memory of that format, `offset` elements from an aligned address."""
    tensor, _ = guarded(size, format, dtype, offset)
    return tensor.copy_(torch.randn(size, dtype=torch.float64))


def unit_of(dtype: torch.dtype) -> float:
    """The roundoff of sums over operands of this type."""
    return 2.0**-53 if dtype == torch.float64 else 2.0**-24


def bound_of_sum(
    magnitude: Tensor, n_products: int, dtype: torch.dtype, allow_tf32: bool = False
) -> Tensor:
    """How far a sum of products may be off whose absolute values add up to `magnitude`."""
    # The reference in float64 errs no less than a kernel that sums in float64.
    relative = (n_products + 2) * unit_of(dtype) * (2 if dtype == torch.float64 else 1)
    if allow_tf32 and dtype == torch.float32:
        relative += 2.0**-10 + 2.0**-22  # each operand by 2^-11
    return relative * magnitude


def rounded(bound: Tensor, expected: Tensor, dtype: torch.dtype) -> Tensor:
    """The bound after the result was rounded to `dtype`."""
    info = torch.finfo(dtype)
    return bound + (expected.abs() + bound) * info.eps / 2 + info.smallest_normal * info.eps


def compare(name: str, got: Tensor, expected: Tensor, bound: Tensor) -> None:
    """Each element lies within its bound."""
    error = (got.double() - expected).abs()
    assert got.shape == expected.shape
    assert (error <= bound).all(), f"{name}: {(error / bound).max():.3g} times the bound"
