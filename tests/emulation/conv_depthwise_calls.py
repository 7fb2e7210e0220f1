"""Calls the emulated convolutions of csrc/cuda/conv_depthwise.h with torch tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .calls import module
from .conv_calls import conv_epilogue, conv_shape, conv_tensor, dtype, guarded_workspace

Pair = tuple[int, int]


def conv_depthwise(
    source: Tensor,
    weight: Tensor,
    out: Tensor,
    input_size: tuple[int, ...],
    stride: Pair = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    *,
    transposed: bool = False,
    **epilogue: Any,
) -> None:
    """Fills `out` with the convolution of `source` by weight [B, O, 1, kh, kw], or (transposed)
    with the gradient of the input of size `input_size`, `source` being that of the sums."""
    assert weight.is_contiguous() and source.dtype == out.dtype
    m = module()
    p = m.ConvDepthwiseParams()
    size = tuple(weight.shape)
    p.shape = conv_shape(input_size, size, stride, padding, dilation, input_size[1])
    p.transposed = transposed
    p.source = conv_tensor(source)
    p.weight, p.weight_type = weight.data_ptr(), dtype(m, weight.dtype)
    p.epilogue = conv_epilogue(**epilogue)
    p.out, p.out_stride = out.data_ptr(), list(out.stride())
    m.conv_depthwise(p)


def conv_depthwise_weight(
    input: Tensor,
    grad: Tensor,
    grad_weight: Tensor,
    stride: Pair = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
) -> int:
    """Fills grad_weight [B, O, 1, kh, kw]; returns the size of the workspace."""
    assert grad_weight.is_contiguous()
    m = module()
    p = m.ConvDepthwiseWeightParams()
    size = tuple(grad_weight.shape)
    p.shape = conv_shape(tuple(input.shape), size, stride, padding, dilation, input.shape[1])
    p.input, p.grad = conv_tensor(input), conv_tensor(grad)
    p.grad_weight = grad_weight.data_ptr()
    bytes_used = m.conv_depthwise_weight_workspace_size(p)
    with guarded_workspace(bytes_used) as p.workspace:
        m.conv_depthwise_weight(p)
    return bytes_used
