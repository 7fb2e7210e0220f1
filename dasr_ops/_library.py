"""Registers the operators with PyTorch: schemas, fake kernels and autograd formulas.

Several libraries carry the same operators: ``dasr_ops`` (CPU and CUDA kernels in C++) and, under
names of their own, further implementations of them. ``csrc/ops/schemas.h`` repeats `SCHEMAS` for
the extension; a test compares the two.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._arguments import ConvOptions, output_shape
from ._autograd import below_autograd, function_of, is_recorded, masked, vector_jacobian
from ._backends import eager
from ._stack import register_stack
from .precision import get_cpu_precision

_OPTIONS = (
    "int[] stride, int[] padding, int[] dilation, int groups, float? negative_slope, "
    "float residual_scale, int upscale_factor"
)
_SWITCHES = "bool deterministic, bool fast_fp32"

# padding is top, bottom, left, right; negative_slope is None without activation, 0 for ReLU.
# With save_mask the second output of a convolution holds one bit per output element, in memory
# order: whether the activation's argument was positive. Otherwise it is empty.
# With fast_fp32 products of float32 operands may be formed less exactly: in tf32 on CUDA, in
# larger Winograd tiles on the CPU.
#
# Either convolution where nothing is differentiated: each argument costs as much as the allocation
# of a tensor. geometry holds stride, padding, dilation, groups, upscale_factor, deterministic and
# fast_fp32.
SCHEMAS = {
    "aggregate_experts": "(Tensor weight, Tensor routing_weights, ScalarType dtype) -> Tensor",
    "aggregate_experts_backward": (
        "(Tensor grad_output, Tensor weight, Tensor routing_weights, bool[] output_mask) "
        "-> (Tensor, Tensor)"
    ),
    "aggregate_experts_stack": (
        "(Tensor[] weight, Tensor routing_weights, ScalarType dtype) -> Tensor[]"
    ),
    "aggregate_experts_stack_backward": (
        "(Tensor[] grad_output, Tensor[] weight, Tensor routing_weights, bool[] output_mask) "
        "-> (Tensor[], Tensor)"
    ),
    "conv2d_inference": (
        "(Tensor input, Tensor weight, Tensor? routing_weights, Tensor? bias, Tensor? residual, "
        "int[] geometry, float? negative_slope, float residual_scale) -> Tensor"
    ),
    "dynamic_conv2d": (
        "(Tensor input, Tensor weight, Tensor routing_weights, Tensor? bias, Tensor? residual, "
        f"{_OPTIONS}, bool save_mask, {_SWITCHES}) -> (Tensor, Tensor)"
    ),
    "dynamic_conv2d_backward": (
        "(Tensor grad_output, Tensor input, Tensor weight, Tensor routing_weights, Tensor? bias, "
        f"Tensor? output, Tensor? mask, {_OPTIONS}, bool[] output_mask, {_SWITCHES}) "
        "-> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "per_sample_conv2d": (
        "(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, "
        f"{_OPTIONS}, bool save_mask, {_SWITCHES}) -> (Tensor, Tensor)"
    ),
    "per_sample_conv2d_backward": (
        "(Tensor grad_output, Tensor input, Tensor weight, Tensor? bias, "
        f"Tensor? output, Tensor? mask, {_OPTIONS}, bool[] output_mask, {_SWITCHES}) "
        "-> (Tensor, Tensor, Tensor)"
    ),
}


def needs_mask(options: ConvOptions, has_residual: bool) -> bool:
    """Whether the backward pass cannot read the activation's sign from the output."""
    return options.negative_slope is not None and (has_residual or options.negative_slope < 0)


def unpack_mask(mask: Tensor, shape: torch.Size, memory_format: torch.memory_format) -> Tensor:
    """Return the bits of ``mask`` as a bool tensor of the output's ``shape``."""
    batch, channels, height, width = shape
    bits = (mask.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=mask.device)) & 1
    flat = bits.flatten()[: batch * channels * height * width].to(torch.bool)
    if memory_format == torch.channels_last:
        return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return flat.view(shape)


class Library:
    """The operators of one namespace, and differentiable Python functions that call them.

    ``cuda_device`` is the type of the device that its CUDA kernels run on: another than "cuda" only
    where they are emulated.
    """

    def __init__(self, namespace: str, *, define: bool, cuda_device: str = "cuda") -> None:
        self.namespace = namespace
        self._cuda_device = cuda_device
        if define:
            self._definitions = torch.library.Library(namespace, "DEF")
            for name, schema in SCHEMAS.items():
                self._definitions.define(name + schema)
        self.ops = getattr(torch.ops, namespace)
        self._register_aggregate()
        register_stack(namespace, self.ops, cuda_device)
        self._inference = self._register_inference()
        self._convolutions: dict[str, tuple[Any, Any]] = {}
        self._register_convolution("dynamic_conv2d", num_weights=2)
        self._register_convolution("per_sample_conv2d", num_weights=1)

    def aggregate_experts(
        self, weight: Tensor, routing_weights: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """Call the operator; see `dasr_ops.aggregate_experts`."""
        op = self.ops.aggregate_experts.default
        if is_recorded() or _is_differentiated((weight, routing_weights)):
            return op(weight, routing_weights, dtype)
        return below_autograd(op, weight, routing_weights, dtype)

    def aggregate_experts_stack(
        self, weights: Sequence[Tensor], routing_weights: Tensor, dtype: torch.dtype
    ) -> list[Tensor]:
        """Call the operator; see `dasr_ops.aggregate_experts_stack`."""
        return self.ops.aggregate_experts_stack(weights, routing_weights, dtype)

    def dynamic_conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        routing_weights: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        options: ConvOptions,
    ) -> Tensor:
        """Call the operator; see `dasr_ops.dynamic_conv2d`."""
        tensors = (input, weight, routing_weights, bias, residual)
        return self._convolve("dynamic_conv2d", tensors, options)

    def per_sample_conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        options: ConvOptions,
    ) -> Tensor:
        """Call the operator; see `dasr_ops.per_sample_conv2d`."""
        tensors = (input, weight, bias, residual)
        return self._convolve("per_sample_conv2d", tensors, options)

    def _convolve(
        self, name: str, tensors: Sequence[Tensor | None], options: ConvOptions
    ) -> Tensor:
        op, function = self._convolutions[name]
        switches = _switches(tensors[0], self._cuda_device)
        recorded = is_recorded()
        if not recorded and not _is_differentiated(tensors):
            stride, padding, dilation, groups, slope, scale, upscale_factor = options
            geometry = (*stride, *padding, *dilation, groups, upscale_factor, *switches)
            if len(tensors) == 4:
                input, weight, bias, residual = tensors
                tensors = (input, weight, None, bias, residual)
            return self._inference(*tensors, geometry, slope, scale)
        *convolved, residual = tensors
        save_mask = needs_mask(options, residual is not None) and _is_differentiated(convolved)
        others = (*options, save_mask, *switches)
        return op(*tensors, *others)[0] if recorded else function.apply(*tensors, others)

    def _register_aggregate(self) -> None:
        name = f"{self.namespace}::aggregate_experts"
        ops = self.ops

        def fake(weight: Tensor, routing_weights: Tensor, dtype: torch.dtype) -> Tensor:
            return weight.new_empty((routing_weights.shape[0], *weight.shape[1:]), dtype=dtype)

        def fake_backward(
            grad_output: Tensor,
            weight: Tensor,
            routing_weights: Tensor,
            output_mask: Sequence[bool],
        ) -> tuple[Tensor, Tensor]:
            like = (weight, routing_weights)
            return tuple(
                t.new_empty(t.shape if wanted else (0,))
                for t, wanted in zip(like, output_mask, strict=True)
            )

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            ctx.save_for_backward(*inputs[:2])

        def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
            weight, routing_weights = ctx.saved_tensors
            mask = ctx.needs_input_grad[:2]
            grads = ops.aggregate_experts_backward(grad_output, weight, routing_weights, mask)
            return (*masked(grads, mask), None)

        def setup_double(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.save_for_backward(*inputs[:3])
            ctx.output_mask = inputs[3]

        def double_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
            result = vector_jacobian(
                eager.aggregate_experts_backward, ctx.saved_tensors, grads, ctx.output_mask
            )
            return (*result, None)

        torch.library.register_fake(name, fake)
        torch.library.register_fake(name + "_backward", fake_backward)
        torch.library.register_autograd(name, backward, setup_context=setup_context)
        torch.library.register_autograd(
            name + "_backward", double_backward, setup_context=setup_double
        )

    def _register_inference(self) -> Any:
        def fake(input: Tensor, weight: Tensor, *rest: Any) -> Tensor:
            g = rest[3]
            options = ConvOptions(g[:2], g[2:6], g[6:8], g[8], None, 1.0, g[9])
            return _empty_output(input, weight, options)

        torch.library.register_fake(f"{self.namespace}::conv2d_inference", fake)
        return self.ops.conv2d_inference.default

    def _register_convolution(self, op: str, num_weights: int) -> None:
        # Arguments: input, `num_weights` tensors (experts and routing weights, or per-sample
        # kernels), bias, residual, then the options, save_mask and the switches.
        name = f"{self.namespace}::{op}"
        num_tensors = num_weights + 2  # differentiated by the backward operator
        num_options = len(ConvOptions._fields)
        backward_op = getattr(self.ops, op + "_backward").default

        def fake(*args: Any) -> tuple[Tensor, Tensor]:
            input, weight = args[:2]
            options = ConvOptions(*args[num_tensors + 1 : num_tensors + 1 + num_options])
            save_mask = args[num_tensors + 1 + num_options]
            output = _empty_output(input, weight, options)
            mask_size = (output.numel() + 7) // 8 if save_mask else 0
            return output, input.new_empty((mask_size,), dtype=torch.uint8)

        def fake_backward(*args: Any) -> tuple[Tensor, ...]:
            return _empty_gradients(args[1], args[2 : 1 + num_tensors], args[-3])

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
            tensors = inputs[:num_tensors]
            residual = inputs[num_tensors]
            ctx.options = ConvOptions(*inputs[num_tensors + 1 : num_tensors + 1 + num_options])
            save_mask = inputs[num_tensors + 1 + num_options]
            ctx.switches = inputs[-2:]
            ctx.residual_dtype = None if residual is None else residual.dtype
            activates = ctx.options.negative_slope is not None
            ctx.memory_format = eager.memory_format(inputs[0]) if activates else None
            reads_output = activates and not save_mask and any(ctx.needs_input_grad[:num_tensors])
            ctx.save_for_backward(
                *tensors, output[0] if reads_output else None, output[1] if save_mask else None
            )

        def backward(ctx: Any, grad_output: Tensor, _: Any) -> tuple[Any, ...]:
            *tensors, output, mask = ctx.saved_tensors
            if ctx.options.negative_slope is not None:
                # The signs lie in the input's format, but saved-tensor hooks need not keep strides.
                if eager.memory_format(tensors[0]) != ctx.memory_format:
                    tensors[0] = tensors[0].contiguous(memory_format=ctx.memory_format)
                if output is not None:
                    output = output.contiguous(memory_format=ctx.memory_format)
            output_mask = ctx.needs_input_grad[:num_tensors]
            # What the residual adds needs no kernel; the rest of the formula knows only its scale.
            has_residual = ctx.residual_dtype is not None
            options = ctx.options
            if not has_residual and options.residual_scale != 1.0:
                options = options._replace(residual_scale=1.0)
            grads: tuple[Any, ...] = (None,) * num_tensors
            if any(output_mask):
                args = (grad_output, *tensors, output, mask, *options, output_mask, *ctx.switches)
                if torch.is_grad_enabled() or is_recorded():
                    grads = backward_op(*args)
                else:
                    grads = below_autograd(backward_op, *args)
                grads = masked(grads, output_mask)
            grad_residual = None
            if has_residual and ctx.needs_input_grad[num_tensors]:
                grad_residual = grad_output.to(ctx.residual_dtype)
            return (*grads, grad_residual) + (None,) * (num_options + 3)

        def setup_double(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.save_for_backward(*inputs[: num_tensors + 3])
            start = num_tensors + 3
            ctx.options = ConvOptions(*inputs[start : start + num_options])
            ctx.output_mask = inputs[start + num_options]
            ctx.memory_format = eager.memory_format(inputs[1])

        def double_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
            *tensors, output, mask = ctx.saved_tensors
            grad_output = tensors[0]
            positive = None
            if ctx.options.negative_slope is not None:
                positive = (
                    output > 0
                    if mask is None
                    else unpack_mask(mask, grad_output.shape, ctx.memory_format)
                )

            def formula(*args: Any) -> tuple[Tensor, ...]:
                return _convolution_backward(op, args, positive, ctx.options)

            result = vector_jacobian(formula, tensors, grads, ctx.output_mask)
            return (*result,) + (None,) * (2 + num_options + 3)

        torch.library.register_fake(name, fake)
        torch.library.register_fake(name + "_backward", fake_backward)
        torch.library.register_autograd(name, backward, setup_context=setup_context)
        torch.library.register_autograd(
            name + "_backward", double_backward, setup_context=setup_double
        )
        forward_op = getattr(self.ops, op).default
        function = function_of(op, forward_op, setup_context, backward)
        self._convolutions[op] = forward_op, function


def _convolution_backward(
    op: str, args: Sequence[Any], positive: Tensor | None, options: ConvOptions
) -> tuple[Tensor, ...]:
    """Differentiable formula of ``<op>_backward``: a gradient for each tensor but the first."""
    if op == "per_sample_conv2d":
        grad_output, input, weight, bias = args
        grad_input, grad_weight, grad_bias = eager.per_sample_conv2d_backward(
            grad_output, input, weight, positive, True, options
        )
        return grad_input, grad_weight.to(weight.dtype), _like(grad_bias, bias)
    grad_output, input, weight, routing, bias = args
    mixed = eager.aggregate_experts(weight, routing, input.dtype)
    grad_input, grad_mixed, grad_mixed_bias = eager.per_sample_conv2d_backward(
        grad_output, input, mixed, positive, True, options
    )
    grad_weight, grad_routing = eager.aggregate_experts_backward(grad_mixed, weight, routing)
    if bias is None:
        return grad_input, grad_weight, grad_routing, grad_mixed_bias
    grad_bias, bias_routing = eager.aggregate_experts_backward(grad_mixed_bias, bias, routing)
    return grad_input, grad_weight, grad_routing + bias_routing, grad_bias


def _like(grad: Tensor, tensor: Tensor | None) -> Tensor:
    return grad if tensor is None else grad.to(tensor.dtype)


def _empty_output(input: Tensor, weight: Tensor, options: ConvOptions) -> Tensor:
    return torch.empty(
        output_shape(input, weight, options),
        dtype=input.dtype,
        device=input.device,
        memory_format=eager.memory_format(input),
    )


def _empty_gradients(
    input: Tensor, others: Sequence[Tensor | None], output_mask: Sequence[bool]
) -> tuple[Tensor, ...]:
    grad_input = torch.empty(
        input.shape,
        dtype=input.dtype,
        device=input.device,
        memory_format=eager.memory_format(input),
    )
    result = [grad_input if output_mask[0] else input.new_empty((0,))]
    for tensor, wanted in zip(others, output_mask[1:], strict=True):
        like = others[0] if tensor is None else tensor
        result.append(like.new_empty(like.shape if wanted and tensor is not None else (0,)))
    return tuple(result)


def _is_differentiated(tensors: Sequence[Tensor | None]) -> bool:
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


class _Switches(types.ModuleType):
    """A module, so that torch.compile reads its properties and guards on them."""

    @property
    def allow_tf32(self) -> bool:
        """Whether PyTorch's switches let convolutions round float32 operands to tf32."""
        # cudnn.allow_tf32 cannot be asked for once convolutions and RNNs differ.
        return torch.backends.cudnn.conv.fp32_precision == "tf32"


_TORCH = _Switches("torch_switches")


def _switches(input: Tensor, cuda_device: str) -> tuple[bool, bool]:
    if input.is_cpu:
        # CUDA kernels that are emulated there have no Winograd mode, and are not to round to tf32.
        fast_fp32 = cuda_device != "cpu" and get_cpu_precision() == "fast"
    else:
        fast_fp32 = input.is_cuda and _TORCH.allow_tf32
    return torch.are_deterministic_algorithms_enabled(), fast_fp32
