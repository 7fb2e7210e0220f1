"""The CUDA operators for CPU tensors: csrc/ops/*_cuda.cpp on the emulated kernels.

They carry the namespace ``dasr_ops_emulated``. `backend` makes them a backend that `use_backend`
takes by the name "emulated", so that whatever is tried on a backend from Python can be tried on
the CUDA kernels without a device.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import build as kernels

NAMESPACE = "dasr_ops_emulated"
_TORCH = Path(torch.__file__).parent


def _flags() -> list[str]:
    return [
        "-std=c++20",
        "-O1",
        "-fPIC",
        "-fvisibility=hidden",
        "-DDASR_EMULATION",
        "-DTORCH_TARGET_VERSION=0x020b000000000000ULL",
        f"-I{kernels.CSRC}",
        "-isystem",
        str(_TORCH / "include"),
    ]


@cache
def load() -> None:
    """Compiles the operators and registers them, once."""
    variant = os.environ.get("DASR_EMULATION_VARIANT", "plain")
    torch.ops.load_library(str(kernels.build_operators(variant, _flags(), _TORCH)))


class EmulatedBackend:
    """The CUDA backend, its kernels run by the emulation."""

    name = "emulated"
    description = "CUDA kernels, run on the CPU"
    mixes_inside = False
    reason: str | None = None

    def __init__(self) -> None:
        from dasr_ops._library import Library

        library = Library(NAMESPACE, define=True, cuda_device="cpu")
        load()
        self.aggregate_experts = library.aggregate_experts
        self.aggregate_experts_stack = library.aggregate_experts_stack
        self.dynamic_conv2d = library.dynamic_conv2d
        self.per_sample_conv2d = library.per_sample_conv2d

    def refuses(self, input: Tensor) -> str | None:
        """Return why the tensor cannot be taken, or None."""
        return None if input.device.type == "cpu" else "it takes CPU tensors"


@cache
def backend() -> Any:
    """Registers the backend under its name, once."""
    from dasr_ops import _backends

    emulated = EmulatedBackend()
    _backends._BACKENDS[emulated.name] = emulated
    return emulated
