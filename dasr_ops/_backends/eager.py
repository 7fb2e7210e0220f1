"""Pure PyTorch: the reference, and the backend for every device without kernels of its own.

All functions are compositions of differentiable ATen operators, so they serve any dtype and
device, any order of differentiation, ``torch.export`` and ``torch.func``. The batch is folded into
the groups of one convolution, the formulation of the official DASR code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._arguments import ConvOptions

# is_autocast_available would say this, but torch.compile cannot trace it before torch 2.12.
AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


def accumulate_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the type that sums over experts are formed in: float64 if any operand is."""
    if any(t.dtype == torch.float64 for t in tensors):
        return torch.float64
    return torch.float32


def memory_format(input: Tensor) -> torch.memory_format:
    """Return the format of an output: channels_last if the channel stride of ``input`` is 1."""
    _, channels, height, width = input.shape
    if input.stride(1) == 1 and channels > 1 and (height > 1 or width > 1):
        return torch.channels_last
    return torch.contiguous_format


def aggregate_experts(weight: Tensor, routing_weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum [K, ...] experts with [B, K] routing weights to [B, ...], rounded once to ``dtype``."""
    acc = accumulate_dtype(weight, routing_weights)
    with _without_autocast(weight):
        mixed = routing_weights.to(acc) @ _flatten(weight.to(acc))
    return mixed.to(dtype).reshape(routing_weights.shape[0], *weight.shape[1:])


def aggregate_experts_stack(
    weights: Sequence[Tensor], routing_weights: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """Aggregate the experts of several layers."""
    return [aggregate_experts(weight, routing_weights, dtype) for weight in weights]


def aggregate_experts_backward(
    grad_output: Tensor, weight: Tensor, routing_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients for experts [K, ...] and routing weights [B, K]."""
    acc = accumulate_dtype(grad_output, weight, routing_weights)
    grad = _flatten(grad_output.to(acc))
    with _without_autocast(weight):
        grad_weight = (routing_weights.to(acc).t() @ grad).reshape(weight.shape)
        grad_routing = grad @ _flatten(weight.to(acc)).t()
    return grad_weight.to(weight.dtype), grad_routing.to(routing_weights.dtype)


def dynamic_conv2d(
    input: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    options: ConvOptions,
) -> Tensor:
    """Aggregate the experts, then convolve each sample with its own kernel."""
    mixed = aggregate_experts(weight, routing_weights, input.dtype)
    mixed_bias = None if bias is None else aggregate_experts(bias, routing_weights, input.dtype)
    return per_sample_conv2d(input, mixed, mixed_bias, residual, options)


def per_sample_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    options: ConvOptions,
) -> Tensor:
    """Convolve sample b of ``input`` with ``weight[b]``, then apply what is fused behind it."""
    padded, padding = pad(input, options)
    weight = weight.to(input.dtype)
    bias = None if bias is None else bias.to(input.dtype)
    batch, out_channels = weight.shape[:2]
    rest = (options.stride, padding, options.dilation)
    with _without_autocast(input):
        if batch == 0:
            # An empty convolution with sums over no samples keeps every argument in the graph.
            zero_bias = None if bias is None else bias.sum(0)
            output = F.conv2d(padded, weight.sum(0), zero_bias, *rest, options.groups)
        elif batch == 1:
            first_bias = None if bias is None else bias[0]
            output = F.conv2d(padded, weight[0], first_bias, *rest, options.groups)
        else:
            output = F.conv2d(
                padded.flatten(0, 1).unsqueeze(0),
                weight.flatten(0, 1),
                None if bias is None else bias.flatten(),
                *rest,
                batch * options.groups,
            )
            output = output.reshape(batch, out_channels, *output.shape[2:])
    output = epilogue(output, residual, options)
    return output.contiguous(memory_format=memory_format(input))


def epilogue(output: Tensor, residual: Tensor | None, options: ConvOptions) -> Tensor:
    """Pixel shuffle, activation and scaled residual, in this order."""
    if options.upscale_factor > 1:
        output = F.pixel_shuffle(output, options.upscale_factor)
    if options.negative_slope is not None:
        # relu rather than a slope of 0: 0 * -inf is not a number.
        output = (
            F.leaky_relu(output, options.negative_slope)
            if options.negative_slope != 0.0
            else F.relu(output)
        )
    if residual is not None:
        output = residual.to(output.dtype) + options.residual_scale * output
    return output


def per_sample_conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    positive: Tensor | None,
    has_residual: bool,
    options: ConvOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients for input, per-sample weight and per-sample bias.

    ``positive`` is a bool tensor of the output's shape, True where the activation let its argument
    pass; None without an activation. Everything is differentiable with respect to ``grad_output``,
    ``input`` and ``weight``.
    """
    grad = grad_output.to(input.dtype)
    if has_residual and options.residual_scale != 1.0:
        grad = grad * options.residual_scale
    if positive is not None:
        grad = torch.where(positive, grad, grad * (options.negative_slope or 0.0))
    if options.upscale_factor > 1:
        grad = F.pixel_unshuffle(grad, options.upscale_factor)
    padded, padding = pad(input, options)
    batch = input.shape[0]
    if batch == 0:
        return input * 0, weight * 0, weight.new_zeros(weight.shape[:2])
    grad_padded, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad.reshape(1, -1, *grad.shape[2:]),
        padded.reshape(1, -1, *padded.shape[2:]),
        weight.to(input.dtype).flatten(0, 1),
        None,
        options.stride,
        padding,
        options.dilation,
        False,
        (0, 0),
        batch * options.groups,
        (True, True, False),
    )
    grad_input = _crop(grad_padded.reshape(padded.shape), input, options)
    grad_bias = grad.sum((2, 3), dtype=accumulate_dtype(grad))
    return grad_input, grad_weight.reshape(weight.shape), grad_bias


def pad(input: Tensor, options: ConvOptions) -> tuple[Tensor, tuple[int, int]]:
    """Pad what a convolution cannot: return the input and the symmetric rest of the padding."""
    top, bottom, left, right = options.padding
    if _pads_itself(input, options):
        return input, (top, left)
    return F.pad(input, (left, right, top, bottom)), (0, 0)


def _without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    if tensor.device.type not in AUTOCAST_DEVICES:
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def _flatten(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[0], math.prod(tensor.shape[1:]))


def _pads_itself(input: Tensor, options: ConvOptions) -> bool:
    """Whether the convolution pads by itself: evenly, and images that are not empty."""
    top, bottom, left, right = options.padding
    return top == bottom and left == right and input.shape[2] > 0 and input.shape[3] > 0


def _crop(grad_padded: Tensor, input: Tensor, options: ConvOptions) -> Tensor:
    top, _, left, _ = options.padding
    if _pads_itself(input, options):
        return grad_padded
    height, width = input.shape[2:]
    return grad_padded[:, :, top : top + height, left : left + width]
