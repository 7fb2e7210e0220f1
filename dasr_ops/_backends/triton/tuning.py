"""Configurations of the matrix-product kernels: a fixed rule by shape, or measured ones.

The rule is the default, so that a shape has one configuration and with it one order of summation on
every run. ``DASR_OPS_TRITON_AUTOTUNE=1`` measures the candidates once for each shape, except where
determinism is asked for or a CUDA graph is captured. ``DASR_OPS_TRITON_CONFIG`` overrides parts for
all calls, as in ``BLOCK_M=64,num_warps=4``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
CONFIG_VARIABLE = "DASR_OPS_TRITON_CONFIG"
AUTOTUNE_VARIABLE = "DASR_OPS_TRITON_AUTOTUNE"
# Blocks that fill a large GPU; a constant, since orders of summation may depend on shapes alone.
_ENOUGH_BLOCKS = 264
_MAX_CANDIDATES = 8


class Config(NamedTuple):
    """Tile of a matrix product, and how it is run."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int


class GemmShape(NamedTuple):
    """What a configuration is chosen by: ``count`` products of [m, k] and [k, n]."""

    count: int
    m: int
    n: int
    k: int  # the length of an uninterrupted run, e.g. the channels of one tap
    dtype: torch.dtype
    precision: str
    heavy: bool = False  # what follows the sums needs many registers


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def is_wide(pixels: int) -> bool:
    """Return whether numbers of pixels, those of the last tiles included, need 64 bits."""
    return pixels >= 2**31 - 2**16


def dot_precision(tensor: Tensor, allow_tf32: bool) -> str:
    """Return the ``input_precision`` of products; only float32 operands know another than ieee."""
    tf32 = allow_tf32 and tensor.dtype == torch.float32 and torch.version.hip is None
    return "tf32" if tf32 else "ieee"


def block(size: int, largest: int) -> int:
    """Return the power of two from 16, the least of a matrix product, that holds ``size``."""
    return min(max(triton.next_power_of_2(size), 16), largest)


def default_config(shape: GemmShape) -> Config:
    """Return the configuration of the rule."""
    if shape.dtype == torch.float32 and shape.precision == "ieee":
        # Without tensor cores: every product is an instruction, unrolled over BLOCK_K.
        block_n, block_k, stages = block(shape.n, 64), 16, 2
    else:
        block_n, stages = block(shape.n, 128), 3
        block_k = block(shape.k, 128 // shape.dtype.itemsize)
    block_n = min(block_n, _largest_tile(shape) // 64)
    block_m = min(block(shape.m, 128), _largest_tile(shape) // block_n)
    if block_m > 64 and shape.count * cdiv(shape.m, 128) * cdiv(shape.n, block_n) < _ENOUGH_BLOCKS:
        block_m = 64
    return Config(block_m, block_n, block_k, _warps(shape, block_m * block_n), stages)


def candidates(shape: GemmShape) -> list[Config]:
    """Return the configurations worth measuring for a shape, the rule's first."""
    first = default_config(shape)
    found = {first: None}
    for block_m in (first.BLOCK_M, 128, 64, 256):
        for block_n in (first.BLOCK_N, first.BLOCK_N // 2):
            for block_k in (first.BLOCK_K, first.BLOCK_K // 2):
                fits = min(block_n, block_k) >= 16 and block_m <= block(shape.m, 256)
                tile = block_m * block_n
                if fits and tile <= _largest_tile(shape):
                    warps = _warps(shape, tile)
                    found[Config(block_m, block_n, block_k, warps, first.num_stages)] = None
    return list(found)[:_MAX_CANDIDATES]


def _largest_tile(shape: GemmShape) -> int:
    return 64 * 64 if shape.heavy else 128 * 128


def _warps(shape: GemmShape, tile: int) -> int:
    return 8 if tile > (32 * 64 if shape.heavy else 128 * 64) else 4 if tile > 16 * 32 else 2


_measured: dict[Hashable, Config] = {}


def choose(
    kernel: str,
    shape: GemmShape,
    tensor: Tensor,
    deterministic: bool,
    run: Callable[[Config], None],
) -> Config:
    """Return the configuration for a launch of ``kernel``, which ``run`` would make."""
    changes = _override(os.environ.get(CONFIG_VARIABLE, ""))
    if changes or deterministic or os.environ.get(AUTOTUNE_VARIABLE) != "1" or not tensor.is_cuda:
        return default_config(shape)._replace(**changes)
    key = (kernel, shape, tensor.stride(1) == 1, torch.cuda.get_device_name(tensor.device))
    if key not in _measured:
        if torch.cuda.is_current_stream_capturing():
            return default_config(shape)
        times = {config: _time(config, run) for config in candidates(shape)}
        _measured[key] = min(times, key=lambda config: times[config])
    return _measured[key]


def _time(config: Config, run: Callable[[Config], None]) -> float:
    try:
        return triton.testing.do_bench(lambda: run(config), warmup=5, rep=20, return_mode="median")
    except triton.runtime.errors.OutOfResources:
        return float("inf")


@cache
def _override(text: str) -> dict[str, int]:
    changes = {}
    for item in filter(None, text.split(",")):
        name, _, value = (part.strip() for part in item.partition("="))
        if name not in Config._fields or not value.isdigit():
            raise ValueError(
                f"{CONFIG_VARIABLE}: expected {'=..,'.join(Config._fields)}=.., got {text!r}"
            )
        changes[name] = int(value)
    return changes
