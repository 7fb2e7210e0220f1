"""The operators as functions: arguments checked, autocast applied, a backend chosen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _arguments as arguments
from ._arguments import Size2
from ._autograd import is_transformed
from ._backends import choose
from ._backends.eager import AUTOCAST_DEVICES, memory_format


def aggregate_experts(
    weight: Tensor, routing_weights: Tensor, *, dtype: torch.dtype | None = None
) -> Tensor:
    r"""Mix K experts into one tensor for each of B samples.

    .. math:: \text{out}[b] = \sum_k \text{routing\_weights}[b, k] \, \text{weight}[k]

    Sums are formed in float32 (float64 if an argument is float64) and rounded once. The compiled
    backends do not read experts whose routing weight is exactly 0, so a top-k gate costs k, not K.

    Args:
        weight: experts, [K, ...], of any floating dtype.
        routing_weights: [B, K], any real numbers; no softmax is applied.
        dtype: of the result; that of ``weight`` by default.

    Returns:
        [B, ...].

    Raises:
        TypeError: an argument is not a dense floating-point tensor, or ``dtype`` not such a type.
        ValueError: shapes or devices do not fit.
    """
    dtype = dtype or weight.dtype
    arguments.check_aggregate("aggregate_experts", weight, routing_weights, dtype)
    backend = choose("aggregate_experts", weight)
    return backend.aggregate_experts(weight, routing_weights, dtype)


def aggregate_experts_stack(
    weights: Sequence[Tensor], routing_weights: Tensor, *, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Mix the experts of all layers of a stack that share their routing weights.

    The same as `aggregate_experts` of each of them, at the cost of one call. On CUDA the kernels of
    convolutions, [B, O, I/groups, kh, kw], lie in memory as `per_sample_conv2d` reads them.

    Args:
        weights: experts of the layers, each [K, ...] of any floating dtype: kernels and biases.
        routing_weights: [B, K], any real numbers; no softmax is applied.
        dtype: of the results; that of the first of ``weights`` by default.

    Returns:
        A tensor [B, ...] for each of ``weights``.

    Raises:
        TypeError: an argument is not a dense floating-point tensor, ``weights`` not a sequence of
            such, or ``dtype`` not such a type.
        ValueError: shapes or devices do not fit.
    """
    op = "aggregate_experts_stack"
    arguments.check_aggregate_stack(op, weights, routing_weights, dtype)
    if not weights:
        return []
    backend = choose(op, routing_weights)
    return backend.aggregate_experts_stack(
        list(weights), routing_weights, dtype or weights[0].dtype
    )


def dynamic_conv2d(
    input: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    padding: Size2 | str = 0,
    dilation: Size2 = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    residual_scale: float = 1.0,
    upscale_factor: int = 1,
) -> Tensor:
    r"""Convolve each image of a batch with its own mixture of K expert kernels.

    .. math::
        c_b &= \text{conv2d}\Big(x_b, \sum_k a_{bk} W_k\Big) + \sum_k a_{bk} \, \text{bias}_k \\
        y_b &= \text{act}(\text{pixel\_shuffle}(c_b, r))

    and with a residual ``y = residual + residual_scale * y``. ("CondConv", Yang et al. 2019;
    "Dynamic Convolution", Chen et al. 2020; DASR, Liang et al. 2022.)

    Experts and routing weights may be wider than ``input``: they are mixed in float32 and rounded
    once to the type of ``input``. Under autocast only ``input`` and ``residual`` are cast.

    Args:
        input: images, [B, I, H, W]. The result is channels_last if the channel stride is 1.
        weight: expert kernels, [K, O, I/groups, kh, kw].
        routing_weights: [B, K], any real numbers; no softmax is applied.
        bias: expert biases, [K, O].
        stride: an int or a pair.
        padding: an int, a pair, ``'valid'`` or ``'same'`` (with stride 1).
        dilation: an int or a pair.
        groups: must divide I and O.
        activation: None, ``'relu'`` or ``'leaky_relu'``.
        negative_slope: of ``'leaky_relu'``.
        residual: added to the result, of the result's shape.
        residual_scale: factor of what the residual is added to; ignored without ``residual``.
        upscale_factor: r of the pixel shuffle; r^2 must divide O.

    Returns:
        [B, O/r^2, H'*r, W'*r], of the type of ``input``.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes, devices or options do not fit. Both name the argument.
    """
    options = arguments.check_dynamic_conv2d(
        "dynamic_conv2d",
        input,
        weight,
        routing_weights,
        bias,
        residual,
        (
            stride,
            padding,
            dilation,
            groups,
            upscale_factor,
            activation,
            negative_slope,
            residual_scale,
        ),
    )
    input, residual = _autocast(input, residual)
    backend = choose("dynamic_conv2d", input)
    return backend.dynamic_conv2d(input, weight, routing_weights, bias, residual, options)


def per_sample_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    padding: Size2 | str = 0,
    dilation: Size2 = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    residual_scale: float = 1.0,
    upscale_factor: int = 1,
) -> Tensor:
    """Convolve image b of a batch with kernel ``weight[b]``.

    The building block behind `dynamic_conv2d`, for hyper-networks, modulated convolution and stacks
    that aggregate once for all their layers. Everything not listed is as in `dynamic_conv2d`.

    Args:
        input: images, [B, I, H, W].
        weight: one kernel for each image, [B, O, I/groups, kh, kw].
        bias: one bias for each image, [B, O].
        stride: an int or a pair.
        padding: an int, a pair, ``'valid'`` or ``'same'`` (with stride 1).
        dilation: an int or a pair.
        groups: must divide I and O.
        activation: None, ``'relu'`` or ``'leaky_relu'``.
        negative_slope: of ``'leaky_relu'``.
        residual: added to the result, of the result's shape.
        residual_scale: factor of what the residual is added to.
        upscale_factor: r of the pixel shuffle; r^2 must divide O.

    Returns:
        [B, O/r^2, H'*r, W'*r], of the type of ``input``.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes, devices or options do not fit. Both name the argument.
    """
    options = arguments.check_per_sample_conv2d(
        "per_sample_conv2d",
        input,
        weight,
        bias,
        residual,
        (
            stride,
            padding,
            dilation,
            groups,
            upscale_factor,
            activation,
            negative_slope,
            residual_scale,
        ),
    )
    input, residual = _autocast(input, residual)
    backend = choose("per_sample_conv2d", input)
    return backend.per_sample_conv2d(input, weight, bias, residual, options)


def mixes_inside(input: Tensor) -> bool:
    """Return whether `dynamic_conv2d` of ``input`` is better than mixing all experts before it."""
    return choose("dynamic_conv2d", input).mixes_inside


def best_memory_format(input: Tensor) -> torch.memory_format:
    """Return the format in which a network had better keep its features on the way from ``input``.

    That is channels_last for compiled kernels; in pure PyTorch, which folds batches into groups,
    the format of ``input``.
    """
    if choose("dynamic_conv2d", input).name == "eager":
        return memory_format(input)
    return torch.channels_last


def uses_cpu_kernels(input: Tensor) -> bool:
    """Return whether ``input`` is in the hands of the `cpu` backend, in a type of its kernels."""
    if is_transformed():  # where a backend that was asked for would refuse
        return False
    narrow = input.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return narrow and choose("dynamic_conv2d", input).name == "cpu"


def convolution_dtype(input: Tensor) -> torch.dtype:
    """Return the type that convolutions of ``input`` run in: its own, or that of autocast."""
    if input.dtype != torch.float64 and _autocasts(input):
        return torch.get_autocast_dtype(input.device.type)
    return input.dtype


def _autocasts(input: Tensor) -> bool:
    device_type = input.device.type
    return device_type in AUTOCAST_DEVICES and torch.is_autocast_enabled(device_type)


def _autocast(input: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if not _autocasts(input):
        return input, residual
    if residual is not None:
        residual = residual.to(convolution_dtype(residual))
    return input.to(convolution_dtype(input)), residual
