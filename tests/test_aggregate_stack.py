"""aggregate_experts_stack: all layers of a network that share one routing vector."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dasr_ops
from dasr_ops import DynamicConv2d
from dasr_ops.conv import mix_layers
from dasr_ops.models import MSRResNetDynamic
from tests.conftest import cpu_backends
from tests.emulation import build
from tests.reference import ROUNDOFF, max_error, rms_error

EMULATED = pytest.param(
    "emulated", marks=pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))
)
OPERATORS = {"cpu": "dasr_ops", "emulated": "dasr_ops_emulated"}
# Kernels whose rows are multiples of 16 bytes in float32, in no type, in all types; a bias, a
# matrix, a scalar, nothing.
SHAPES = [(8, 4, 3, 3), (5, 3, 3, 3), (8,), (4, 16, 1, 2), (3, 5), (), (0, 4, 3, 3)]


@pytest.fixture(params=[*cpu_backends(), EMULATED])
def any_backend(request: pytest.FixtureRequest) -> str:
    if request.param == "emulated":
        from tests.emulation import operators

        operators.backend()
    return request.param


def stack(
    batch: int = 3,
    experts: int = 5,
    dtype: torch.dtype = torch.float32,
    shapes: list[tuple[int, ...]] = SHAPES,
) -> tuple[list[Tensor], Tensor]:
    weights = [torch.randn(experts, *shape, dtype=dtype) for shape in shapes]
    return weights, torch.randn(batch, experts, dtype=dtype)


def mixed(weight: Tensor, routing: Tensor) -> Tensor:
    return torch.einsum("bk,k...->b...", routing, weight)


def leaves(weights: list[Tensor], routing: Tensor) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in (*weights, routing)]


@pytest.mark.parametrize("batch", [0, 1, 3, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_values_and_gradients(any_backend: str, dtype: torch.dtype, batch: int) -> None:
    *weights, routing = leaves(*stack(batch, dtype=dtype))
    with dasr_ops.use_backend(any_backend):
        actual = dasr_ops.aggregate_experts_stack(weights, routing)
    expected_in = [t.detach().double().requires_grad_() for t in (*weights, routing)]
    expected = [mixed(w, expected_in[-1]) for w in expected_in[:-1]]
    # 5 products and sums in float32, one rounding to the result's type.
    bar = ROUNDOFF[dtype] * (6 if dtype.itemsize >= 4 else 1.01)
    for got, want in zip(actual, expected, strict=True):
        assert got.dtype == dtype and got.shape == want.shape
        assert not got.numel() or max_error(got, want) <= bar
    grads = [torch.randn_like(want).to(dtype) for want in expected]
    actual_grads = torch.autograd.grad(actual, [*weights, routing], grads)
    expected_grads = torch.autograd.grad(expected, expected_in, [g.double() for g in grads])
    for got, want in zip(actual_grads, expected_grads, strict=True):
        assert got.dtype == dtype and got.shape == want.shape
        assert not got.numel() or not want.any() or rms_error(got, want) <= 20 * ROUNDOFF[dtype]
        assert want.any() or not got.any()


def test_same_as_layer_by_layer(any_backend: str) -> None:
    weights, routing = stack()
    routing[0, 2] = 0
    with dasr_ops.use_backend(any_backend):
        for dtype in (None, torch.bfloat16, torch.float64):
            together = dasr_ops.aggregate_experts_stack(weights, routing, dtype=dtype)
            for weight, got in zip(weights, together, strict=True):
                assert torch.equal(got, dasr_ops.aggregate_experts(weight, routing, dtype=dtype))


def test_types_may_differ(any_backend: str) -> None:
    weights, routing = stack()
    weights = [w.to(t) for w, t in zip(weights, [torch.bfloat16, torch.float64] * 4, strict=False)]
    *weights, routing = leaves(weights, routing)
    with dasr_ops.use_backend(any_backend):
        actual = dasr_ops.aggregate_experts_stack(weights, routing, dtype=torch.float32)
    assert all(out.dtype == torch.float32 for out in actual)
    torch.autograd.backward(actual, [torch.ones_like(out) for out in actual])
    assert all(t.grad.dtype == t.dtype for t in (*weights, routing))
    # The default is the type of the first.
    with dasr_ops.use_backend(any_backend):
        actual = dasr_ops.aggregate_experts_stack(weights, routing)
    assert all(out.dtype == torch.bfloat16 for out in actual)


def test_layout_on_cuda() -> None:
    if build.missing():
        pytest.skip(build.missing())
    from tests.emulation import operators

    operators.backend()
    weights, routing = stack()
    with dasr_ops.use_backend("emulated"):
        for dtype, multiple in ((torch.float32, 4), (torch.bfloat16, 8), (torch.float64, 2)):
            for out in dasr_ops.aggregate_experts_stack(weights, routing, dtype=dtype):
                if out.dim() == 5 and out.shape[2] % multiple == 0:
                    out = out.permute(0, 3, 4, 1, 2)
                    assert out.data_ptr() % 16 == 0
                assert out.is_contiguous()


def test_nothing_to_do(any_backend: str) -> None:
    with dasr_ops.use_backend(any_backend):
        assert dasr_ops.aggregate_experts_stack([], torch.randn(3, 5)) == []
        weights, routing = stack(shapes=[(0, 4, 3, 3), (2, 0)])
        for out in dasr_ops.aggregate_experts_stack(weights, routing):
            assert out.shape[0] == 3 and out.numel() == 0
    if any_backend in OPERATORS:
        op = getattr(torch.ops, OPERATORS[any_backend])
        assert op.aggregate_experts_stack([], torch.randn(3, 5), torch.float32) == []
        grads, of_routing = op.aggregate_experts_stack_backward([], [], torch.randn(3, 5), [True])
        assert grads == [] and torch.equal(of_routing, torch.zeros(3, 5))


def test_only_wanted_gradients(any_backend: str) -> None:
    full = leaves(*stack())
    grads = [torch.randn(3, *shape) for shape in SHAPES]
    with dasr_ops.use_backend(any_backend):
        out = dasr_ops.aggregate_experts_stack(full[:-1], full[-1])
        expected = torch.autograd.grad(out, full, grads)
        for wanted in ([0], [2, 3], [len(SHAPES)]):
            some = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(full)]
            out = dasr_ops.aggregate_experts_stack(some[:-1], some[-1])
            differentiable = [(o, g) for o, g in zip(out, grads, strict=True) if o.requires_grad]
            torch.autograd.backward(*map(list, zip(*differentiable, strict=True)))
            for i, tensor in enumerate(some):
                assert (tensor.grad is None) == (i not in wanted)
                if i in wanted:
                    torch.testing.assert_close(tensor.grad, expected[i])
        # Results that nothing depends on.
        weights, routing = full[:-1], full[-1]
        out = dasr_ops.aggregate_experts_stack(weights, routing)
        of_first, of_routing = torch.autograd.grad(out[0], [weights[0], routing], grads[0])
        torch.testing.assert_close(of_first, expected[0])
        (want,) = torch.autograd.grad(mixed(weights[0], routing), routing, grads[0])
        torch.testing.assert_close(of_routing, want)


def test_gradients_in_batches(any_backend: str) -> None:
    weights = [torch.randn(3, 4, 5), torch.randn(3, 6)]
    routing = torch.randn(2, 3)

    def mixed(routing: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(dasr_ops.aggregate_experts_stack(weights, routing))

    with dasr_ops.use_backend(any_backend):
        one_by_one = torch.autograd.functional.jacobian(mixed, routing)
        together = torch.autograd.functional.jacobian(mixed, routing, vectorize=True)
    torch.testing.assert_close(together, one_by_one)


def test_gradcheck(any_backend: str) -> None:
    shapes = [(2, 2, 1, 2), (3,), (2, 1, 2, 1)]
    tensors = leaves(*stack(2, 3, torch.float64, shapes))

    def fn(*tensors: Tensor) -> list[Tensor]:
        return tuple(dasr_ops.aggregate_experts_stack(tensors[:-1], tensors[-1]))

    with dasr_ops.use_backend(any_backend):
        assert torch.autograd.gradcheck(fn, tensors)
        assert torch.autograd.gradgradcheck(fn, tensors)


def test_opcheck(any_backend: str) -> None:
    if any_backend not in OPERATORS:
        pytest.skip("composite")
    op = getattr(torch.ops, OPERATORS[any_backend])
    shapes = [(8, 4, 3, 3), (5, 3, 3, 3), (8,)]
    *weights, routing = leaves(*stack(shapes=shapes))
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(op.aggregate_experts_stack.default, (weights, routing, dtype))
    grads = [torch.randn(3, *shape, requires_grad=True) for shape in shapes]
    for mask in ([True] * 4, [True, False, True, False], [False] * 3 + [True]):
        args = (grads, weights, routing, mask)
        torch.library.opcheck(op.aggregate_experts_stack_backward.default, args)


class Stack(torch.nn.Module):
    """Three layers that share their routing weights, mixed in one call or one by one."""

    def __init__(self, together: bool = True) -> None:
        super().__init__()
        self.together = together
        self.first = DynamicConv2d(3, 8, 3, padding=1, num_experts=3, activation="relu")
        self.second = DynamicConv2d(
            8, 8, 3, padding=1, padding_mode="reflect", bias=False, num_experts=3
        )
        self.last = DynamicConv2d(8, 12, 1, num_experts=3, upscale_factor=2)

    def forward(self, x: Tensor, routing: Tensor) -> Tensor:
        layers = [self.first, self.second, self.last]
        kernels = mix_layers(layers, x, routing) if self.together else [None] * 3
        x = self.first(x, routing, mixed=kernels[0])
        x = self.second(x, routing, x, kernels[1])
        return self.last(x, routing, mixed=kernels[2])


def run(net: torch.nn.Module, x: Tensor, routing: Tensor) -> list[Tensor]:
    """The output and all gradients."""
    routing = routing.detach().requires_grad_()
    net.zero_grad()
    out = net(x, routing)
    out.square().sum().backward()
    return [out.detach(), routing.grad, *(p.grad.clone() for p in net.parameters())]


def test_layers_mixed_together(any_backend: str) -> None:
    net, one_by_one = Stack(), Stack(together=False)
    one_by_one.load_state_dict(net.state_dict())
    x, routing = torch.randn(2, 3, 8, 6), torch.randn(2, 3)
    with dasr_ops.use_backend("eager"):
        expected = run(one_by_one, x, routing)
    with dasr_ops.use_backend(any_backend):
        assert (mix_layers([net.first], x, routing) == [None]) == (any_backend == "cpu")
        with torch.no_grad():
            torch.testing.assert_close(net(x, routing), expected[0])
        if any_backend == "emulated":
            return
        for got, want in zip(run(net, x, routing), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            narrow = run(net, x, routing)
        assert narrow[0].dtype == torch.bfloat16 and narrow[1].dtype == torch.float32
        torch.testing.assert_close(narrow[0].float(), expected[0], rtol=0.05, atol=0.05)


def test_compile_layers_mixed_together() -> None:
    net = Stack()
    torch._dynamo.reset()
    with dasr_ops.use_backend("eager"):
        compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
        for batch in (2, 3):
            x, routing = torch.randn(batch, 3, 8, 6), torch.randn(batch, 3)
            for got, want in zip(run(compiled, x, routing), run(net, x, routing), strict=True):
                torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", OPERATORS)
def test_compile_and_export_the_operator(name: str) -> None:
    if name not in cpu_backends() and (name == "cpu" or build.missing()):
        pytest.skip(f"no {name}")
    if name == "emulated":
        from tests.emulation import operators

        operators.backend()
    torch._dynamo.reset()
    weights, _ = stack(shapes=SHAPES[:3])

    class Net(torch.nn.Module):
        def forward(self, weights: list[Tensor], routing: Tensor) -> Any:
            outs = dasr_ops.aggregate_experts_stack(weights, routing, dtype=torch.float32)
            return [out * 2 for out in outs]

    net = Net()
    with dasr_ops.use_backend(name):
        compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
        for batch in (2, 3):
            routing = torch.randn(batch, 5)
            grads = []
            for fn in (compiled, net):
                tensors = leaves(weights, routing)
                outs = fn(tensors[:-1], tensors[-1])
                assert all(out.requires_grad for out in outs)
                sum(out.square().sum() for out in outs).backward()
                grads.append([*outs, *(t.grad for t in tensors)])
            for got, want in zip(*grads, strict=True):
                torch.testing.assert_close(got, want)
                assert got.stride() == want.stride()
        shapes = ([{}] * 3, {0: torch.export.Dim("batch", min=2)})
        program = torch.export.export(net, (weights, routing), dynamic_shapes=shapes)
        assert any("aggregate_experts_stack" in str(n.target) for n in program.graph.nodes)
        routing = torch.randn(7, 5)
        for got, want in zip(
            program.module()(weights, routing), net(weights, routing), strict=True
        ):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weights": torch.randn(2, 5)}, TypeError, "weights: expected a sequence of Tensors"),
        ({"weights": 3}, TypeError, "weights: expected a sequence of Tensors, got int"),
        ({"weights": [torch.randn(5, 2), 3]}, TypeError, r"weights\[1\]: expected a Tensor"),
        ({"weights": [torch.randn(())]}, ValueError, r"weights\[0\]: expected \[K, ...\]"),
        ({"weights": [torch.randn(0, 2)]}, ValueError, r"weights\[0\]: expected at least one"),
        (
            {"weights": [torch.randn(5, 2), torch.randn(4, 2)]},
            ValueError,
            r"routing_weights: expected \[B, K\] with K = 4",
        ),
        (
            {"weights": [torch.randn(5, 2), torch.randn(5, 2, device="meta")]},
            ValueError,
            r"routing_weights: expected on meta like weights\[1\]",
        ),
        ({"routing_weights": torch.randn(5)}, ValueError, r"expected \[B, K\]"),
        ({"routing_weights": "x", "weights": []}, TypeError, "routing_weights: expected a Tensor"),
        ({"dtype": torch.int32}, TypeError, "dtype: expected float64"),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    args = {"weights": [torch.randn(5, 2)], "routing_weights": torch.randn(3, 5)} | change
    with pytest.raises(error, match=f"aggregate_experts_stack: .*{message}|{message}"):
        dasr_ops.aggregate_experts_stack(**args)


def test_generator(any_backend: str) -> None:
    net = MSRResNetDynamic(num_feat=8, num_block=2, num_models=3)
    x, weights = torch.rand(2, 3, 6, 5), torch.softmax(torch.randn(2, 3), 1)
    with dasr_ops.use_backend("eager"), torch.no_grad():
        expected = net.double()(x.double(), weights.double())
        net.float()
    calls = []
    net.conv_hr.register_forward_hook(lambda *_: calls.append(1))
    with dasr_ops.use_backend(any_backend), torch.no_grad():
        torch.testing.assert_close(net(x, weights).double(), expected, rtol=1e-4, atol=1e-5)
    assert calls == [1]


def test_generator_mixes_once(any_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dasr_ops import _backends

    backend, calls = _backends._BACKENDS[any_backend], []
    original = backend.aggregate_experts_stack
    monkeypatch.setattr(
        backend,
        "aggregate_experts_stack",
        lambda *args: calls.append(len(args[0])) or original(*args),
    )
    net = MSRResNetDynamic(num_feat=8, num_block=2, num_models=3)
    with dasr_ops.use_backend(any_backend), torch.no_grad():
        net(torch.rand(1, 3, 4, 4), torch.rand(1, 3))
    # On the CPU the convolutions mix the experts themselves.
    assert calls == ([] if any_backend == "cpu" else [2 * 9])
