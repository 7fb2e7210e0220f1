"""What the autograd formulas of the operators share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is under way.

    Operators with formulas for reverse mode alone cannot serve these: `torch.vmap` hides whether
    its tensors are differentiated, and tangents would be lost without a word.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_batched(tensors: Sequence[Tensor]) -> bool:
    """Whether one of the tensors stands for many: `torch.vmap`, or gradients in batches."""
    legacy = torch._C._functorch.is_legacy_batchedtensor  # what torch.autograd still uses
    return torch._C._are_functorch_transforms_active() or any(map(legacy, tensors))


def below_autograd(op: Callable[..., Any], *args: Any) -> Any:
    """Call an operator without its formulas for autograd, which cost 16 us to do nothing."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def is_recorded() -> bool:
    """Whether others look at the operators that are called, and are to see the usual ones."""
    return (
        torch.compiler.is_compiling()
        or is_transformed()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
    )


def function_of(
    name: str,
    op: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., tuple[Any, ...]],
) -> type[torch.autograd.Function]:
    """Make of formulas for `torch.library.register_autograd` a Function, which takes half the time.

    It is for plain eager execution. Its arguments are the tensors of ``op`` and a tuple of all that
    follow them; it returns the first output of ``op``.
    """

    def forward(ctx: Any, *args: Any) -> Tensor:
        *tensors, others = args
        inputs = (*tensors, *others)
        outputs = below_autograd(op, *inputs)
        setup_context(ctx, inputs, outputs)
        ctx.num_tensors = len(tensors)
        return outputs[0]

    def backward_of_tensors(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        return *backward(ctx, grad_output, None)[: ctx.num_tensors], None

    body = {"forward": staticmethod(forward), "backward": staticmethod(backward_of_tensors)}
    return type(name, (torch.autograd.Function,), body)


def vector_jacobian(
    formula: Callable[..., tuple[Tensor, ...]],
    tensors: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    output_mask: Sequence[bool],
) -> list[Tensor | None]:
    """Differentiate ``formula`` at ``tensors`` against ``grads`` of the outputs in the mask."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # view_as keeps the graph behind the saved tensors out of the inner differentiation.
        inputs = [t if t is None else t.view_as(t) for t in tensors]
        if not create_graph:
            inputs = [t if t is None else t.detach() for t in inputs]
        for tensor in inputs:
            if tensor is not None and not tensor.requires_grad:
                tensor.requires_grad_()
        outputs = formula(*inputs)
    chosen = [
        (output, grad)
        for output, grad, wanted in zip(outputs, grads, output_mask, strict=True)
        if wanted and grad is not None and output.requires_grad
    ]
    present = [tensor for tensor in inputs if tensor is not None]
    if not chosen:
        return [None] * len(inputs)
    found = iter(
        torch.autograd.grad(
            [output for output, _ in chosen],
            present,
            [grad.to(output.dtype) for output, grad in chosen],
            allow_unused=True,
            create_graph=create_graph,
        )
    )
    return [None if tensor is None else next(found) for tensor in inputs]


def masked(grads: Sequence[Tensor], mask: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Return ``None`` in place of gradients that nobody asked for."""
    return tuple(grad if wanted else None for grad, wanted in zip(grads, mask, strict=True))
