"""Calls the emulated kernels of csrc/cuda/conv_epilogue_backward.h with torch tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from .calls import module
from .conv_calls import conv_tensor, dtype, guarded_workspace


def pack_mask(positive: Tensor) -> Tensor:
    """The bits of a dense bool tensor in the order of its memory, filled up to whole words."""
    flat = positive.as_strided((positive.numel(),), (1,))
    bits = torch.zeros((positive.numel() + 31) // 32 * 32, dtype=torch.uint8)
    bits[: flat.numel()] = flat
    return (bits.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1).to(torch.uint8)


def conv_epilogue_backward(
    grad_output: Tensor,
    grad: Tensor | None,
    grad_bias: Tensor | None,
    *,
    upscale: int = 1,
    residual_scale: float = 1.0,
    negative_slope: float | None = None,
    output: Tensor | None = None,
    mask: Tensor | None = None,
    grad_dtype: torch.dtype | None = None,
) -> int:
    """Fills grad [B, O, H', W'] (channels_last) and grad_bias [B, O]; returns the size of the
    workspace. `mask` are the bits of a tensor with the strides of `output`."""
    m = module()
    p = m.ConvEpilogueBackwardParams()
    p.batch, channels, height, width = grad_output.shape
    p.channels = channels * upscale**2
    p.height, p.width = height // upscale, width // upscale
    p.upscale, p.residual_scale = upscale, residual_scale
    p.grad_output = conv_tensor(grad_output)
    p.activation = negative_slope is not None
    p.negative_slope = negative_slope or 0.0
    p.output = conv_tensor(output)
    if mask is not None:
        p.mask = mask.data_ptr()
    if grad is not None:
        assert grad.permute(0, 2, 3, 1).is_contiguous()
        p.grad = grad.data_ptr()
        grad_dtype = grad.dtype
    p.grad_type = dtype(m, grad_dtype or grad_output.dtype)
    if grad_bias is not None:
        p.grad_bias = grad_bias.data_ptr()
    size = m.conv_epilogue_backward_workspace_size(p)
    with guarded_workspace(size) as p.workspace:
        m.conv_epilogue_backward(p)
    return size
