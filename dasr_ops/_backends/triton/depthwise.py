"""Convolutions with one input channel per group: direct sums, bound by memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .epilogue import Epilogue, pixel_block, store_output
from .shapes import ConvShape, Phase
from .tuning import cdiv, is_wide


@triton.jit
def conv_depthwise_kernel(
    # inputs
    x,  # [B, C, H, W]: the input, or the gradient of the sums
    weight,  # [B, O, taps_h, taps_w], any strides
    in_h,
    in_w,
    out_w,
    pixels,
    channels,  # of the result
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
    stride_wo,
    stride_wh,
    stride_ww,
    tiles_m,
    tiles_n,
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
    MULTIPLIER: tl.constexpr,  # output channels of an input channel
    TRANSPOSED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Sum over taps, and over the multiplier where transposed."""
    i_n = tl.program_id(0) % tiles_n
    i_m = (tl.program_id(0) // tiles_n) % tiles_m
    i_b = (tl.program_id(0) // tiles_n // tiles_m).to(tl.int64)
    o_m, o_h, o_w = pixel_block(i_m, out_w, BLOCK_M, WIDE)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < channels
    # Channels of x and rows of weight that the first of MULTIPLIER products reads.
    if TRANSPOSED:
        o_c = o_n * MULTIPLIER
        o_o = o_c
    else:
        o_c = o_n // MULTIPLIER
        o_o = o_n

    o_ih = o_h * stride_h + offset_h
    o_iw = o_w * stride_w + offset_w
    p_x = x + i_b * stride_xb + o_c.to(tl.int64)[None, :] * stride_xc
    p_x += (o_ih.to(tl.int64) * stride_xh + o_iw.to(tl.int64) * stride_xw)[:, None]
    p_w = weight + i_b * stride_wb + o_o.to(tl.int64) * stride_wo
    b_acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for i_tap in range(0, taps):
        i_kh = i_tap // taps_w
        i_kw = i_tap % taps_w
        o_th = o_ih + i_kh * step_h
        o_tw = o_iw + i_kw * step_w
        m_x = ((o_th >= 0) & (o_th < in_h) & (o_tw >= 0) & (o_tw < in_w))[:, None] & m_n[None, :]
        o_x = (i_kh * step_h).to(tl.int64) * stride_xh + (i_kw * step_w).to(tl.int64) * stride_xw
        o_w_tap = i_kh.to(tl.int64) * stride_wh + i_kw.to(tl.int64) * stride_ww
        for j in tl.static_range(MULTIPLIER if TRANSPOSED else 1):
            b_x = tl.load(p_x + (o_x + j * stride_xc), mask=m_x, other=0.0).to(tl.float32)
            b_w = tl.load(p_w + (o_w_tap + j * stride_wo), mask=m_n, other=0.0).to(tl.float32)
            b_acc += b_x * b_w[None, :]

    store_output(
        b_acc,
        i_b,
        o_h,
        o_w,
        o_m < pixels,
        o_n,
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


@triton.jit
def conv_depthwise_weight_kernel(
    # inputs
    grad,  # [B, O, H', W']
    x,  # [B, C, H, W]
    # outputs
    partial,  # [S, B, taps, O]
    batch,
    in_h,
    in_w,
    out_w,
    pixels,
    channels,  # of grad
    taps,
    taps_w,
    stride_h,
    stride_w,
    offset_h,
    offset_w,
    step_h,
    step_w,
    stride_gb,
    stride_gc,
    stride_gh,
    stride_gw,
    stride_xb,
    stride_xc,
    stride_xh,
    stride_xw,
    tiles_n,
    blocks,  # of pixels, for each program
    MULTIPLIER: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Sum products over the pixels of a split, for one tap."""
    # Taps fastest: they read the same pixels.
    i_tap = tl.program_id(0) % taps
    i_n = (tl.program_id(0) // taps) % tiles_n
    i_sb = tl.program_id(0) // taps // tiles_n
    i_b = (i_sb % batch).to(tl.int64)
    i_s = i_sb // batch
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < channels
    shift_h = (i_tap // taps_w) * step_h + offset_h
    shift_w = (i_tap % taps_w) * step_w + offset_w
    p_g = grad + i_b * stride_gb + o_n.to(tl.int64) * stride_gc
    p_x = x + i_b * stride_xb + (o_n // MULTIPLIER).to(tl.int64) * stride_xc
    b_acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for i in range(0, blocks):
        o_m, o_h, o_w = pixel_block(i_s * blocks + i, out_w, BLOCK_M, WIDE)
        o_ih = o_h * stride_h + shift_h
        o_iw = o_w * stride_w + shift_w
        m_m = (o_m < pixels) & (o_ih >= 0) & (o_ih < in_h) & (o_iw >= 0) & (o_iw < in_w)
        m_mn = m_m[:, None] & m_n[None, :]
        o_g = o_h.to(tl.int64) * stride_gh + o_w.to(tl.int64) * stride_gw
        o_x = o_ih.to(tl.int64) * stride_xh + o_iw.to(tl.int64) * stride_xw
        b_g = tl.load(p_g[None, :] + o_g[:, None], mask=m_mn, other=0.0).to(tl.float32)
        b_x = tl.load(p_x[None, :] + o_x[:, None], mask=m_mn, other=0.0).to(tl.float32)
        b_acc += b_g * b_x
    p_part = partial + ((i_s * batch + i_b) * taps + i_tap) * channels + o_n
    tl.store(p_part, tl.sum(b_acc, axis=0), mask=m_n)


def _blocks(channels: int) -> tuple[int, int]:
    block_n = min(triton.next_power_of_2(channels), 32)
    return 2048 // block_n, block_n


def launch(
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
    """Convolve one phase; the switches make no difference: products are float32 throughout."""
    size = (out.shape[2], out.shape[3]) if transposed else shape.out_size
    channels = shape.in_channels if transposed else shape.out_channels
    block_m, block_n = _blocks(channels)
    tiles_m, tiles_n = cdiv(size[0] * size[1], block_m), cdiv(channels, block_n)
    stride_b, stride_o, _, *stride_taps = weight.stride()
    conv_depthwise_kernel[(source.shape[0] * tiles_m * tiles_n,)](
        source,
        weight,
        source.shape[2],
        source.shape[3],
        size[1],
        size[0] * size[1],
        channels,
        weight.shape[3] * weight.shape[4],
        weight.shape[4],
        *(phase[d].stride for d in (0, 1)),
        *(phase[d].offset for d in (0, 1)),
        *(phase[d].step for d in (0, 1)),
        *source.stride(),
        stride_b,
        stride_o,
        *stride_taps,
        tiles_m,
        tiles_n,
        *epilogue.arguments(out, mask_start),
        MULTIPLIER=shape.group_out,
        TRANSPOSED=transposed,
        WIDE=is_wide(size[0] * size[1]),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=4,
    )


def launch_weight(
    grad: Tensor, input: Tensor, shape: ConvShape, phase: tuple[Phase, Phase], target: int
) -> Tensor:
    """Return [S, B, taps, O], split so that there are about ``target`` programs."""
    batch = grad.shape[0]
    block_m, block_n = _blocks(shape.out_channels)
    tiles_n = cdiv(shape.out_channels, block_n)
    n_blocks = cdiv(shape.pixels, block_m)
    blocks = cdiv(n_blocks, max(target // (batch * tiles_n * shape.taps), 1))
    splits = cdiv(n_blocks, blocks)
    partial = grad.new_empty((splits, batch, shape.taps, shape.out_channels), dtype=torch.float32)
    conv_depthwise_weight_kernel[(splits * batch * tiles_n * shape.taps,)](
        grad,
        input,
        partial,
        batch,
        *shape.in_size,
        shape.out_size[1],
        shape.pixels,
        shape.out_channels,
        shape.taps,
        shape.kernel[1],
        *(phase[d].stride for d in (0, 1)),
        *(phase[d].offset for d in (0, 1)),
        *(phase[d].step for d in (0, 1)),
        *grad.stride(),
        *input.stride(),
        tiles_n,
        blocks,
        MULTIPLIER=shape.group_out,
        WIDE=is_wide(shape.pixels),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=4,
    )
    return partial
