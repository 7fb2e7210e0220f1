"""The operators as Triton kernels: for machines without nvcc, and for GPUs of AMD.

Nothing here imports Triton before the first call. Under ``TRITON_INTERPRET=1``, which has to be set
before anything imports Triton, the kernels run on CPU tensors: slowly, for tests.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..._library import SCHEMAS, Library

NAMESPACE = "dasr_ops_triton"
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def _late(name: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        return getattr(import_module(__name__ + ".operators"), name)(*args)

    return call


def _register() -> torch.library.Library:
    implementations = torch.library.Library(NAMESPACE, "IMPL")
    for name in SCHEMAS:
        for key in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
            implementations.impl(name, _late(name), key)
    return implementations


class TritonBackend:
    """Triton kernels for CUDA tensors; where they are interpreted, for CPU tensors."""

    name = "triton"
    mixes_inside = False

    def __init__(self) -> None:
        device = "cpu" if INTERPRETED else "cuda"
        library = Library(NAMESPACE, define=True, cuda_device=device)
        self._implementations = _register()
        self.description = "Triton kernels" + (", interpreted on the CPU" if INTERPRETED else "")
        self.aggregate_experts = library.aggregate_experts
        self.aggregate_experts_stack = library.aggregate_experts_stack
        self.dynamic_conv2d = library.dynamic_conv2d
        self.per_sample_conv2d = library.per_sample_conv2d

    @cached_property
    def reason(self) -> str | None:
        """Why the backend is not available; asked for late, since asking starts CUDA."""
        return _reason()

    def refuses(self, input: Tensor) -> str | None:
        """Return why the tensor cannot be taken, or None."""
        device = "cpu" if INTERPRETED else "cuda"
        if input.device.type != device:
            return f"it takes {device.upper()} tensors, not {input.device}"
        if input.dtype == torch.float64:
            return "it takes float32, bfloat16 and float16, not float64"
        return None


def _reason() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if INTERPRETED:
        return None
    if not torch.cuda.is_available():
        return "no GPU that this torch can use"
    capability = torch.cuda.get_device_capability()
    if torch.version.hip is None and capability < (8, 0):
        return "the kernels need compute capability 8.0, the device has {}.{}".format(*capability)
    return None
