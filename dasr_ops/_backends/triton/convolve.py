"""Convolution as an implicit matrix product: pixels x channels of the kernel x output channels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..eager import accumulate_dtype
from . import depthwise, tuning
from .aggregate import pack_experts
from .epilogue import Epilogue, pixel_block, shuffled_channels, store_output
from .shapes import ConvShape, Phase, forward_phase, transposed_phases
from .tuning import Config, GemmShape, cdiv, is_wide

# Samples are taken in turns where their kernels, or the gradients of these, would need more.
MAX_KERNEL_BYTES = 256 << 20
# With fewer channels, taps and channels are one dimension: a tap alone would be mostly padding.
_MIN_CHANNELS = 16


class Kernels(NamedTuple):
    """Experts with routing weights or, without these, one kernel for each sample."""

    weight: Tensor  # [K, O, I/g, kh, kw], or [B, O, I/g, kh, kw]
    routing: Tensor | None  # [B, K]
    bias: Tensor | None  # [K, O], or [B, O]


@triton.jit
def conv_gemm_kernel(
    # inputs
    x,  # [B, G * K, H, W]: the input, or the gradient of the sums
    weight,  # [B, G, K, N, taps_h, taps_w], any strides
    in_h,
    in_w,
    out_w,
    pixels,  # of a result
    groups,
    group_k,  # channels of x in a group
    group_n,  # channels of the result in a group
    taps,
    taps_w,
    # pixel q reads x at q * stride + offset + tap * step
    stride_h,
    stride_w,
    offset_h,
    offset_w,
    step_h,
    step_w,
    stride_xb,
    stride_xc,
    stride_xh,
    stride_xw,
    stride_wb,
    stride_wg,
    stride_wk,
    stride_wn,
    stride_wh,
    stride_ww,
    tiles_m,
    tiles_n,
    blocks_k,  # of a tap, or of all taps where FLAT
    # epilogue and output, see store_output
    bias,
    routing,
    residual,
    y,
    mask,
    mask_start,
    experts,
    negative_slope,
    residual_scale,
    stride_bias_b,
    stride_bias_o,
    stride_routing_b,
    stride_routing_k,
    stride_res_b,
    stride_res_c,
    stride_res_h,
    stride_res_w,
    stride_yb,
    stride_yc,
    stride_yh,
    stride_yw,
    UPSCALE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SHUFFLED: tl.constexpr,
    FLAT: tl.constexpr,  # K runs over taps and channels as one dimension
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    WIDE: tl.constexpr,  # pixels do not fit 32 bits
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Sum over taps and channels in float32: a tile of pixels and channels of a group."""
    # Channels fastest: tiles that read the same pixels run at the same time.
    i_n = tl.program_id(0) % tiles_n
    i_m = (tl.program_id(0) // tiles_n) % tiles_m
    i_bg = tl.program_id(0) // tiles_n // tiles_m
    i_g = (i_bg % groups).to(tl.int64)
    i_b = (i_bg // groups).to(tl.int64)
    o_m, o_h, o_w = pixel_block(i_m, out_w, BLOCK_M, WIDE)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < group_n
    o_row = shuffled_channels(o_n, group_n, UPSCALE) if SHUFFLED else o_n

    o_ih = o_h * stride_h + offset_h
    o_iw = o_w * stride_w + offset_w
    p_x = x + i_b * stride_xb + i_g * group_k * stride_xc
    p_x += o_ih.to(tl.int64) * stride_xh + o_iw.to(tl.int64) * stride_xw
    p_w = weight + i_b * stride_wb + i_g * stride_wg + o_row.to(tl.int64) * stride_wn
    o_k = tl.arange(0, BLOCK_K)

    b_acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    # One loop over taps and channels, so that loads run ahead across taps.
    for i in range(0, blocks_k if FLAT else taps * blocks_k):
        if FLAT:
            o_f = i * BLOCK_K + o_k
            i_tap = o_f // group_k
            o_c = o_f % group_k
            i_kh = i_tap // taps_w
            i_kw = i_tap % taps_w
            m_k = i_tap < taps
            o_th = o_ih[:, None] + (i_kh * step_h)[None, :]
            o_tw = o_iw[:, None] + (i_kw * step_w)[None, :]
            m_x = (o_th >= 0) & (o_th < in_h) & (o_tw >= 0) & (o_tw < in_w) & m_k[None, :]
            o_x = (i_kh * step_h).to(tl.int64) * stride_xh
            o_x += (i_kw * step_w).to(tl.int64) * stride_xw
            o_x += o_c.to(tl.int64) * stride_xc
            o_wk = i_kh.to(tl.int64) * stride_wh + i_kw.to(tl.int64) * stride_ww
            o_wk += o_c.to(tl.int64) * stride_wk
            b_x = tl.load(p_x[:, None] + o_x[None, :], mask=m_x, other=0.0)
            b_w = tl.load(p_w[None, :] + o_wk[:, None], mask=m_k[:, None] & m_n[None, :], other=0.0)
        else:
            i_tap = i // blocks_k
            o_c = (i % blocks_k) * BLOCK_K + o_k
            i_kh = i_tap // taps_w
            i_kw = i_tap % taps_w
            o_th = o_ih + i_kh * step_h
            o_tw = o_iw + i_kw * step_w
            m_x = ((o_th >= 0) & (o_th < in_h) & (o_tw >= 0) & (o_tw < in_w))[:, None]
            o_x = (i_kh * step_h).to(tl.int64) * stride_xh
            o_x += (i_kw * step_w).to(tl.int64) * stride_xw
            o_x += o_c.to(tl.int64) * stride_xc
            o_wk = i_kh.to(tl.int64) * stride_wh + i_kw.to(tl.int64) * stride_ww
            o_wk += o_c.to(tl.int64) * stride_wk
            if not EVEN_K:
                m_x = m_x & (o_c < group_k)[None, :]
            b_x = tl.load(p_x[:, None] + o_x[None, :], mask=m_x, other=0.0)
            p_wk = p_w[None, :] + o_wk[:, None]
            if EVEN_K and EVEN_N:
                b_w = tl.load(p_wk)
            else:
                b_w = tl.load(p_wk, mask=(o_c < group_k)[:, None] & m_n[None, :], other=0.0)
        b_acc = tl.dot(b_x, b_w, b_acc, input_precision=PRECISION)

    store_output(
        b_acc,
        i_b,
        o_h,
        o_w,
        o_m < pixels,
        i_g * group_n + o_row,
        m_n,
        bias,
        routing,
        residual,
        y,
        mask,
        mask_start,
        experts,
        negative_slope,
        residual_scale,
        stride_bias_b,
        stride_bias_o,
        stride_routing_b,
        stride_routing_k,
        stride_res_b,
        stride_res_c,
        stride_res_h,
        stride_res_w,
        stride_yb,
        stride_yc,
        stride_yh,
        stride_yw,
        UPSCALE,
        ACTIVATION,
    )


def convolve(
    source: Tensor,
    kernels: Kernels,
    shape: ConvShape,
    transposed: bool,
    epilogue: Epilogue,
    out: Tensor,
    allow_tf32: bool,
    deterministic: bool,
) -> None:
    """Convolve ``source``, or where transposed form the input's gradient from that of the sums."""
    if transposed:
        phases = [(h, w) for h in transposed_phases(shape, 0) for w in transposed_phases(shape, 1)]
        if len(phases) < _count_phases(shape):
            out.zero_()
    else:
        phases = [(forward_phase(shape, 0), forward_phase(shape, 1))]
    at_once = samples_at_once(shape, source.dtype)
    sample_numel = out[0].numel()
    for first in range(0, shape.batch, at_once):
        count = min(at_once, shape.batch - first)
        rows = slice(first, first + count)
        weight = _sample_kernels(kernels, shape, source.dtype, rows)
        for phase in phases:
            launch = depthwise.launch if shape.is_depthwise else _launch
            launch(
                source[rows],
                phase_of(weight, phase),
                shape,
                transposed,
                phase,
                epilogue.samples(first, count),
                out[rows, :, phase[0].first :: phase[0].every, phase[1].first :: phase[1].every],
                first * sample_numel,
                allow_tf32,
                deterministic,
            )


def phase_of(weight: Tensor, phase: tuple[Phase, Phase]) -> Tensor:
    """Return the taps of ``weight`` [..., kh, kw] that the phase uses."""
    h, w = phase
    return weight[..., h.first_tap :: h.tap_step, w.first_tap :: w.tap_step]


def samples_at_once(shape: ConvShape, dtype: torch.dtype) -> int:
    """Return how many samples' kernels fit the memory set aside for them."""
    row = cdiv(shape.group_in, 16) * 16
    itemsize = 4 if shape.is_depthwise else dtype.itemsize
    sample_bytes = itemsize * shape.taps * shape.out_channels * row
    return max(MAX_KERNEL_BYTES // max(sample_bytes, 1), 1)


def _count_phases(shape: ConvShape) -> int:
    height, width = (
        min(stride, size) for stride, size in zip(shape.stride, shape.in_size, strict=True)
    )
    return height * width


def _sample_kernels(kernels: Kernels, shape: ConvShape, dtype: torch.dtype, rows: slice) -> Tensor:
    """Return [B, O, I/g, kh, kw] in the type that is multiplied."""
    weight, routing, _ = kernels
    if routing is None:
        weight = weight[rows]
        in_rows = shape.taps == 1 or shape.is_depthwise or weight.stride(2) == 1
        if weight.dtype == dtype and in_rows:
            return weight
    else:
        routing = routing[rows]
    if shape.is_depthwise:
        # Multiplied in float32, so the mixture need not be rounded to the operands' type.
        return pack_experts(weight, routing, accumulate_dtype(), align=1)
    return pack_experts(weight, routing, dtype)


def _launch(
    source: Tensor,
    weight: Tensor,
    shape: ConvShape,
    transposed: bool,
    phase: tuple[Phase, Phase],
    epilogue: Epilogue,
    out: Tensor,
    mask_start: int,
    allow_tf32: bool,
    deterministic: bool,
) -> None:
    batch = source.shape[0]
    stride_b, stride_o, stride_i, *stride_taps = weight.stride()
    stride_g = shape.group_out * stride_o
    group_k, stride_k, group_n, stride_n = shape.group_in, stride_i, shape.group_out, stride_o
    if transposed:
        group_k, stride_k, group_n, stride_n = group_n, stride_n, group_k, stride_k
    height, width = out.shape[2], out.shape[3]
    if not transposed:
        height, width = shape.out_size
    pixels = height * width
    taps = weight.shape[3] * weight.shape[4]
    flat = group_k < _MIN_CHANNELS and taps > 1
    depth = taps * group_k if flat else group_k
    precision = tuning.dot_precision(source, allow_tf32)
    upscale = epilogue.upscale
    shuffled = (
        upscale > 1 and out.stride(1) == 1 and group_n % (upscale * upscale) == 0 and group_n > 0
    )

    def run(config: Config) -> None:
        tiles_m, tiles_n = cdiv(pixels, config.BLOCK_M), cdiv(group_n, config.BLOCK_N)
        conv_gemm_kernel[(batch * shape.groups * tiles_m * tiles_n,)](
            source,
            weight,
            source.shape[2],
            source.shape[3],
            width,
            pixels,
            shape.groups,
            group_k,
            group_n,
            taps,
            weight.shape[4],
            *(phase[d].stride for d in (0, 1)),
            *(phase[d].offset for d in (0, 1)),
            *(phase[d].step for d in (0, 1)),
            *source.stride(),
            stride_b,
            stride_g,
            stride_k,
            stride_n,
            *stride_taps,
            tiles_m,
            tiles_n,
            cdiv(depth, config.BLOCK_K),
            *epilogue.arguments(out, mask_start),
            SHUFFLED=shuffled,
            FLAT=flat,
            EVEN_K=group_k % config.BLOCK_K == 0,
            EVEN_N=group_n % config.BLOCK_N == 0,
            WIDE=is_wide(pixels),
            PRECISION=precision,
            BLOCK_M=config.BLOCK_M,
            BLOCK_N=config.BLOCK_N,
            BLOCK_K=config.BLOCK_K,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )

    gemm = GemmShape(batch * shape.groups, pixels, group_n, depth, source.dtype, precision)
    if epilogue.mask is not None:
        gemm = gemm._replace(heavy=True)
    run(tuning.choose("convolve", gemm, source, deterministic, run))
