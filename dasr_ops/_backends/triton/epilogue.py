"""What follows the sums of a convolution on their way to memory, and its way back."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._arguments import ConvOptions
from .aggregate import reduce_splits
from .shapes import ConvShape
from .tuning import cdiv, is_wide

# Programs that sum gradients of biases; a constant, since the order of sums must not depend on
# the device.
_ENOUGH_PROGRAMS = 1024


class Epilogue(NamedTuple):
    """Arguments of `store_output` beside the sums and where they go."""

    bias: Tensor | None = None  # [K, O] with routing weights, else [B, O]
    routing: Tensor | None = None  # [B, K]
    residual: Tensor | None = None  # as the output
    mask: Tensor | None = None  # int32 words
    activation: int = 0  # 1: ReLU, 2: leaky
    negative_slope: float = 0.0
    residual_scale: float = 1.0
    upscale: int = 1

    def samples(self, first: int, count: int) -> Epilogue:
        """Return what belongs to samples [first, first + count); the mask stays whole."""
        rows = slice(first, first + count)
        return self._replace(
            bias=self.bias if self.bias is None or self.routing is not None else self.bias[rows],
            routing=None if self.routing is None else self.routing[rows],
            residual=None if self.residual is None else self.residual[rows],
        )

    def arguments(self, out: Tensor, mask_start: int) -> tuple[object, ...]:
        """Return the arguments of a kernel that calls `store_output`, UPSCALE and ACTIVATION last.

        ``mask_start`` is the bit of the first element of ``out``.
        """
        return (
            self.bias,
            self.routing,
            self.residual,
            out,
            self.mask,
            mask_start,
            0 if self.routing is None else self.routing.shape[1],
            self.negative_slope,
            self.residual_scale,
            *((0, 0) if self.bias is None else self.bias.stride()),
            *((0, 0) if self.routing is None else self.routing.stride()),
            *((0, 0, 0, 0) if self.residual is None else self.residual.stride()),
            *out.stride(),
            self.upscale,
            self.activation,
        )


def make_epilogue(
    bias: Tensor | None,
    routing: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    options: ConvOptions,
) -> Epilogue:
    """Return the epilogue of a convolution."""
    slope = options.negative_slope
    return Epilogue(
        bias=bias,
        routing=None if bias is None else routing,
        residual=residual,
        mask=mask,
        activation=0 if slope is None else 1 if slope == 0 else 2,
        negative_slope=slope or 0.0,
        residual_scale=options.residual_scale,
        upscale=options.upscale_factor,
    )


@triton.jit
def pixel_block(i, width, BLOCK: tl.constexpr, WIDE: tl.constexpr) -> tl.tuple:
    """Return the numbers, rows and columns of pixels in block ``i``.

    Numbers have 64 bits only where they must (WIDE): dividing such is slow.
    """
    if WIDE:
        i = i.to(tl.int64)
    o_m = i * BLOCK + tl.arange(0, BLOCK)
    o_h = o_m // width
    return o_m, o_h.to(tl.int32), (o_m - o_h * width).to(tl.int32)


@triton.jit
def element_offsets(
    i_b, o_ch, o_h, o_w, stride_b, stride_c, stride_h, stride_w, UPSCALE: tl.constexpr
) -> tl.tensor:
    """Return where channels o_ch of pixels (o_h, o_w) lie behind the pixel shuffle, [M, N]."""
    o_h = o_h.to(tl.int64)
    o_w = o_w.to(tl.int64)
    if UPSCALE == 1:
        o_n = o_ch.to(tl.int64) * stride_c
    else:
        o_sub = (o_ch % (UPSCALE * UPSCALE)).to(tl.int64)
        o_n = (o_ch // (UPSCALE * UPSCALE)).to(tl.int64) * stride_c
        o_n += (o_sub // UPSCALE) * stride_h + (o_sub % UPSCALE) * stride_w
    o_m = i_b * stride_b + o_h * UPSCALE * stride_h + o_w * UPSCALE * stride_w
    return o_m[:, None] + o_n[None, :]


@triton.jit
def shuffled_channels(o_n, channels, UPSCALE: tl.constexpr) -> tl.tensor:
    """Return an order of channels in which those that the shuffle makes neighbours stand together.

    Rows of a tile then are whole vectors of a channels_last result.
    """
    shuffled = channels // (UPSCALE * UPSCALE)
    return (o_n % shuffled) * (UPSCALE * UPSCALE) + o_n // shuffled


@triton.jit
def store_output(
    b_acc,  # [M, N], float32
    i_b,  # int64
    o_h,
    o_w,
    m_m,
    o_ch,
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
    UPSCALE: tl.constexpr,
    ACTIVATION: tl.constexpr,
) -> None:
    """Write act(pixel_shuffle(c + bias)), scaled and added to the residual if there is one."""
    m_mn = m_m[:, None] & m_n[None, :]
    if bias is not None:
        p_bias = bias + o_ch.to(tl.int64) * stride_bias_o
        if routing is None:
            b_bias = tl.load(p_bias + i_b * stride_bias_b, mask=m_n, other=0.0).to(tl.float32)
        else:
            b_bias = tl.zeros([o_ch.shape[0]], dtype=tl.float32)
            p_a = routing + i_b * stride_routing_b
            for _ in range(0, experts):
                # Experts of routing weight 0 are not read: they may be NaN.
                b_a = tl.load(p_a).to(tl.float32)
                if b_a != 0:
                    b_bias += b_a * tl.load(p_bias, mask=m_n, other=0.0).to(tl.float32)
                p_bias += stride_bias_b
                p_a += stride_routing_k
        b_acc += b_bias[None, :]
    o_y = element_offsets(i_b, o_ch, o_h, o_w, stride_yb, stride_yc, stride_yh, stride_yw, UPSCALE)
    if mask is not None:
        # Integers: the order in which bits are set does not matter.
        bit = o_y + mask_start
        word = (1 << (bit & 31)).to(tl.int32)
        tl.atomic_or(mask + (bit >> 5), word, mask=m_mn & (b_acc > 0), sem="relaxed")
    if ACTIVATION == 1:
        # Not 0 * c: 0 * -inf is not a number. NaN passes.
        b_acc = tl.where(b_acc <= 0, 0.0, b_acc)
    elif ACTIVATION == 2:
        b_acc = tl.where(b_acc <= 0, b_acc * negative_slope, b_acc)
    if residual is not None:
        o_res = element_offsets(
            i_b, o_ch, o_h, o_w, stride_res_b, stride_res_c, stride_res_h, stride_res_w, UPSCALE
        )
        b_res = tl.load(residual + o_res, mask=m_mn, other=0.0).to(tl.float32)
        b_acc = b_res + residual_scale * b_acc
    tl.store(y + o_y, b_acc.to(y.dtype.element_ty), mask=m_mn)


@triton.jit
def undo_epilogue_kernel(
    # inputs
    grad_output,  # [B, O/r^2, H*r, W*r]
    output,  # the same, or None
    mask,  # one bit per element, in the order of strides of the output, or None
    # outputs
    grad,  # [B, O, H, W], channels_last, or None
    partial,  # [S, B, O], or None
    batch,
    channels,
    pixels,
    width,
    blocks,  # of pixels, for each program
    tiles_n,
    splits,
    negative_slope,
    residual_scale,
    stride_gb,
    stride_gc,
    stride_gh,
    stride_gw,
    stride_ob,
    stride_oc,
    stride_oh,
    stride_ow,
    stride_sample,  # pixels * channels
    UPSCALE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SHUFFLED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Undo scale, activation and pixel shuffle; sum what is left over pixels."""
    i_n = tl.program_id(0) % tiles_n
    i_s = (tl.program_id(0) // tiles_n) % splits
    i_b = (tl.program_id(0) // tiles_n // splits).to(tl.int64)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < channels
    o_ch = shuffled_channels(o_n, channels, UPSCALE) if SHUFFLED else o_n
    b_sum = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for i in range(0, blocks):
        o_m, o_h, o_w = pixel_block(i_s * blocks + i, width, BLOCK_M, WIDE)
        m_mn = (o_m < pixels)[:, None] & m_n[None, :]
        o_g = element_offsets(
            i_b, o_ch, o_h, o_w, stride_gb, stride_gc, stride_gh, stride_gw, UPSCALE
        )
        b_g = tl.load(grad_output + o_g, mask=m_mn, other=0.0).to(tl.float32) * residual_scale
        if ACTIVATION != 0:
            o_o = element_offsets(
                i_b, o_ch, o_h, o_w, stride_ob, stride_oc, stride_oh, stride_ow, UPSCALE
            )
            if mask is None:
                positive = tl.load(output + o_o, mask=m_mn, other=0.0).to(tl.float32) > 0
            else:
                byte = tl.load(mask + (o_o >> 3), mask=m_mn, other=0).to(tl.int32)
                positive = ((byte >> (o_o & 7).to(tl.int32)) & 1) != 0
            b_g = tl.where(positive, b_g, b_g * negative_slope)
        if grad is not None:
            p_grad = (
                grad + i_b * stride_sample + o_m.to(tl.int64)[:, None] * channels + o_ch[None, :]
            )
            tl.store(p_grad, b_g.to(grad.dtype.element_ty), mask=m_mn)
        if partial is not None:
            b_sum += b_g
    if partial is not None:
        p_part = partial + (i_s * batch + i_b) * channels + o_ch
        tl.store(p_part, tl.sum(b_sum, axis=0), mask=m_n)


def undo_epilogue(
    grad_output: Tensor,
    output: Tensor | None,
    mask: Tensor | None,
    shape: ConvShape,
    options: ConvOptions,
    dtype: torch.dtype,
    channels_last: bool,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of the sums, [B, O, H, W], and of biases, [B, O] in float32.

    ``channels_last`` is the format of the output, in whose order the bits of ``mask`` stand.
    """
    batch, channels = shape.batch, shape.out_channels
    height, width = shape.out_size
    slope, factor = options.negative_slope, options.upscale_factor
    undoes = slope is not None or factor != 1 or options.residual_scale != 1
    grad = grad_output if wanted[0] else None
    if wanted[0] and undoes:
        grad = torch.empty(
            (batch, channels, height, width),
            dtype=dtype,
            device=grad_output.device,
            memory_format=torch.channels_last,
        )
    elif not wanted[1]:
        return grad, None
    c, h, w = grad_output.shape[1:]
    strides = (0, 0, 0, 0)
    if mask is not None:
        strides = (c * h * w, 1, w * c, c) if channels_last else (c * h * w, h * w, w, 1)
    elif output is not None:
        strides = output.stride()
    block_n = min(triton.next_power_of_2(channels), 64)
    block_m = 2048 // block_n
    n_blocks, tiles_n = cdiv(shape.pixels, block_m), cdiv(channels, block_n)
    splits = n_blocks
    if wanted[1]:
        splits = min(n_blocks, max(_ENOUGH_PROGRAMS // (batch * tiles_n), 1))
    blocks = cdiv(n_blocks, splits)
    splits = cdiv(n_blocks, blocks)
    partial = None
    if wanted[1]:
        partial = grad_output.new_empty((splits, batch, channels), dtype=torch.float32)
    undo_epilogue_kernel[(tiles_n * splits * batch,)](
        grad_output,
        output if mask is None else None,
        mask,
        grad if undoes else None,
        partial,
        batch,
        channels,
        shape.pixels,
        width,
        blocks,
        tiles_n,
        splits,
        slope or 0.0,
        options.residual_scale,
        *grad_output.stride(),
        *strides,
        shape.pixels * channels,
        UPSCALE=factor,
        ACTIVATION=0 if slope is None else 1,
        SHUFFLED=factor > 1 and grad_output.stride(1) == 1,
        WIDE=is_wide(shape.pixels),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=4,
    )
    return grad, None if partial is None else reduce_splits(partial, torch.float32)
