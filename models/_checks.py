"""Argument checks shared by the networks and the inference engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_positive_int(owner: str, name: str, value: Any) -> int:
    """Return ``value`` if it is an int >= 1; else raise TypeError or ValueError naming it."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{owner}: {name}: expected an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{owner}: {name}: expected at least 1, got {value}")
    return value


def check_images(owner: str, name: str, value: Any, channels: int) -> None:
    """Raise unless ``value`` is a floating-point tensor [B, ``channels``, H, W], H and W >= 1."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{owner}: {name}: expected a Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{owner}: {name}: expected a floating-point tensor, got {value.dtype}")
    if value.dim() != 4 or value.shape[1] != channels:
        raise ValueError(
            f"{owner}: {name}: expected [B, {channels}, H, W], got {list(value.shape)}"
        )
    if value.shape[2] < 1 or value.shape[3] < 1:
        raise ValueError(
            f"{owner}: {name}: expected at least one row and one column, got {list(value.shape)}"
        )


def check_rows(owner: str, name: str, value: Any, batch: int, columns: int) -> None:
    """Raise unless ``value`` is a floating-point tensor [``batch``, ``columns``]."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{owner}: {name}: expected a Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{owner}: {name}: expected a floating-point tensor, got {value.dtype}")
    if tuple(value.shape) != (batch, columns):
        raise ValueError(f"{owner}: {name}: expected [{batch}, {columns}], got {list(value.shape)}")


def kaiming_normal_(weight: Tensor, negative_slope: float, scale: float = 1.0) -> None:
    """Fill one kernel [O, I, kh, kw] with Kaiming's normal initialisation times ``scale``."""
    if weight.is_meta:  # nothing to fill, and PyTorch would import its compiler for it: a second
        return
    with torch.no_grad():
        torch.nn.init.kaiming_normal_(weight, a=negative_slope)
        weight.mul_(scale)
