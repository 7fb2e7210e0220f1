"""Params of convolution kernels from torch tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from .calls import dtype_name, module


def dtype(m: ModuleType, type: torch.dtype) -> object:
    """The kernels' name of a type."""
    return getattr(m.DType, str(type).removeprefix("torch."))


def conv_tensor(tensor: Tensor | None, m: ModuleType | None = None) -> object:
    """A ConvTensor: any strides."""
    m = m or module()
    result = m.ConvTensor()
    if tensor is not None:
        result.data = tensor.data_ptr()
        result.type = getattr(m.DType, dtype_name(tensor))
        result.stride = list(tensor.stride())
    return result


def conv_shape(
    input_size: tuple[int, ...],
    weight_size: tuple[int, ...],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    m: ModuleType | None = None,
) -> object:
    """A ConvShape for an input [B, C, H, W] and kernels [..., O, I/g, kh, kw]; padding is top,
    bottom, left, right."""
    m = m or module()
    s = m.ConvShape()
    s.batch, s.in_channels, s.in_height, s.in_width = input_size
    s.out_channels, _, s.kernel_h, s.kernel_w = weight_size[-4:]
    s.groups = groups
    s.stride_h, s.stride_w = stride
    s.dilation_h, s.dilation_w = dilation
    s.pad_top, s.pad_left = padding[0], padding[2]
    extents = zip(
        (s.in_height, s.in_width),
        (padding[0] + padding[1], padding[2] + padding[3]),
        (s.kernel_h, s.kernel_w),
        stride,
        dilation,
        strict=True,
    )
    s.out_height, s.out_width = (
        (size + pads - d * (kernel - 1) - 1) // step + 1 for size, pads, kernel, step, d in extents
    )
    return s


def conv_bias(
    bias: Tensor | None, routing: Tensor | None = None, m: ModuleType | None = None
) -> object:
    """A ConvBias: bias [K, O] with routing [B, K], or [B, O]."""
    m = m or module()
    p = m.ConvBias()
    if bias is not None:
        assert bias.is_contiguous()
        p.bias, p.bias_type = bias.data_ptr(), dtype(m, bias.dtype)
        if routing is not None:
            assert routing.is_contiguous()
            p.routing, p.routing_type = routing.data_ptr(), dtype(m, routing.dtype)
            p.experts = routing.shape[1]
    return p


def conv_epilogue(
    bias: Tensor | None = None,
    routing: Tensor | None = None,
    upscale: int = 1,
    negative_slope: float | None = None,
    residual: Tensor | None = None,
    residual_scale: float = 1.0,
    mask: Tensor | None = None,
    m: ModuleType | None = None,
) -> object:
    """A ConvEpilogue."""
    m = m or module()
    e = m.ConvEpilogue()
    e.bias = conv_bias(bias, routing, m)
    e.upscale = upscale
    e.activation = negative_slope is not None
    e.negative_slope = negative_slope or 0.0
    e.residual = conv_tensor(residual, m)
    e.residual_scale = residual_scale
    if mask is not None:
        e.mask = mask.data_ptr()
    return e


@contextmanager
def guarded_workspace(size: int) -> Iterator[int]:
    """The address of `size` bytes of NaN, all of which must be written, and none behind them."""
    guard = 64
    workspace = torch.full((size + guard,), 0xFF, dtype=torch.uint8)
    workspace[size:] = 0xA5
    yield workspace.data_ptr() if size else 0
    assert (workspace[size:] == 0xA5).all(), "the kernel wrote beyond its workspace"
    used = workspace[:size].view(-1, 4) != 0xFF
    assert used.any(dim=1).all(), "a part of the workspace was not used"
