"""Calls the emulated kernels with torch tensors or numpy arrays, without importing torch itself:
that takes long under AddressSanitizer."""

from __future__ import annotations

import os
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from . import build

if TYPE_CHECKING:
    import torch

    Array = torch.Tensor | np.ndarray


def module() -> ModuleType:
    """The variant named by DASR_EMULATION_VARIANT, `plain` by default."""
    return build.load(os.environ.get("DASR_EMULATION_VARIANT", "plain"))


def address(array: Array | None) -> int:
    """Where the first element of a contiguous array lies."""
    if array is None:
        return 0
    if isinstance(array, np.ndarray):
        assert array.flags.c_contiguous
        return array.ctypes.data
    assert array.is_contiguous()
    return array.data_ptr()


def dtype_name(array: Array) -> str:
    """The name that torch, numpy and the kernels' DType share."""
    return str(array.dtype).removeprefix("torch.")


def run(name: str, source: Array | None, result: Array | None, **options: object) -> None:
    """Runs one of the kernels in probes.cu."""
    module().run_probe(name, address(source), address(result), **options)


def aggregate_experts(
    weight: Array, routing: Array, out: Array, emulation: ModuleType | None = None
) -> None:
    """Fills out [B, N] with routing [B, K] @ weight [K, N]."""
    m = emulation or module()
    p = m.AggregateExpertsParams()
    p.batch, p.experts = routing.shape
    p.numel = weight.shape[1]
    p.weight, p.weight_type = address(weight), getattr(m.DType, dtype_name(weight))
    p.routing, p.routing_type = address(routing), getattr(m.DType, dtype_name(routing))
    p.out, p.out_type = address(out), getattr(m.DType, dtype_name(out))
    m.aggregate_experts(p)


def aggregate_experts_backward(
    weight: Array,
    routing: Array,
    grad: Array,
    grad_weight: Array | None,
    grad_routing: Array | None,
    emulation: ModuleType | None = None,
) -> int:
    """Fills the gradients that are not None; returns the size of the workspace.

    The workspace starts as NaN and is followed by bytes that must stay as they are.
    """
    m = emulation or module()
    p = m.AggregateExpertsBackwardParams()
    p.batch, p.experts = routing.shape
    p.numel = weight.shape[1]
    p.weight, p.weight_type = address(weight), getattr(m.DType, dtype_name(weight))
    p.routing, p.routing_type = address(routing), getattr(m.DType, dtype_name(routing))
    p.grad, p.grad_type = address(grad), getattr(m.DType, dtype_name(grad))
    p.grad_weight, p.grad_routing = address(grad_weight), address(grad_routing)
    size = m.aggregate_experts_backward_workspace_size(p)
    guard = 64
    workspace = np.full(size + guard, 0xFF, np.uint8)
    workspace[size:] = 0xA5
    p.workspace = address(workspace) if size else 0
    m.aggregate_experts_backward(p)
    assert (workspace[size:] == 0xA5).all(), "the kernel wrote beyond its workspace"
    used = workspace[:size].reshape(-1, 4) != 0xFF
    assert used.any(axis=1).all(), "a part of the workspace was not used"
    return size
