"""Mixing of experts and its gradients by the Triton backend, interpreted, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dasr_ops
from tests import reference, triton_env
from tests.reference import ROUNDOFF, max_error, rms_error

pytestmark = [
    pytest.mark.skipif(triton_env.missing() is not None, reason=str(triton_env.missing())),
    pytest.mark.usefixtures("exact_bfloat16", "one_thread"),
]

BACKEND = "triton"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (8, 6, 3, 3), (4099,)], ids=str)
def test_values_and_gradients(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    check(torch.randn(5, *shape, dtype=dtype), torch.randn(3, 5, dtype=dtype), dtype)


@pytest.mark.parametrize(("batch", "experts"), [(1, 1), (9, 3), (17, 2), (2, 9), (3, 20)])
def test_batches_and_experts(batch: int, experts: int) -> None:
    check(torch.randn(experts, 4, 3, 3, 3), torch.randn(batch, experts), torch.float32)


def test_strided_operands() -> None:
    weight = torch.randn(3, 6, 4, 5).transpose(0, 3)[::2]
    check(weight, torch.randn(3, 4).t(), torch.float32)
    check(torch.randn(3, 1, 1).expand(3, 4, 5), torch.randn(1, 3).expand(4, 3), torch.float32)


def check(weight: Tensor, routing: Tensor, dtype: torch.dtype) -> None:
    leaves = [t.detach().requires_grad_() for t in (weight, routing)]
    with dasr_ops.use_backend(BACKEND):
        actual = dasr_ops.aggregate_experts(*leaves)
    assert actual.dtype == dtype and actual.is_contiguous()
    expected_in = [t.detach().double().requires_grad_() for t in (weight, routing)]
    expected = reference.aggregate_experts(*expected_in)
    # As many products and sums in float32 as experts, one rounding to the result's type.
    bar = ROUNDOFF[dtype] * (6 + len(weight) ** 0.5 if dtype.itemsize >= 4 else 1.01)
    assert max_error(actual, expected) <= bar
    grad = torch.randn_like(actual)
    actual_grads = torch.autograd.grad(actual, leaves, grad)
    expected_grads = torch.autograd.grad(expected, expected_in, grad.double())
    for got, want in zip(actual_grads, expected_grads, strict=True):
        # The routing gradient sums over all elements of an expert.
        assert rms_error(got, want) <= 4 * ROUNDOFF[dtype] * max(1, weight[0].numel()) ** 0.25


@pytest.mark.parametrize("wide", ["weight", "routing", "both"])
def test_sums_in_float64_where_an_operand_is(wide: str) -> None:
    weight, routing = torch.randn(3, 4, 5), torch.randn(2, 3)
    weight = weight.double() if wide != "routing" else weight
    routing = routing.double() if wide != "weight" else routing
    ops = torch.ops.dasr_ops_triton
    mixed = ops.aggregate_experts(weight, routing, torch.float64)
    assert max_error(mixed, reference.aggregate_experts(weight, routing)) <= 1e-15
    grads = ops.aggregate_experts_backward(mixed, weight, routing, [True, True])
    want = torch.einsum("bk,b...->k...", routing.double(), mixed)
    of_routing = torch.einsum("bij,kij->bk", mixed, weight.double())
    for got, expected, like in zip(grads, (want, of_routing), (weight, routing), strict=True):
        assert got.dtype == like.dtype
        assert max_error(got, expected) <= 4 * ROUNDOFF[like.dtype]


def test_dtype_of_the_result() -> None:
    with dasr_ops.use_backend(BACKEND):
        out = dasr_ops.aggregate_experts(torch.randn(2, 3), torch.randn(4, 2), dtype=torch.float16)
    assert out.dtype == torch.float16


def test_only_what_is_asked_for() -> None:
    weight, routing = torch.randn(3, 4, 5), torch.randn(2, 3)
    grad = torch.randn(2, 4, 5)
    ops = torch.ops.dasr_ops_triton
    both = ops.aggregate_experts_backward(grad, weight, routing, [True, True])
    for mask in ([True, False], [False, True], [False, False]):
        some = ops.aggregate_experts_backward(grad, weight, routing, mask)
        for got, want, asked in zip(some, both, mask, strict=True):
            assert torch.equal(got, want) if asked else got.numel() == 0


def test_zero_routing_skips_expert() -> None:
    weight = torch.randn(4, 3, 5)
    weight[1], weight[2] = float("nan"), float("inf")
    routing = torch.tensor([[1.0, 0, 0, 2], [0, 0, 1, 0]])
    with dasr_ops.use_backend(BACKEND):
        mixed = dasr_ops.aggregate_experts(weight, routing)
    assert torch.equal(mixed[0], weight[0] + 2 * weight[3])
    assert mixed[1].isposinf().all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_mix(shape: tuple[int, int]) -> None:
    batch, channels = shape
    weight = torch.randn(2, channels, 4, requires_grad=True)
    routing = torch.randn(batch, 2, requires_grad=True)
    with dasr_ops.use_backend(BACKEND):
        mixed = dasr_ops.aggregate_experts(weight, routing)
    assert mixed.shape == (batch, channels, 4)
    mixed.sum().backward()
    assert not weight.grad.any() and not routing.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_stack(dtype: torch.dtype) -> None:
    shapes = [(8, 16, 3, 3), (4, 3, 3, 3), (8, 8, 1, 1), (2, 8, 1, 4), (5,)]
    weights = [torch.randn(3, *shape, requires_grad=True) for shape in shapes]
    routing = torch.randn(2, 3, requires_grad=True)
    with dasr_ops.use_backend(BACKEND):
        mixed = dasr_ops.aggregate_experts_stack(weights, routing, dtype=dtype)
    wide = [w.detach().double().requires_grad_() for w in (*weights, routing)]
    expected = [reference.aggregate_experts(w, wide[-1]) for w in wide[:-1]]
    for got, want in zip(mixed, expected, strict=True):
        assert got.dtype == dtype and max_error(got, want) <= 8 * ROUNDOFF[dtype]
    grads = [torch.randn(m.shape, dtype=dtype) for m in mixed]
    got_grads = torch.autograd.grad(mixed, [*weights, routing], grads)
    want_grads = torch.autograd.grad(expected, wide, [g.double() for g in grads])
    for got, want in zip(got_grads, want_grads, strict=True):
        assert max_error(got, want) <= 2e-6


def test_stack_where_no_layer_has_experts_of_interest() -> None:
    weights = [torch.randn(3, 4), torch.randn(3, 5, requires_grad=True)]
    routing = torch.randn(2, 3)
    with dasr_ops.use_backend(BACKEND):
        mixed = dasr_ops.aggregate_experts_stack(weights, routing)
    (grad,) = torch.autograd.grad(mixed[1].sum(), weights[1:])
    assert max_error(grad, routing.sum(0)[:, None].double().expand(3, 5)) <= 1e-6
