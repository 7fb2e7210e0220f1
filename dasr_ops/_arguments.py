"""Argument checks shared by all operators: normalise, or say what is wrong.

Every message names the argument, what was expected and what came. Checks run before any kernel
starts and work on symbolic sizes, so that they hold under ``torch.compile`` and ``torch.export``.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _accepted as accepted

Size2 = int | Sequence[int]


class ConvOptions(NamedTuple):
    """Everything about a convolution that is not a tensor, normalised.

    ``negative_slope`` is None without an activation and 0.0 for ReLU.
    """

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]  # top, bottom, left, right
    dilation: tuple[int, int]
    groups: int
    negative_slope: float | None
    residual_scale: float
    upscale_factor: int


GivenOptions = tuple[Size2, Size2 | str, Size2, int, int, str | None, float, float]
"""Options as callers give them: stride, padding, dilation, groups, upscale_factor, activation,
negative_slope, residual_scale."""


def check_aggregate(op: str, weight: Tensor, routing_weights: Tensor, dtype: torch.dtype) -> None:
    """Check the arguments of ``aggregate_experts``."""
    _check_aggregated(op, "weight", weight, routing_weights)
    _check_dtype(op, "dtype", dtype)


def check_aggregate_stack(
    op: str, weights: Sequence[Tensor], routing_weights: Tensor, dtype: torch.dtype | None
) -> None:
    """Check the arguments of ``aggregate_experts_stack``."""
    if isinstance(weights, Tensor) or not isinstance(weights, Sequence):
        raise TypeError(
            f"{op}: weights: expected a sequence of Tensors, got {type(weights).__name__}"
        )
    _check_tensor(op, "routing_weights", routing_weights)
    for i, weight in enumerate(weights):
        _check_aggregated(op, f"weights[{i}]", weight, routing_weights)
    if dtype is not None:
        _check_dtype(op, "dtype", dtype)


def check_dynamic_conv2d(
    op: str,
    input: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    options: GivenOptions,
) -> ConvOptions:
    """Check the arguments of ``dynamic_conv2d`` and normalise its options."""
    key, known = accepted.find(op, input, weight, routing_weights, bias, residual, options)
    if known is not None:
        return known
    _check_tensor(op, "input", input)
    _check_tensor(op, "weight", weight)
    _check_tensor(op, "routing_weights", routing_weights)
    if weight.dim() != 5:
        raise ValueError(
            f"{op}: weight: expected a 5-D tensor [K, O, I/groups, kh, kw], got {_shape(weight)}"
        )
    _check_experts(op, "weight", weight)
    _check_input(op, input)
    _check_routing(op, routing_weights, weight.shape[0])
    if routing_weights.shape[0] != input.shape[0]:
        raise ValueError(
            f"{op}: routing_weights: expected one row for each of the {input.shape[0]} images "
            f"of input, got {_shape(routing_weights)}"
        )
    if bias is not None:
        _check_tensor(op, "bias", bias)
        check_shape(op, "bias", bias, "[K, O]", (weight.shape[0], weight.shape[1]))
    _check_devices(op, input=input, weight=weight, routing_weights=routing_weights, bias=bias)
    result = _check_convolution(op, input, weight, residual, options)
    accepted.remember(key, options, result)
    return result


def check_per_sample_conv2d(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    options: GivenOptions,
) -> ConvOptions:
    """Check the arguments of ``per_sample_conv2d`` and normalise its options."""
    key, known = accepted.find(op, input, weight, None, bias, residual, options)
    if known is not None:
        return known
    _check_tensor(op, "input", input)
    _check_tensor(op, "weight", weight)
    if weight.dim() != 5:
        raise ValueError(
            f"{op}: weight: expected a 5-D tensor [B, O, I/groups, kh, kw], got {_shape(weight)}"
        )
    _check_input(op, input)
    if weight.shape[0] != input.shape[0]:
        raise ValueError(
            f"{op}: weight: expected one kernel for each of the {input.shape[0]} images of input, "
            f"got {_shape(weight)}"
        )
    if bias is not None:
        _check_tensor(op, "bias", bias)
        check_shape(op, "bias", bias, "[B, O]", (weight.shape[0], weight.shape[1]))
    _check_devices(op, input=input, weight=weight, bias=bias)
    result = _check_convolution(op, input, weight, residual, options)
    accepted.remember(key, options, result)
    return result


def output_size(
    size: int, kernel: int, stride: int, pad_before: int, pad_after: int, dilation: int
) -> int:
    """Return the length of a convolution's output along one dimension."""
    return (size + pad_before + pad_after - dilation * (kernel - 1) - 1) // stride + 1


def output_shape(input: Tensor, weight: Tensor, options: ConvOptions) -> tuple[int, ...]:
    """Return the shape [B, O/r^2, H'*r, W'*r] of the result; weight is [*, O, I/g, kh, kw]."""
    top, bottom, left, right = options.padding
    r = options.upscale_factor
    height = output_size(
        input.shape[2], weight.shape[3], options.stride[0], top, bottom, options.dilation[0]
    )
    width = output_size(
        input.shape[3], weight.shape[4], options.stride[1], left, right, options.dilation[1]
    )
    return (input.shape[0], weight.shape[1] // (r * r), height * r, width * r)


def pair(op: str, name: str, value: Any, minimum: int) -> tuple[int, int]:
    """Return ``value`` as two integers >= ``minimum``, as torch.nn does for sizes."""
    if type(value) is int and value >= minimum:  # the common case
        return (value, value)
    items = (value, value) if isinstance(value, int) else value
    if isinstance(items, str) or not isinstance(items, Sequence):
        raise TypeError(f"{op}: {name}: expected an int or a pair of ints, got {value!r}")
    if len(items) == 1:
        items = (items[0], items[0])
    if len(items) != 2 or not all(isinstance(i, int) for i in items):
        raise TypeError(f"{op}: {name}: expected an int or a pair of ints, got {value!r}")
    if min(items) < minimum:
        raise ValueError(f"{op}: {name}: expected values >= {minimum}, got {value!r}")
    return (items[0], items[1])


def normalize_padding(
    op: str,
    padding: Any,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of an int, a pair, 'same' or 'valid'.

    An even total of 'same' padding is split evenly; an odd one puts the extra row or column at the
    end, as ``torch.nn.functional.conv2d`` does.
    """
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0, 0, 0)
        if padding != "same":
            raise ValueError(
                f"{op}: padding: expected an int, a pair, 'same' or 'valid', got {padding!r}"
            )
        if stride != (1, 1):
            raise ValueError(f"{op}: padding: 'same' needs stride 1, got stride {stride}")
        total_h = dilation[0] * (kernel_size[0] - 1)
        total_w = dilation[1] * (kernel_size[1] - 1)
        top, left = total_h // 2, total_w // 2
        return (top, total_h - top, left, total_w - left)
    height, width = pair(op, "padding", padding, 0)
    return (height, height, width, width)


def activation_slope(op: str, activation: str | None, negative_slope: float) -> float | None:
    """Return the slope for negative values: None (no activation), 0 (ReLU) or the leaky one."""
    if activation is None:
        return None
    if activation == "relu":
        return 0.0
    if activation == "leaky_relu":
        return _number(op, "negative_slope", negative_slope)
    raise ValueError(f"{op}: activation: expected None, 'relu' or 'leaky_relu', got {activation!r}")


def _number(op: str, name: str, value: Any) -> float:
    # A tensor would be read once, and neither be differentiated nor looked at again.
    if not isinstance(value, (int, float)) and not isinstance(value, Real):
        raise TypeError(f"{op}: {name}: expected a number, got {type(value).__name__}")
    return float(value)


def _check_convolution(
    op: str, input: Tensor, weight: Tensor, residual: Tensor | None, given: GivenOptions
) -> ConvOptions:
    stride, padding, dilation, groups, upscale_factor, activation, negative_slope, scale = given
    kernel_size = (weight.shape[3], weight.shape[4])
    if min(kernel_size) < 1:
        raise ValueError(f"{op}: weight: expected a kernel of at least 1x1, got {_shape(weight)}")
    if weight.shape[2] < 1:
        raise ValueError(f"{op}: weight: expected at least one channel, got {_shape(weight)}")
    stride = pair(op, "stride", stride, 1)
    dilation = pair(op, "dilation", dilation, 1)
    padding = normalize_padding(op, padding, kernel_size, stride, dilation)
    if not isinstance(groups, int):
        raise TypeError(f"{op}: groups: expected an int, got {groups!r}")
    if groups < 1:
        raise ValueError(f"{op}: groups: expected at least 1, got {groups}")
    out_channels = weight.shape[1]
    if out_channels % groups != 0:
        raise ValueError(
            f"{op}: groups: expected a divisor of the {out_channels} output channels of weight "
            f"{_shape(weight)}, got {groups}"
        )
    if input.shape[1] != weight.shape[2] * groups:
        raise ValueError(
            f"{op}: input: expected {weight.shape[2] * groups} channels (weight {_shape(weight)}, "
            f"groups {groups}), got {_shape(input)}"
        )
    if not isinstance(upscale_factor, int):
        raise TypeError(f"{op}: upscale_factor: expected an int, got {upscale_factor!r}")
    if upscale_factor < 1:
        raise ValueError(f"{op}: upscale_factor: expected at least 1, got {upscale_factor}")
    if out_channels % (upscale_factor * upscale_factor) != 0:
        raise ValueError(
            f"{op}: upscale_factor: its square must divide the {out_channels} output channels, "
            f"got {upscale_factor}"
        )
    slope = activation_slope(op, activation, negative_slope)
    scale = _number(op, "residual_scale", scale)
    result = ConvOptions(stride, padding, dilation, groups, slope, scale, upscale_factor)
    padded = (
        input.shape[2] + padding[0] + padding[1],
        input.shape[3] + padding[2] + padding[3],
    )
    extent = (dilation[0] * (kernel_size[0] - 1) + 1, dilation[1] * (kernel_size[1] - 1) + 1)
    if padded[0] < extent[0] or padded[1] < extent[1]:
        raise ValueError(
            f"{op}: input: too small: {padded[0]}x{padded[1]} after padding, but the kernel "
            f"covers {extent[0]}x{extent[1]}"
        )
    if residual is not None:
        _check_tensor(op, "residual", residual)
        check_shape(op, "residual", residual, "as output", output_shape(input, weight, result))
        _check_devices(op, input=input, residual=residual)
    return result


def _check_input(op: str, input: Tensor) -> None:
    if input.dim() != 4:
        raise ValueError(f"{op}: input: expected a 4-D tensor [B, I, H, W], got {_shape(input)}")


def _check_aggregated(op: str, name: str, weight: Tensor, routing_weights: Tensor) -> None:
    _check_tensor(op, name, weight)
    _check_tensor(op, "routing_weights", routing_weights)
    if weight.dim() < 1:
        raise ValueError(
            f"{op}: {name}: expected [K, ...] with at least one dimension, got {_shape(weight)}"
        )
    _check_experts(op, name, weight)
    _check_routing(op, routing_weights, weight.shape[0])
    _check_devices(op, **{name: weight, "routing_weights": routing_weights})


def _check_experts(op: str, name: str, weight: Tensor) -> None:
    if weight.shape[0] < 1:
        raise ValueError(f"{op}: {name}: expected at least one expert, got {_shape(weight)}")


def _check_routing(op: str, routing_weights: Tensor, num_experts: int) -> None:
    if routing_weights.dim() != 2 or routing_weights.shape[1] != num_experts:
        raise ValueError(
            f"{op}: routing_weights: expected [B, K] with K = {num_experts} experts, "
            f"got {_shape(routing_weights)}"
        )


def check_shape(
    op: str, name: str, tensor: Tensor, meaning: str, expected: tuple[int, ...]
) -> None:
    if tensor.dim() != len(expected) or tuple(tensor.shape) != tuple(expected):
        raise ValueError(
            f"{op}: {name}: expected {meaning} = {list(expected)}, got {_shape(tensor)}"
        )


def _check_tensor(op: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name}: expected a Tensor, got {type(value).__name__}")
    _check_dtype(op, name, value.dtype)
    if value.layout != torch.strided:
        raise TypeError(f"{op}: {name}: expected a dense tensor, got layout {value.layout}")
    if value.is_nested:
        raise TypeError(f"{op}: {name}: expected a dense tensor, got a nested one")


def _check_dtype(op: str, name: str, dtype: torch.dtype) -> None:
    if not dtype.is_floating_point or dtype.itemsize < 2:
        raise TypeError(
            f"{op}: {name}: expected float64, float32, bfloat16 or float16, got {dtype}"
        )


def _check_devices(op: str, **tensors: Tensor | None) -> None:
    first = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if first is None:
            first = (name, tensor.device)
        elif tensor.device != first[1]:
            raise ValueError(
                f"{op}: {name}: expected on {first[1]} like {first[0]}, got {tensor.device}"
            )


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
