"""The operators on Triton kernels: what a call launches, in which order.

As csrc/ops/conv_cuda.cpp: experts are mixed, then the convolution runs with its epilogue; backward,
the epilogue is undone, and only what is asked for is formed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._arguments import ConvOptions, output_shape
from .. import eager
from . import weight_grad
from .aggregate import expert_gradients, mix_experts, pack_experts, reduce_splits
from .convolve import Kernels, convolve
from .epilogue import Epilogue, make_epilogue, undo_epilogue
from .shapes import ConvShape, conv_shape

_NUM_OPTIONS = len(ConvOptions._fields)


def _on_device(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Launch on the device of the tensors, whichever is current."""

    @wraps(operator)
    def call(*args: Any) -> Any:
        first = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
        with torch.cuda.device_of(first):
            return operator(*args)

    return call


class _Wanted(NamedTuple):
    """Which gradients are asked for."""

    input: bool
    weight: bool
    routing: bool
    bias: bool


class _Call(NamedTuple):
    """What the parts of a backward pass share."""

    input: Tensor
    kernels: Kernels
    shape: ConvShape
    fast_fp32: bool
    deterministic: bool


@_on_device
def aggregate_experts(weight: Tensor, routing: Tensor, dtype: torch.dtype) -> Tensor:
    """Mix experts [K, ...] for each row of the routing weights."""
    out = weight.new_empty((routing.shape[0], *weight.shape[1:]), dtype=dtype)
    mix_experts(weight, routing, out)
    return out


@_on_device
def aggregate_experts_backward(
    grad_output: Tensor, weight: Tensor, routing: Tensor, output_mask: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Return the gradients for experts and routing weights; empty ones that nobody asked for."""
    wants_weight, wants_routing = output_mask
    grad_weight, grad_routing = _aggregate_gradients(
        grad_output, weight, routing, (wants_weight, wants_routing)
    )
    return _finish(grad_weight, weight), _finish(grad_routing, routing)


@_on_device
def aggregate_experts_stack(
    weights: Sequence[Tensor], routing: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """Mix the experts of several layers; kernels packed as `_stack` lays them out."""
    results = []
    for weight in weights:
        if weight.dim() == 5 and weight.shape[2] * dtype.itemsize % 16 == 0:
            results.append(pack_experts(weight, routing, dtype, align=1))
        else:
            out = weight.new_empty((routing.shape[0], *weight.shape[1:]), dtype=dtype)
            mix_experts(weight, routing, out)
            results.append(out)
    return results


@_on_device
def aggregate_experts_stack_backward(
    grad_output: Sequence[Tensor],
    weights: Sequence[Tensor],
    routing: Tensor,
    output_mask: Sequence[bool],
) -> tuple[list[Tensor], Tensor]:
    """Return the gradients for the layers' experts and, added up, for the routing weights."""
    grads, total = [], None
    for grad, weight, wanted in zip(grad_output, weights, output_mask[:-1], strict=True):
        of_weight, part = _aggregate_gradients(grad, weight, routing, (wanted, output_mask[-1]))
        grads.append(_finish(of_weight, weight))
        if part is not None:
            # In a fixed order; rounded after the last.
            total = part if total is None else total + part
    return grads, _finish(total, routing)


def _aggregate_gradients(
    grad_output: Tensor, weight: Tensor, routing: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    if not any(wanted):
        return None, None
    parts = grad_output.contiguous().view(1, grad_output.shape[0], 1, weight[0].numel())
    return expert_gradients(parts, weight, routing, wanted, weight.dtype)


def conv2d_inference(*args: Any) -> Tensor:
    """Convolve where nothing is differentiated; see the schema in `_library`."""
    input, weight, routing, bias, residual, geometry, slope, scale = args
    stride, padding, dilation = geometry[:2], geometry[2:6], geometry[6:8]
    groups, upscale_factor, *switches = geometry[8:]
    options = (stride, padding, dilation, groups, slope, scale, upscale_factor)
    rest = (*options, False, *map(bool, switches))
    return _forward(input, Kernels(weight, routing, bias), residual, rest)[0]


def dynamic_conv2d(*args: Any) -> tuple[Tensor, Tensor]:
    """Mix experts, then convolve; see the schema in `_library`."""
    input, weight, routing, bias, residual = args[:5]
    return _forward(input, Kernels(weight, routing, bias), residual, args[5:])


def per_sample_conv2d(*args: Any) -> tuple[Tensor, Tensor]:
    """Convolve each sample with its own kernel; see the schema in `_library`."""
    input, weight, bias, residual = args[:4]
    return _forward(input, Kernels(weight, None, bias), residual, args[4:])


def dynamic_conv2d_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients for input, experts, routing weights and bias."""
    grad_output, input, weight, routing, bias, output, mask = args[:7]
    *options, wanted, deterministic, fast_fp32 = args[7:]
    kernels = Kernels(weight, routing, bias)
    grads = _backward(
        grad_output,
        output,
        mask,
        ConvOptions(*options),
        _Wanted(*wanted),
        input,
        kernels,
        (deterministic, fast_fp32),
    )
    likes = (input, weight, routing, weight if bias is None else bias)
    return tuple(_finish(grad, like) for grad, like in zip(grads, likes, strict=True))


def per_sample_conv2d_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients for input, kernels and bias."""
    grad_output, input, weight, bias, output, mask = args[:6]
    *options, wanted, deterministic, fast_fp32 = args[6:]
    of_input, of_weight, _, of_bias = _backward(
        grad_output,
        output,
        mask,
        ConvOptions(*options),
        _Wanted(wanted[0], wanted[1], False, wanted[2]),
        input,
        Kernels(weight, None, bias),
        (deterministic, fast_fp32),
    )
    like = weight if bias is None else bias
    return _finish(of_input, input), _finish(of_weight, weight), _finish(of_bias, like)


@_on_device
def _forward(
    input: Tensor, kernels: Kernels, residual: Tensor | None, rest: Sequence[Any]
) -> tuple[Tensor, Tensor]:
    options = ConvOptions(*rest[:_NUM_OPTIONS])
    save_mask, deterministic, fast_fp32 = rest[_NUM_OPTIONS:]
    output = torch.empty(
        output_shape(input, kernels.weight, options),
        dtype=input.dtype,
        device=input.device,
        memory_format=eager.memory_format(input),
    )
    # Bits are set one word at a time: the last one is whole.
    mask_bytes = (output.numel() + 7) // 8 if save_mask else 0
    mask = input.new_zeros(((mask_bytes + 3) // 4 * 4,), dtype=torch.uint8)
    if output.numel() > 0:
        convolve(
            input,
            kernels,
            conv_shape(input, kernels.weight, options),
            False,
            make_epilogue(
                kernels.bias,
                kernels.routing,
                residual,
                mask.view(torch.int32) if save_mask else None,
                options,
            ),
            output,
            fast_fp32,
            deterministic,
        )
    return output, mask[:mask_bytes]


@_on_device
def _backward(
    grad_output: Tensor,
    output: Tensor | None,
    mask: Tensor | None,
    options: ConvOptions,
    wanted: _Wanted,
    input: Tensor,
    kernels: Kernels,
    switches: tuple[bool, bool],
) -> tuple[Tensor | None, ...]:
    weight, routing, bias = kernels
    deterministic, fast_fp32 = switches
    if bias is None:
        wanted = wanted._replace(bias=False)
    if grad_output.numel() == 0:
        return _zero_gradients(input, kernels, wanted)
    shape = conv_shape(input, weight, options)
    call = _Call(input, kernels, shape, fast_fp32, deterministic)
    wants_kernel = wanted.weight or wanted.routing
    wants_bias = bias is not None and (wanted.bias or wanted.routing)
    grad, bias_sums = undo_epilogue(
        grad_output.to(input.dtype),
        output,
        mask,
        shape,
        options,
        input.dtype,
        eager.memory_format(input) == torch.channels_last,
        (wanted.input or wants_kernel, wants_bias),
    )
    grad_input = None
    if wanted.input:
        grad_input = torch.empty(
            input.shape,
            dtype=input.dtype,
            device=input.device,
            memory_format=eager.memory_format(input),
        )
        convolve(grad, kernels, shape, True, Epilogue(), grad_input, fast_fp32, deterministic)
    if routing is None:
        grad_weight = _per_sample_gradient(grad, call) if wanted.weight else None
        return grad_input, grad_weight, None, bias_sums
    grad_weight = from_kernel = grad_bias = from_bias = None
    if wants_kernel:
        grad_weight, from_kernel = _expert_gradients(grad, call, wanted)
    if wants_bias:
        grad_bias, from_bias = _aggregate_gradients(
            bias_sums, bias, routing, (wanted.bias, wanted.routing)
        )
    # Both parts of the routing gradient are rounded once, after they are added.
    if from_bias is not None:
        from_kernel = from_bias if from_kernel is None else from_kernel + from_bias
    return grad_input, grad_weight, from_kernel, grad_bias


def _per_sample_gradient(grad: Tensor, call: _Call) -> Tensor:
    """Return [B, O, I/g, kh, kw] in the kernels' type."""
    weight, shape = call.kernels.weight, call.shape
    result = weight.new_empty(weight.shape)
    flat = result.view(shape.batch, shape.out_channels * shape.group_in, shape.taps)
    at_once = weight_grad.samples_at_once(shape)
    for first in range(0, shape.batch, at_once):
        rows = slice(first, first + at_once)
        parts = weight_grad.weight_gradients(
            grad[rows], call.input[rows], shape, call.fast_fp32, call.deterministic
        )
        total = parts[0] if parts.shape[0] == 1 else reduce_splits(parts, torch.float32)
        flat[rows].copy_(total.transpose(1, 2))
    return result


def _expert_gradients(
    grad: Tensor, call: _Call, wanted: _Wanted
) -> tuple[Tensor | None, Tensor | None]:
    weight, routing, _ = call.kernels
    assert routing is not None
    at_once = weight_grad.samples_at_once(call.shape)
    # What is added up in several steps is rounded after the last.
    in_turns = at_once < call.shape.batch
    dtype = eager.accumulate_dtype(weight, routing) if in_turns else weight.dtype
    total, of_routing = None, []
    for first in range(0, call.shape.batch, at_once):
        rows = slice(first, first + at_once)
        parts = weight_grad.weight_gradients(
            grad[rows], call.input[rows], call.shape, call.fast_fp32, call.deterministic
        )
        of_weight, part = expert_gradients(
            parts, weight, routing[rows], (wanted.weight, wanted.routing), dtype
        )
        if of_weight is not None:
            total = of_weight if total is None else total.add_(of_weight)
        if part is not None:
            of_routing.append(part)
    return total, torch.cat(of_routing) if of_routing else None


def _zero_gradients(input: Tensor, kernels: Kernels, wanted: _Wanted) -> tuple[Tensor | None, ...]:
    of_input = torch.zeros(
        input.shape,
        dtype=input.dtype,
        device=input.device,
    ).contiguous(memory_format=eager.memory_format(input))
    likes = (kernels.weight, kernels.routing, kernels.bias)
    return (
        of_input if wanted.input else None,
        *(
            like.new_zeros(like.shape) if want and like is not None else None
            for like, want in zip(likes, wanted[1:], strict=True)
        ),
    )


def _finish(grad: Tensor | None, like: Tensor) -> Tensor:
    """Return the gradient in the type of its argument; an empty one where there is none."""
    return like.new_empty((0,)) if grad is None else grad.to(like.dtype)
