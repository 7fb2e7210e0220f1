"""Fused dynamic convolution for PyTorch, and a complete DASR super-resolution stack on top of it.

``dynamic_conv2d`` and `DynamicConv2d` convolve each image of a batch with its own weighted sum of
expert kernels. ``dasr_ops.models`` holds the networks, ``dasr_ops.train`` the training.
"""

from __future__ import annotations

from ._backends import backends, use_backend
from .conv import DynamicConv2d, FusedConv2d
from .functional import (
    aggregate_experts,
    aggregate_experts_stack,
    dynamic_conv2d,
    per_sample_conv2d,
)
from .precision import get_cpu_precision, set_cpu_precision
from .version import __version__

__all__ = [
    "DynamicConv2d",
    "FusedConv2d",
    "__version__",
    "aggregate_experts",
    "aggregate_experts_stack",
    "backends",
    "dynamic_conv2d",
    "get_cpu_precision",
    "per_sample_conv2d",
    "set_cpu_precision",
    "use_backend",
]
