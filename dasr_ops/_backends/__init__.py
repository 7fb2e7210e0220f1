"""The implementations of the operators, and the choice between them.

A backend is an object with ``aggregate_experts``, ``aggregate_experts_stack``, ``dynamic_conv2d``
and ``per_sample_conv2d`` (checked arguments in, tensors out), a ``reason`` why it is not available
(None if it is), ``refuses(input)``: why it cannot take a call, or None, and ``mixes_inside``:
whether ``dynamic_conv2d`` is better than mixing the experts of all layers before convolving.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .._autograd import is_transformed
from .._extension import extension
from .._library import Library
from . import eager
from .triton import TritonBackend

ENVIRONMENT_VARIABLE = "DASR_OPS_BACKEND"


class EagerBackend:
    """Compositions of ATen operators: every device, every dtype, any order of differentiation."""

    name = "eager"
    description = "pure PyTorch, every device"
    mixes_inside = False
    reason: str | None = None

    aggregate_experts = staticmethod(eager.aggregate_experts)
    aggregate_experts_stack = staticmethod(eager.aggregate_experts_stack)
    dynamic_conv2d = staticmethod(eager.dynamic_conv2d)
    per_sample_conv2d = staticmethod(eager.per_sample_conv2d)

    def refuses(self, input: Tensor) -> str | None:
        """Return None: everything is accepted."""
        return None


class CpuBackend:
    """C++ kernels for CPU tensors."""

    name = "cpu"
    description = "C++ kernels for CPU tensors"
    # It mixes on the way to the transform; mixed before, kernels would take a trip through memory.
    mixes_inside = True

    def __init__(self, library: Library) -> None:
        self.reason = extension.reason
        if extension.loaded:
            self.description += f" ({extension.info['cpu_isa']})"
        self.aggregate_experts = library.aggregate_experts
        self.aggregate_experts_stack = library.aggregate_experts_stack
        self.dynamic_conv2d = library.dynamic_conv2d
        self.per_sample_conv2d = library.per_sample_conv2d

    def refuses(self, input: Tensor) -> str | None:
        """Return why the tensor cannot be taken, or None."""
        return None if input.device.type == "cpu" else f"it takes CPU tensors, not {input.device}"


class CudaBackend:
    """CUDA C++ kernels for CUDA tensors."""

    name = "cuda"
    description = "CUDA C++ kernels"
    mixes_inside = False

    def __init__(self, library: Library) -> None:
        self.aggregate_experts = library.aggregate_experts
        self.aggregate_experts_stack = library.aggregate_experts_stack
        self.dynamic_conv2d = library.dynamic_conv2d
        self.per_sample_conv2d = library.per_sample_conv2d

    @cached_property
    def reason(self) -> str | None:
        """Why the backend is not available; asked for late, since asking starts CUDA."""
        return _cuda_reason()

    def refuses(self, input: Tensor) -> str | None:
        """Return why the tensor cannot be taken, or None."""
        return None if input.device.type == "cuda" else f"it takes CUDA tensors, not {input.device}"


def _cuda_reason() -> str | None:
    if extension.reason is not None:
        return extension.reason
    cuda = extension.info.get("cuda")
    if cuda is None:
        return "the extension was built without CUDA (no nvcc at build time)"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device, or its driver does not work with this torch"
    major, minor = (int(part) for part in cuda.split(".")[:2])
    driver = extension.cuda_driver_version()
    if driver is not None and driver // 1000 < major:
        return (
            f"the driver supports CUDA {driver // 1000}.{driver % 1000 // 10}, "
            f"the kernels were built with {major}.{minor}"
        )
    archs = (extension.info.get("cuda_archs") or "").split()
    capability = torch.cuda.get_device_capability()
    if not any(_runs_on(arch, capability) for arch in archs):
        return (
            f"the kernels were built for {', '.join(archs)}, the device is "
            f"sm_{capability[0]}{capability[1]}; set DASR_OPS_CUDA_ARCHS and build again"
        )
    return None


def _runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code for ``arch`` ("80", "90a", "90+ptx") runs on a device."""
    match = re.fullmatch(r"(\d+)(\d)([af]?)(\+ptx)?", arch)
    if match is None:
        return False
    target = (int(match[1]), int(match[2]))
    if match[3] == "a":
        return capability == target
    same_major = capability[0] == target[0] and capability[1] >= target[1]
    return same_major or (match[4] is not None and not match[3] and capability >= target)


def constant(function: Callable[..., Any]) -> Callable[..., Any]:
    """Do what `torch.compiler.assume_constant_result` does, which imports torch._dynamo.

    That takes as long as importing torch, in each process, whether anything is compiled or not.
    """
    if "torch._dynamo" in sys.modules:
        return torch.compiler.assume_constant_result(function)
    function._dynamo_marked_constant = True  # a test holds this to be what the other does
    return function


@constant
def _unavailable(name: str) -> str | None:
    return _BACKENDS[name].reason


_library = Library("dasr_ops", define=not extension.loaded)
_BACKENDS: dict[str, Any] = {
    backend.name: backend
    for backend in (CpuBackend(_library), CudaBackend(_library), TritonBackend(), EagerBackend())
}
_CPU = _BACKENDS["cpu"]
_ORDER = {"cpu": ("cpu", "eager"), "cuda": ("cuda", "triton", "eager")}
_requested: str | None = os.environ.get(ENVIRONMENT_VARIABLE) or None


def backends() -> dict[str, str]:
    """Report the backends: for each name, what it is, or why it is not available.

    Returns:
        A dict from name to ``"available: ..."`` or ``"unavailable: <reason>"``.
    """
    return {
        name: (
            f"available: {backend.description}"
            if backend.reason is None
            else f"unavailable: {backend.reason}"
        )
        for name, backend in _BACKENDS.items()
    }


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run every operator inside the ``with`` block on one backend.

    The environment variable ``DASR_OPS_BACKEND``, read at import, does the same for a process. The
    choice is one for all threads.

    Args:
        name: a key of `backends`, or None for the automatic choice by device, dtype and shape.

    Raises:
        ValueError: there is no backend of that name.
        RuntimeError: the backend is not available; or, from an operator inside the block, it
            cannot take the tensors given, or, but for eager, runs under a transform of `torch.func`
            or forward-mode differentiation.
    """
    global _requested
    if name is not None:
        _requested_backend(name)
    previous = _requested
    _requested = name
    try:
        yield
    finally:
        _requested = previous


def choose(op: str, input: Tensor) -> Any:
    """Return the backend that runs ``op`` on ``input``."""
    # Compositions of ATen operators have every rule that transforms ask for, compiled or not.
    transformed = is_transformed()
    if _requested is not None:
        backend = _requested_backend(_requested)
        refusal = backend.refuses(input)
        if transformed and backend.name != "eager":
            refusal = "transforms of torch.func and forward-mode differentiation need 'eager'"
        if refusal is not None:
            raise RuntimeError(f"{op}: backend {_requested!r} was asked for, but {refusal}")
        return backend
    if transformed:
        return _BACKENDS["eager"]
    if not torch.compiler.is_compiling() and input.is_cpu and _CPU.reason is None:
        return _CPU  # what the rest comes to, in half the time
    for name in _ORDER.get(input.device.type, ("eager",)):
        if _unavailable(name) is None and _BACKENDS[name].refuses(input) is None:
            return _BACKENDS[name]
    return _BACKENDS["eager"]


def _requested_backend(name: str) -> Any:
    if name not in _BACKENDS:
        raise ValueError(
            f"backend: expected one of {', '.join(map(repr, _BACKENDS))}, got {name!r}"
        )
    reason = _unavailable(name)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} was asked for, but {reason}")
    return _BACKENDS[name]
