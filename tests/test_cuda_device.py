"""The CUDA backend on a real device; skipped without one. The emulation covers the rest."""

from __future__ import annotations

import math

import pytest
import torch

import dasr_ops
from dasr_ops.models import MSRResNetDynamic
from tests import reference
from tests.cuda_kernels import KERNELS
from tests.cuda_kernels.kernel import errors
from tests.reference import ROUNDOFF, max_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def test_backend_is_there() -> None:
    # On a machine with a GPU and nvcc a build without CUDA is a failure, not a reason to skip.
    assert dasr_ops.backends()["cuda"].startswith("available"), dasr_ops.backends()["cuda"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7,), (8, 6, 3, 3), (64, 64, 3, 3), (100_003,)])
@pytest.mark.parametrize("batch", [0, 1, 6, 17])
def test_aggregate(dtype: torch.dtype, shape: tuple[int, ...], batch: int) -> None:
    weight = torch.randn(5, *shape, dtype=dtype, device="cuda", requires_grad=True)
    routing = torch.randn(batch, 5, dtype=dtype, device="cuda", requires_grad=True)
    with dasr_ops.use_backend("cuda"):
        out = dasr_ops.aggregate_experts(weight, routing)
    assert out.shape == (batch, *shape)
    grad = torch.randn_like(out)
    grad_weight, grad_routing = torch.autograd.grad(out, [weight, routing], grad)
    # As the kernels see them.
    numel = math.prod(shape)
    inputs = {
        "weight": weight.detach().view(5, numel).cpu(),
        "routing": routing.detach().cpu(),
        "grad": grad.view(batch, numel).cpu(),
    }
    outputs = {"out": out.detach().view(batch, numel)}
    gradients = {"grad_weight": grad_weight.view(5, numel), "grad_routing": grad_routing}
    forward, backward = (
        next(kernel for kernel in KERNELS if kernel.launcher == name)
        for name in ("aggregate_experts", "aggregate_experts_backward")
    )
    assert max(errors(forward, inputs, outputs).values()) <= 1
    assert max(errors(backward, inputs, gradients).values()) <= 1


def test_zero_routing_skips_expert() -> None:
    weight = torch.randn(4, 1000, device="cuda")
    weight[2] = float("nan")
    routing = torch.randn(3, 4, device="cuda")
    routing[:, 2] = 0
    assert dasr_ops.aggregate_experts(weight, routing).isfinite().all()


def test_same_bits_on_every_run() -> None:
    weight = torch.randn(5, 64, 64, 3, 3, device="cuda", requires_grad=True)
    routing = torch.randn(6, 5, device="cuda", requires_grad=True)
    grad = torch.randn(6, 64, 64, 3, 3, device="cuda")
    runs = []
    for _ in range(5):
        out = dasr_ops.aggregate_experts(weight, routing)
        runs.append((out, *torch.autograd.grad(out, [weight, routing], grad)))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dynamic_conv2d(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    args = {
        "input": torch.randn(3, 6, 9, 7, device="cuda", dtype=dtype),
        "weight": torch.randn(4, 8, 6, 3, 3, device="cuda", dtype=dtype) / 7,
        "routing_weights": torch.randn(3, 4, device="cuda", dtype=dtype),
        "bias": torch.randn(4, 8, device="cuda", dtype=dtype),
    }
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with dasr_ops.use_backend("cuda"):
        actual = dasr_ops.dynamic_conv2d(**args, padding=1, activation="relu", upscale_factor=2)
    cpu = {name: value.cpu() for name, value in args.items()}
    expected = reference.dynamic_conv2d(**cpu, padding=1, activation="relu", upscale_factor=2)
    bar = 2e-6 if dtype == torch.float32 else 3 * ROUNDOFF[dtype]
    assert max_error(actual.cpu(), expected) <= max(bar, 1e-14)


def test_on_another_stream_and_in_a_graph() -> None:
    weight = torch.randn(5, 64, 64, 3, 3, device="cuda")
    routing = torch.randn(6, 5, device="cuda")
    expected = dasr_ops.aggregate_experts(weight, routing)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        other = dasr_ops.aggregate_experts(weight, routing)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(other, expected)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = dasr_ops.aggregate_experts(weight, routing)
    weight.mul_(2)
    graph.replay()
    assert torch.equal(captured, 2 * expected)


def test_opcheck() -> None:
    weight = torch.randn(5, 8, 3, 3, 3, device="cuda", requires_grad=True)
    routing = torch.randn(6, 5, device="cuda", requires_grad=True)
    args = (weight, routing, torch.bfloat16)
    torch.library.opcheck(torch.ops.dasr_ops.aggregate_experts.default, args)


def test_stack_in_one_launch() -> None:
    shapes = [(64, 3, 3, 3), (64, 64, 3, 3), (64,), (3, 64, 3, 3), (3,)]
    weights = [torch.randn(5, *shape, device="cuda", requires_grad=True) for shape in shapes]
    routing = torch.randn(6, 5, device="cuda", requires_grad=True)
    for dtype in (torch.float32, torch.bfloat16):
        op = torch.ops.dasr_ops.aggregate_experts_stack.default
        torch.library.opcheck(op, (weights, routing, dtype))
        outputs = dasr_ops.aggregate_experts_stack(weights, routing, dtype=dtype)
        for weight, out in zip(weights, outputs, strict=True):
            assert torch.equal(out, dasr_ops.aggregate_experts(weight, routing, dtype=dtype))
        assert outputs[1].permute(0, 3, 4, 1, 2).is_contiguous()
        grads = [torch.randn_like(out) for out in outputs]
        actual = torch.autograd.grad(outputs, [*weights, routing], grads)
        cpu = [t.detach().cpu().requires_grad_() for t in (*weights, routing)]
        outputs = dasr_ops.aggregate_experts_stack(cpu[:-1], cpu[-1], dtype=dtype)
        expected = torch.autograd.grad(outputs, cpu, [grad.cpu() for grad in grads])
        for got, want in zip(actual, expected, strict=True):
            torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-3)


def test_generator_in_a_graph() -> None:
    net = MSRResNetDynamic(num_feat=16, num_block=2).cuda().requires_grad_(False)
    x, weights = torch.rand(2, 3, 24, 20, device="cuda"), torch.rand(2, 5, device="cuda")
    expected = net.cpu()(x.cpu(), weights.cpu())
    net.cuda()
    with torch.autocast("cuda", torch.bfloat16):
        net(x, weights)  # what is chosen on the first call is chosen outside of the capture
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = net(x, weights)
    graph.replay()
    torch.testing.assert_close(captured.float().cpu(), expected, rtol=0.05, atol=0.05)
