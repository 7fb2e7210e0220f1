"""Argument checks shared by the losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def wide(owner: str, name: str, value: Any) -> Tensor:
    """Return ``value`` in float32, float64 as it is: what sums of losses are formed in.

    Raises:
        TypeError: it is not a floating-point tensor.
        ValueError: it is empty; the mean of nothing is NaN.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{owner}: {name}: expected a Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{owner}: {name}: expected a floating-point tensor, got {value.dtype}")
    if value.numel() == 0:
        raise ValueError(f"{owner}: {name}: expected at least one value, got {list(value.shape)}")
    return value if value.dtype == torch.float64 else value.float()


def wide_pair(owner: str, names: tuple[str, str], first: Any, second: Any) -> tuple[Tensor, Tensor]:
    """Return two tensors of one shape as `wide` does.

    Raises:
        TypeError: one is not a floating-point tensor.
        ValueError: one is empty, or the shapes differ: broadcasting would hide a mistake.
    """
    first, second = wide(owner, names[0], first), wide(owner, names[1], second)
    if first.shape != second.shape:
        raise ValueError(
            f"{owner}: {names[1]}: expected the shape of {names[0]}, {list(first.shape)}, "
            f"got {list(second.shape)}"
        )
    return first, second


def one_of(owner: str, name: str, value: Any, choices: Any) -> None:
    """Raise ValueError unless ``value`` is among ``choices``."""
    if value not in choices:
        raise ValueError(f"{owner}: {name}: expected one of {', '.join(choices)}, got {value!r}")
