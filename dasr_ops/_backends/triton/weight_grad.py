"""Gradients of the samples' kernels: matrix products over pixels, split into partial sums."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import depthwise, tuning
from .convolve import MAX_KERNEL_BYTES
from .epilogue import pixel_block
from .shapes import ConvShape, forward_phase
from .tuning import Config, GemmShape, cdiv, is_wide

# Programs that fill a large GPU; a constant, since the order of sums may depend on sizes alone.
_ENOUGH_PROGRAMS = 528
# A split sums at least so many pixels, or writing it costs more than forming it.
_MIN_PIXELS = 512
# With fewer channels, taps and channels are one dimension of the product.
_MIN_CHANNELS = 16


@triton.jit
def conv_weight_grad_kernel(
    # inputs
    grad,  # [B, O, H', W']
    x,  # [B, I, H, W]
    # outputs
    partial,  # [S, B, taps, O, I/g]
    batch,
    groups,
    group_m,  # channels of grad in a group
    group_n,  # channels of x in a group
    taps,
    taps_w,
    in_h,
    in_w,
    out_w,
    pixels,
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
    tiles_m,
    tiles_n,  # of a tap, or of all taps where FLAT
    tiles,  # of a sample's group
    blocks,  # of pixels, for each program
    FLAT: tl.constexpr,  # N runs over taps and channels as one dimension
    EVEN_M: tl.constexpr,
    EVEN_N: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Sum over the pixels of a split in float32, one tile of kernel elements."""
    i_tile = tl.program_id(0) % tiles
    i_n = i_tile % tiles_n
    i_m = (i_tile // tiles_n) % tiles_m
    i_tap = i_tile // tiles_n // tiles_m
    i_sbg = tl.program_id(0) // tiles
    i_g = (i_sbg % groups).to(tl.int64)
    i_b = ((i_sbg // groups) % batch).to(tl.int64)
    i_s = i_sbg // groups // batch
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_m = o_m < group_m
    if FLAT:
        i_tap = o_n // group_n
        o_c = o_n % group_n
        m_n = i_tap < taps
    else:
        o_c = o_n
        m_n = o_n < group_n
    # Of one tap, or of the tap of each column.
    shift_h = (i_tap // taps_w) * step_h + offset_h
    shift_w = (i_tap % taps_w) * step_w + offset_w

    p_g = grad + i_b * stride_gb + (i_g * group_m + o_m) * stride_gc
    p_x = x + i_b * stride_xb + (i_g * group_n + o_c) * stride_xc
    p_x += shift_h.to(tl.int64) * stride_xh + shift_w.to(tl.int64) * stride_xw
    b_acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for i in range(0, blocks):
        o_k, o_h, o_w = pixel_block(i_s * blocks + i, out_w, BLOCK_K, WIDE)
        m_k = o_k < pixels
        o_ih = o_h * stride_h
        o_iw = o_w * stride_w
        if FLAT:
            o_th = o_ih[:, None] + shift_h[None, :]
            o_tw = o_iw[:, None] + shift_w[None, :]
        else:
            o_th = (o_ih + shift_h)[:, None]
            o_tw = (o_iw + shift_w)[:, None]
        m_x = (o_th >= 0) & (o_th < in_h) & (o_tw >= 0) & (o_tw < in_w) & m_k[:, None]
        if FLAT or not EVEN_N:
            m_x = m_x & m_n[None, :]
        o_g = o_h.to(tl.int64) * stride_gh + o_w.to(tl.int64) * stride_gw
        o_x = o_ih.to(tl.int64) * stride_xh + o_iw.to(tl.int64) * stride_xw
        m_g = m_k[None, :] if EVEN_M else m_m[:, None] & m_k[None, :]
        b_g = tl.load(p_g[:, None] + o_g[None, :], mask=m_g, other=0.0)
        b_x = tl.load(p_x[None, :] + o_x[:, None], mask=m_x, other=0.0)
        b_acc = tl.dot(b_g, b_x, b_acc, input_precision=PRECISION)

    channels = groups * group_m
    o_part = ((i_s * batch + i_b) * taps + i_tap) * channels + i_g * group_m
    if FLAT:
        o_part = o_part[None, :]
    p_part = partial + ((o_part + o_m[:, None]) * group_n + o_c[None, :])
    tl.store(p_part, b_acc, mask=m_m[:, None] & m_n[None, :])


def samples_at_once(shape: ConvShape) -> int:
    """Return how many samples' gradients fit the memory set aside for them."""
    return max(MAX_KERNEL_BYTES // max(_sample_bytes(shape), 1), 1)


def weight_gradients(
    grad: Tensor, input: Tensor, shape: ConvShape, allow_tf32: bool, deterministic: bool
) -> Tensor:
    """Return parts [S, B, taps, O * I/g] of each sample's kernel gradient, in float32.

    ``grad`` and ``input`` are those of the samples wanted.
    """
    phase = (forward_phase(shape, 0), forward_phase(shape, 1))
    batch = grad.shape[0]
    if shape.is_depthwise:
        return depthwise.launch_weight(grad, input, shape, phase, _max_programs(shape, batch))
    flat = shape.group_in < _MIN_CHANNELS and shape.taps > 1
    group_n = shape.taps * shape.group_in if flat else shape.group_in
    precision = tuning.dot_precision(input, allow_tf32)
    partial: Tensor | None = None

    def run(config: Config) -> None:
        nonlocal partial
        tiles_m = cdiv(shape.group_out, config.BLOCK_M)
        tiles_n = cdiv(group_n, config.BLOCK_N)
        tiles = tiles_m * tiles_n * (1 if flat else shape.taps)
        programs = batch * shape.groups * tiles
        splits = min(
            max(_ENOUGH_PROGRAMS // programs, 1),
            cdiv(shape.pixels, _MIN_PIXELS),
            max(MAX_KERNEL_BYTES // (batch * _sample_bytes(shape)), 1),
        )
        n_blocks = cdiv(shape.pixels, config.BLOCK_K)
        blocks = cdiv(n_blocks, splits)
        splits = cdiv(n_blocks, blocks)
        partial = grad.new_empty(
            (splits, batch, shape.taps, shape.out_channels * shape.group_in), dtype=torch.float32
        )
        conv_weight_grad_kernel[(splits * programs,)](
            grad,
            input,
            partial,
            batch,
            shape.groups,
            shape.group_out,
            shape.group_in,
            shape.taps,
            shape.kernel[1],
            *shape.in_size,
            shape.out_size[1],
            shape.pixels,
            *(phase[d].stride for d in (0, 1)),
            *(phase[d].offset for d in (0, 1)),
            *(phase[d].step for d in (0, 1)),
            *grad.stride(),
            *input.stride(),
            tiles_m,
            tiles_n,
            tiles,
            blocks,
            FLAT=flat,
            EVEN_M=shape.group_out % config.BLOCK_M == 0,
            EVEN_N=shape.group_in % config.BLOCK_N == 0,
            WIDE=is_wide(shape.pixels),
            PRECISION=precision,
            BLOCK_M=config.BLOCK_M,
            BLOCK_N=config.BLOCK_N,
            BLOCK_K=config.BLOCK_K,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )

    gemm = GemmShape(
        batch * shape.groups * (1 if flat else shape.taps),
        shape.group_out,
        group_n,
        shape.pixels,
        input.dtype,
        precision,
    )
    run(tuning.choose("weight_grad", gemm, input, deterministic, run))
    assert partial is not None
    return partial


def _sample_bytes(shape: ConvShape) -> int:
    return 4 * shape.out_channels * shape.group_in * shape.taps


def _max_programs(shape: ConvShape, batch: int) -> int:
    """Return how many programs of a depthwise gradient keep its parts within the memory."""
    by_memory = max(MAX_KERNEL_BYTES // (batch * _sample_bytes(shape)), 1)
    return min(4 * _ENOUGH_PROGRAMS, by_memory * batch * shape.taps)
