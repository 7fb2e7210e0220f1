"""A CUDA kernel with inputs to try it on: for a device, the emulation and float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Case = tuple[Any, ...]


@dataclass(frozen=True)
class Kernel:
    """What is run and compared for one launcher of csrc/cuda."""

    launcher: str
    # Arguments of `inputs`; the small ones are for tools that slow a kernel down a hundred times.
    cases: list[Case]
    small: list[Case]
    # Tensors in CPU memory, the same on every call.
    inputs: Callable[..., Tensors]
    device: Callable[[Tensors], Tensors]
    # The outputs in float64, and how far off an element may be by the arithmetic.
    reference: Callable[[Tensors], tuple[Tensors, Tensors]]
    emulated: Callable[[Tensors], Tensors]
    # Whether device and emulation do the same operations in the same order: fused multiply-adds
    # that the source names, sums in an order that it fixes, conversions that round to nearest.
    # Sums inside mma instructions are not among them.
    same_bits: bool


def errors(kernel: Kernel, inputs: Tensors, outputs: Tensors) -> dict[str, float]:
    """For each output its largest error against float64 in units of the bound."""
    expected, bounds = kernel.reference(inputs)
    assert outputs.keys() == expected.keys()
    result = {}
    for name, value in expected.items():
        assert outputs[name].shape == value.shape, (name, outputs[name].shape, value.shape)
        # Where the bound is 0 only the value itself will do; NaN counts as infinitely wrong.
        excess = (outputs[name].double().cpu() - value).abs() / (bounds[name] + 1e-300)
        result[name] = excess.nan_to_num(math.inf).max().item() if value.numel() else 0.0
    return result


def bound_of_sums(magnitude: Tensor, n_roundings: int, types: set[torch.dtype]) -> Tensor:
    """How far sums are off that round so often: one unit of fp32 (fp64) each.

    ``magnitude`` is the sum of the absolute products.
    """
    unit = 2.0**-53 if torch.float64 in types else 2.0**-24
    return (n_roundings + 1) * unit * magnitude * (1 + 1e-6)


def with_rounding(bound: Tensor, expected: Tensor, dtype: torch.dtype) -> Tensor:
    """The bound after the result was rounded to ``dtype``."""
    info = torch.finfo(dtype)
    return bound + (expected.abs() + bound) * info.eps / 2 + info.smallest_normal * info.eps / 2


def random(generator: torch.Generator, *shape: int, dtype: torch.dtype, offset: int) -> Tensor:
    memory = torch.empty(math.prod(shape) + offset, dtype=dtype)
    values = torch.randn(shape, dtype=torch.float64, generator=generator)
    return memory[offset:].view(shape).copy_(values)


def on_device(tensor: Tensor) -> Tensor:
    """A copy on the device, as far from an aligned address as the tensor itself."""
    offset = tensor.storage_offset()
    memory = torch.empty(tensor.numel() + offset, dtype=tensor.dtype, device="cuda")
    return memory[offset:].view(tensor.shape).copy_(tensor)
