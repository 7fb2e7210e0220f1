"""Calls the emulated pack_experts with torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from .calls import module
from .conv_calls import dtype


@dataclass
class Layer:
    """A weight [K, O, I/g, taps] and the memory of its result [B, taps, rows, row_stride]."""

    weight: Tensor
    out: Tensor
    groups: int = 1
    dense: bool = False


def pack_experts(
    layers: Sequence[Layer],
    routing: Tensor | None,
    batch: int,
    out_type: torch.dtype,
    transposed: bool = False,
    m: ModuleType | None = None,
) -> None:
    """Fills the results of all layers."""
    m = m or module()
    p = m.PackExpertsParams()
    p.batch, p.out_type = batch, dtype(m, out_type)
    p.transposed = transposed
    if routing is not None:
        assert routing.is_contiguous()
        p.routing, p.routing_type = routing.data_ptr(), dtype(m, routing.dtype)
        p.experts = routing.shape[1]
    described = []
    for layer in layers:
        assert layer.weight.is_contiguous() and layer.out.stride(-1) == 1
        q = m.PackExpertsLayer()
        q.weight, q.weight_type = layer.weight.data_ptr(), dtype(m, layer.weight.dtype)
        q.out, q.dense, q.groups = layer.out.data_ptr(), layer.dense, layer.groups
        _, q.out_channels, q.group_in, q.taps = layer.weight.shape
        q.batch_stride, q.tap_stride, q.row_stride = layer.out.stride()[:3]
        described.append(q)
    m.pack_experts(p, described)
