"""Calls the emulated convolutions of csrc/cuda/conv_gemm.h with torch tensors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .calls import module
from .conv_calls import conv_epilogue, conv_shape, conv_tensor, dtype


def pack(weight: Tensor, groups: int, transposed: bool) -> Tensor:
    """[B, O, I/g, kh, kw] -> [B, kh * kw, n, k], rows padded with zeros to whole 16 bytes."""
    b, o, i, kh, kw = weight.shape
    if transposed:
        rows = weight.view(b, groups, o // groups, i, kh * kw).permute(0, 4, 1, 3, 2)
        rows = rows.reshape(b, kh * kw, groups * i, o // groups)
    else:
        rows = weight.view(b, o, i, kh * kw).permute(0, 3, 1, 2)
    vector = 16 // weight.element_size()
    return F.pad(rows, (0, -rows.shape[3] % vector)).contiguous()


def conv_gemm(
    source: Tensor,
    weight: Tensor,
    out: Tensor,
    input_size: tuple[int, ...],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    *,
    transposed: bool = False,
    allow_tf32: bool = False,
    multiprocessors: int = 132,
    first_sample: int = 0,
    launcher: str = "conv_gemm",
    **epilogue: Any,
) -> bool | None:
    """Fills `out` with the convolution of `source` by weight [B, O, I/g, kh, kw], or (transposed)
    with the gradient of the input of size `input_size`, `source` being that of the sums.
    `launcher` may also be conv_wgmma or what says whether that serves; `epilogue` is for
    `conv_epilogue`."""
    m = module()
    p = m.ConvGemmParams()
    p.shape = conv_shape(input_size, tuple(weight.shape), stride, padding, dilation, groups)
    p.transposed, p.allow_tf32 = transposed, allow_tf32
    p.source = conv_tensor(source)
    flat = m.conv_gemm_is_flat(p.shape, transposed, dtype(m, source.dtype))
    kernels = weight.contiguous() if flat else pack(weight.contiguous(), groups, transposed)
    packed = m.PackedKernels()
    packed.data, packed.type = kernels.data_ptr(), dtype(m, kernels.dtype)
    packed.batch_stride = kernels[0].numel() if len(kernels) else 0
    if not flat:
        packed.tap_stride, packed.row_stride = kernels.stride()[1:3]
    p.kernels = packed
    p.epilogue = conv_epilogue(**epilogue)
    p.out, p.out_stride = out.data_ptr(), list(out.stride())
    p.multiprocessors, p.first_sample = multiprocessors, first_sample
    return getattr(m, launcher)(p)


def conv_reference(
    input: Tensor,
    weight: Tensor,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """The convolution of each sample with its own kernel, in float64."""
    top, bottom, left, right = padding
    # Not F.pad, which refuses to crop: a gradient's "padding" may be negative.
    padded = F.pad(input.double(), (left, right, top, bottom))
    b = input.shape[0]
    if b == 0:
        out = F.conv2d(padded, weight.double().sum(0), None, stride, 0, dilation, groups)
        return out
    folded = padded.reshape(1, -1, *padded.shape[2:])
    out = F.conv2d(folded, weight.double().flatten(0, 1), None, stride, 0, dilation, b * groups)
    return out.view(b, weight.shape[1], *out.shape[2:])


def torch_memory(size: tuple[int, ...], format: str, dtype: torch.dtype) -> Tensor:
    """An uninitialised [B, C, H, W] tensor: nchw, nhwc, or another order of its dimensions."""
    order = [("b", "c", "h", "w").index(d) for d in format.replace("n", "b")]
    memory = torch.empty([size[d] for d in order], dtype=dtype)
    return memory.permute([order.index(d) for d in range(4)])
