"""Calls the emulated kernels of csrc/cuda/conv_weight_grad.h and reduce_splits.h."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .calls import module
from .conv_calls import conv_shape, conv_tensor, dtype

Pair = tuple[int, int]


def conv_weight_grad(
    input: Tensor,
    grad: Tensor,
    weight_size: tuple[int, ...],
    stride: Pair = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    *,
    allow_tf32: bool = False,
    samples: tuple[int, int] | None = None,
) -> Tensor:
    """The parts [splits, n, O, I/g, kh, kw] of the kernels' gradient, of n samples from the first
    of ``samples`` (first, n) on."""
    m = module()
    first, count = samples or (0, len(input))
    p = m.ConvWeightGradParams()
    size = (count, *input.shape[1:])
    p.shape = conv_shape(size, weight_size, stride, padding, dilation, groups)
    p.allow_tf32 = allow_tf32
    p.grad, p.input = conv_tensor(grad), conv_tensor(input)
    p.splits = m.conv_weight_grad_splits(p.shape, dtype(m, input.dtype), allow_tf32)
    p.first_sample = first
    acc = torch.float64 if input.dtype == torch.float64 else torch.float32
    numel = p.splits * count * math.prod(weight_size)
    memory = torch.full((numel + 64,), math.nan, dtype=acc)
    memory[numel:] = -7
    p.partial = memory.data_ptr()
    m.conv_weight_grad(p)
    assert (memory[numel:] == -7).all(), "written beyond the end"
    assert not memory[:numel].isnan().any(), "not all of the parts were written"
    return memory[:numel].view(p.splits, count, *weight_size)


def reduce_splits(partial: Tensor, out: Tensor) -> None:
    """Fills `out` with the sum of `partial` over its first dimension."""
    m = module()
    p = m.ReduceSplitsParams()
    p.partial, p.partial_type = partial.data_ptr(), dtype(m, partial.dtype)
    p.splits, p.numel = len(partial), out.numel()
    p.out, p.out_type = out.data_ptr(), dtype(m, out.dtype)
    m.reduce_splits(p)
