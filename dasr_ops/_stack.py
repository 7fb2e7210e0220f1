"""Registers ``aggregate_experts_stack`` with PyTorch: fake kernels and autograd formulas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._autograd import is_batched, masked, vector_jacobian
from ._backends import eager


def register_stack(namespace: str, ops: Any, cuda_device: str) -> None:
    """Register the operators of one namespace; their schemas are defined already.

    ``cuda_device`` is the type of the device that CUDA kernels run on.
    """
    name = f"{namespace}::aggregate_experts_stack"

    def fake(weight: Sequence[Tensor], routing_weights: Tensor, dtype: torch.dtype) -> list[Tensor]:
        packs = routing_weights.device.type == cuda_device
        return [_empty(experts, routing_weights.shape[0], dtype, packs) for experts in weight]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        weights, routing_weights, _ = inputs
        ctx.save_for_backward(*weights, routing_weights)

    def backward(ctx: Any, grad_output: Sequence[Tensor]) -> tuple[Any, ...]:
        *weights, routing_weights = ctx.saved_tensors
        mask = [*ctx.needs_input_grad[0], ctx.needs_input_grad[1]]
        if is_batched(grad_output):  # there is no rule for lists of tensors
            found = _stack_backward(*grad_output, *weights, routing_weights)
        else:
            of_weights, of_routing = ops.aggregate_experts_stack_backward(
                list(grad_output), weights, routing_weights, mask
            )
            found = (*of_weights, of_routing)
        *grads, of_routing = masked(found, mask)
        return grads, of_routing, None

    def setup_double(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad_output, weights, routing_weights, ctx.output_mask = inputs
        ctx.save_for_backward(*grad_output, *weights, routing_weights)

    def double_backward(
        ctx: Any, grad_weights: Sequence[Tensor], grad_routing: Tensor
    ) -> tuple[Any, ...]:
        grads = vector_jacobian(
            _stack_backward, ctx.saved_tensors, [*grad_weights, grad_routing], ctx.output_mask
        )
        count = len(grads) // 2
        return grads[:count], grads[count:-1], grads[-1], None

    torch.library.register_fake(name, fake)
    torch.library.register_fake(name + "_backward", _fake_backward)
    torch.library.register_autograd(name, backward, setup_context=setup_context)
    torch.library.register_autograd(name + "_backward", double_backward, setup_context=setup_double)


def _empty(experts: Tensor, batch: int, dtype: torch.dtype, packs: bool) -> Tensor:
    # As csrc/ops/aggregate_stack_cuda.cpp lays them out: kernels as [B, kh, kw, O, I/g] where rows
    # of input channels are multiples of 16 bytes, everything else contiguous.
    size = (batch, *experts.shape[1:])
    if packs and len(size) == 5 and size[2] * dtype.itemsize % 16 == 0:
        _, out_channels, group_in, height, width = size
        matrix = out_channels * group_in
        stride = (height * width * matrix, group_in, 1, width * matrix, matrix)
        return experts.new_empty_strided(size, stride, dtype=dtype)
    return experts.new_empty(size, dtype=dtype)


def _fake_backward(
    grad_output: Sequence[Tensor],
    weight: Sequence[Tensor],
    routing_weights: Tensor,
    output_mask: Sequence[bool],
) -> tuple[list[Tensor], Tensor]:
    *grads, of_routing = (
        tensor.new_empty(tensor.shape if wanted else (0,))
        for tensor, wanted in zip((*weight, routing_weights), output_mask, strict=True)
    )
    return grads, of_routing


def _stack_backward(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Differentiable formula of ``aggregate_experts_stack_backward``: weights, then routing."""
    count = len(tensors) // 2
    routing_weights = tensors[-1]
    grads, of_routing = [], routing_weights.new_zeros(routing_weights.shape)
    for grad, weight in zip(tensors[:count], tensors[count:-1], strict=True):
        of_weight, part = eager.aggregate_experts_backward(grad, weight, routing_weights)
        grads.append(of_weight)
        of_routing = of_routing + part
    return (*grads, of_routing)
