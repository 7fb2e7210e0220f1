"""Mixing of experts, and the gradients of experts and routing weights.

Experts are mixed by a launch of their own, before the convolution. Mixing in every block of the
convolution loses: each would read all experts (csrc/README.md has the arithmetic).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..eager import accumulate_dtype
from .tuning import TYPES, cdiv

# Sums that a program holds, shared out by its 128 threads.
_MAX_SUMS = 8192


@triton.jit
def mix_experts_kernel(
    # inputs
    weight,  # [K, R, T], contiguous
    routing,  # [B, K]
    # outputs
    out,  # [B, R, T]; r lies at (r // row) * stride_out_o + r % row
    batch,
    experts,
    rows,
    taps,
    numel,  # of an expert
    row,
    stride_routing_b,
    stride_routing_k,
    stride_out_b,
    stride_out_o,
    stride_out_t,
    tiles_r,
    tiles_t,
    DENSE: tl.constexpr,  # stride_out_o == row
    ACC: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> None:
    """Sum experts in ACC for BLOCK_B samples, so that an expert is read once for all of them."""
    i_r = tl.program_id(0) % tiles_r
    i_t = (tl.program_id(0) // tiles_r) % tiles_t
    i_b = tl.program_id(0) // tiles_r // tiles_t
    o_r = i_r.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_t = i_t * BLOCK_T + tl.arange(0, BLOCK_T)
    o_b = i_b * BLOCK_B + tl.arange(0, BLOCK_B)
    m_b = o_b < batch
    m_rt = (o_r < rows)[:, None] & (o_t < taps)[None, :]
    o_b = o_b.to(tl.int64)

    p_w = weight + o_r[:, None] * taps + o_t[None, :]
    p_a = routing + o_b * stride_routing_b
    b_sum = tl.zeros([BLOCK_B, BLOCK_R, BLOCK_T], dtype=ACC)
    for _ in range(0, experts):
        b_a = tl.load(p_a, mask=m_b, other=0.0).to(ACC)
        # Experts that no sample uses are not read; what others contribute to a sample that does
        # not use them is 0 even where they are NaN.
        if tl.max((b_a != 0).to(tl.int32), axis=0) > 0:
            b_w = tl.load(p_w, mask=m_rt, other=0.0).to(ACC)
            b_part = b_a[:, None, None] * b_w[None, :, :]
            b_sum += tl.where((b_a != 0)[:, None, None], b_part, 0.0)
        p_w += numel
        p_a += stride_routing_k

    o_out = o_r if DENSE else (o_r // row) * stride_out_o + o_r % row
    o_out = o_out[:, None] + o_t.to(tl.int64)[None, :] * stride_out_t
    p_out = out + o_b[:, None, None] * stride_out_b + o_out[None, :, :]
    tl.store(p_out, b_sum.to(out.dtype.element_ty), mask=m_b[:, None, None] & m_rt[None, :, :])


@triton.jit
def expert_gradients_kernel(
    # inputs
    grad,  # [S, B, T, R], contiguous: splits are added up on the way
    weight,  # [K, R, T], contiguous
    routing,  # [B, K]
    # outputs
    grad_weight,  # [K, R, T], or None
    partial_routing,  # [tiles, B, K], or None
    batch,
    experts,
    rows,
    taps,
    splits,
    numel,  # of an expert
    stride_grad_s,
    stride_routing_b,
    stride_routing_k,
    tiles_r,
    tiles,
    ACC: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> None:
    """Form both gradients from the same elements while they are at hand."""
    i_tile = tl.program_id(0) % tiles
    i_r = i_tile % tiles_r
    i_t = i_tile // tiles_r
    o_r = i_r.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_t = i_t * BLOCK_T + tl.arange(0, BLOCK_T)
    o_k = tl.program_id(0) // tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    m_k = o_k < experts
    m_rt = (o_r < rows)[:, None] & (o_t < taps)[None, :]
    m_krt = m_k[:, None, None] & m_rt[None, :, :]
    o_k = o_k.to(tl.int64)
    o_krt = o_k[:, None, None] * numel + (o_r[:, None] * taps + o_t[None, :])[None, :, :]

    b_sum = tl.zeros([BLOCK_K, BLOCK_R, BLOCK_T], dtype=ACC)
    if partial_routing is not None:
        b_w = tl.load(weight + o_krt, mask=m_krt, other=0.0).to(ACC)
        p_part = partial_routing + i_tile.to(tl.int64) * batch * experts + o_k
    p_a = routing + o_k * stride_routing_k
    p_g = grad + o_t.to(tl.int64)[None, :] * rows + o_r[:, None]
    for _ in range(0, batch):
        b_g = tl.zeros([BLOCK_R, BLOCK_T], dtype=ACC)
        p_split = p_g
        for _s in range(0, splits):
            b_g += tl.load(p_split, mask=m_rt, other=0.0).to(ACC)
            p_split += stride_grad_s
        if grad_weight is not None:
            b_a = tl.load(p_a, mask=m_k, other=0.0).to(ACC)
            b_sum += b_a[:, None, None] * b_g[None, :, :]
        if partial_routing is not None:
            b_dot = tl.sum(tl.sum(b_w * b_g[None, :, :], axis=2), axis=1)
            tl.store(p_part, b_dot, mask=m_k)
            p_part += experts
        p_a += stride_routing_b
        p_g += numel
    if grad_weight is not None:
        tl.store(grad_weight + o_krt, b_sum.to(grad_weight.dtype.element_ty), mask=m_krt)


@triton.jit
def reduce_splits_kernel(
    partial,  # [S, N]
    out,  # [N]
    splits,
    numel,
    stride_block,  # BLOCK_S * N
    ACC: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Add up partial sums in an order that depends on sizes alone."""
    o_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_s = tl.arange(0, BLOCK_S)
    p_part = partial + o_s.to(tl.int64)[:, None] * numel + o_n[None, :]
    b_sum = tl.zeros([BLOCK_S, BLOCK_N], dtype=ACC)
    for i_s in range(0, splits, BLOCK_S):
        mask = (i_s + o_s < splits)[:, None] & (o_n < numel)[None, :]
        b_sum += tl.load(p_part, mask=mask, other=0.0).to(ACC)
        p_part += stride_block
    tl.store(out + o_n, tl.sum(b_sum, axis=0).to(out.dtype.element_ty), mask=o_n < numel)


def _tile(rows: int, taps: int) -> tuple[int, int]:
    """Return the tile (BLOCK_R, BLOCK_T) of an expert that one program takes."""
    block_t = min(triton.next_power_of_2(taps), 16)
    return max(512 // block_t, 1), block_t


def mix_experts(weight: Tensor, routing: Tensor, out: Tensor) -> None:
    """Write the mixture of ``weight`` [K, ...] for each row of ``routing`` [B, K] to ``out``.

    ``out`` is contiguous, or [B, O, I/g, kh, kw] with kernels as matrices [kh, kw, O, I/g].
    """
    if out.numel() == 0:
        return
    weight = weight.contiguous()
    packed = not out.is_contiguous()
    taps = weight.shape[3] * weight.shape[4] if packed else 1
    rows = weight[0].numel() // taps
    # Of a packed result: one row of input channels for each output channel.
    row, stride_o = (out.shape[2], out.stride(1)) if packed else (rows, rows)
    stride_t = out.stride(4) if packed else 0
    batch, experts = routing.shape
    acc = accumulate_dtype(weight, routing)
    block_r, block_t = _tile(rows, taps)
    block_b = min(triton.next_power_of_2(batch), _MAX_SUMS // 512 // (acc.itemsize // 4))
    tiles_r, tiles_t = cdiv(rows, block_r), cdiv(taps, block_t)
    mix_experts_kernel[(tiles_r * tiles_t * cdiv(batch, block_b),)](
        weight,
        routing,
        out,
        batch,
        experts,
        rows,
        taps,
        rows * taps,
        row,
        *routing.stride(),
        out.stride(0),
        stride_o,
        stride_t,
        tiles_r,
        tiles_t,
        DENSE=stride_o == row,
        ACC=TYPES[acc],
        BLOCK_B=block_b,
        BLOCK_R=block_r,
        BLOCK_T=block_t,
        num_warps=4,
    )


def pack_experts(
    weight: Tensor, routing: Tensor | None, dtype: torch.dtype, align: int = 16
) -> Tensor:
    """Return kernels [B, O, I/g, kh, kw] that lie in memory as matrices [B, kh, kw, O, I/g].

    Rows of input channels are padded to ``align`` elements, so that loads are whole vectors.
    Without routing weights ``weight`` holds a kernel for each sample.
    """
    batch = weight.shape[0] if routing is None else routing.shape[0]
    _, out_channels, group_in, kernel_h, kernel_w = weight.shape
    row = cdiv(group_in, align) * align
    matrix = out_channels * row
    out = weight.new_empty_strided(
        (batch, *weight.shape[1:]),
        (kernel_h * kernel_w * matrix, row, 1, kernel_w * matrix, matrix),
        dtype=dtype,
    )
    if routing is None:
        return out.copy_(weight)
    mix_experts(weight, routing, out)
    return out


def reduce_splits(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """Add up ``partial`` [S, ...] over its first dimension and round once."""
    out = partial.new_empty(partial.shape[1:], dtype=dtype)
    numel = out.numel()
    if numel == 0:
        return out
    splits = partial.shape[0]
    block_n = 128 if splits <= 32 else 16
    block_s = min(triton.next_power_of_2(splits), 2048 // block_n)
    reduce_splits_kernel[(cdiv(numel, block_n),)](
        partial,
        out,
        splits,
        numel,
        block_s * numel,
        ACC=TYPES[accumulate_dtype(partial)],
        BLOCK_S=block_s,
        BLOCK_N=block_n,
        num_warps=4,
    )
    return out


def expert_gradients(
    grad: Tensor, weight: Tensor, routing: Tensor, wanted: tuple[bool, bool], dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients for experts, in ``dtype``, and for routing weights, not rounded.

    ``grad`` is contiguous: parts [S, B, T, R] of the gradients of the mixtures, whose experts
    ``weight`` [K, ...] have T positions of R channel pairs.
    """
    splits, batch, taps, rows = grad.shape
    experts = weight.shape[0]
    weight = weight.contiguous()
    acc = accumulate_dtype(grad, weight, routing)
    grad_weight = weight.new_empty(weight.shape, dtype=dtype) if wanted[0] else None
    if batch == 0 or weight.numel() == 0:
        zeros = routing.new_zeros(routing.shape, dtype=acc) if wanted[1] else None
        return None if grad_weight is None else grad_weight.zero_(), zeros
    block_r, block_t = _tile(rows, taps)
    block_k = min(triton.next_power_of_2(experts), 8 // (acc.itemsize // 4))
    tiles_r, tiles_t = cdiv(rows, block_r), cdiv(taps, block_t)
    tiles = tiles_r * tiles_t
    partial = routing.new_empty((tiles, batch, experts), dtype=acc) if wanted[1] else None
    expert_gradients_kernel[(tiles * cdiv(experts, block_k),)](
        grad,
        weight,
        routing,
        grad_weight,
        partial,
        batch,
        experts,
        rows,
        taps,
        splits,
        rows * taps,
        batch * rows * taps,
        *routing.stride(),
        tiles_r,
        tiles,
        ACC=TYPES[acc],
        BLOCK_K=block_k,
        BLOCK_R=block_r,
        BLOCK_T=block_t,
        num_warps=4,
    )
    return grad_weight, None if partial is None else reduce_splits(partial, acc)
