"""Remembers calls that passed their checks: a call like one of them needs no closer look.

The checks take as long as a small convolution. To gather what they depend on, that is the options
and the tensors' shapes, types and devices, takes a quarter of that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Key = tuple[Any, ...]

_MOST = 4096
_STRIDED = torch.strided
_results: dict[Key, tuple[Any, ...]] = {}


def find(
    op: str,
    input: Tensor,
    weight: Tensor,
    routing_weights: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    options: tuple[Any, ...],
) -> tuple[Key | None, Any]:
    """Return a key for `remember`, and what the checks of such a call returned when it passed.

    Both are None for arguments that only the checks can judge; nothing is assumed of them here.
    ``options`` are those of `_arguments.GivenOptions`, in that order.
    """
    if torch.compiler.is_compiling():
        return None, None
    routing_shape = routing_dtype = bias_shape = bias_dtype = added_shape = added_dtype = None
    try:
        device = input.device
        if input.layout is not _STRIDED:
            return None, None
        if weight.device != device or weight.layout is not _STRIDED:
            return None, None
        if routing_weights is not None:
            if routing_weights.device != device or routing_weights.layout is not _STRIDED:
                return None, None
            routing_shape, routing_dtype = routing_weights.shape, routing_weights.dtype
        if bias is not None:
            if bias.device != device or bias.layout is not _STRIDED:
                return None, None
            bias_shape, bias_dtype = bias.shape, bias.dtype
        if residual is not None:
            if residual.device != device or residual.layout is not _STRIDED:
                return None, None
            added_shape, added_dtype = residual.shape, residual.dtype
        shapes = (input.shape, weight.shape, routing_shape, bias_shape, added_shape)
        dtypes = (input.dtype, weight.dtype, routing_dtype, bias_dtype, added_dtype)
        key = (op, shapes, dtypes, options)
        found = _results.get(key)
    # No tensor; sizes that are symbols; a list; a nested tensor.
    except (AttributeError, TypeError, RuntimeError):
        return None, None
    if found is None:
        return key, None
    result, stride, padding, dilation, groups, upscale_factor = found
    # 1 == 1.0 == True, but not each of them passes: it has to be the very same object.
    same = (
        stride is options[0]
        and padding is options[1]
        and dilation is options[2]
        and groups is options[3]
        and upscale_factor is options[4]
    )
    return key, result if same else None


def remember(key: Key | None, options: tuple[Any, ...], result: Any) -> None:
    """Keep what the checks returned for a call that `find` gave this key."""
    if key is None:
        return
    # While torch.jit traces, sizes are tensors.
    if any(type(size) is not int for shape in key[1] if shape is not None for size in shape):
        return
    if len(_results) >= _MOST:
        _results.clear()
    _results[key] = (result, *options[:5])
