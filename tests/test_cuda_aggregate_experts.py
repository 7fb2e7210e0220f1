"""The CUDA aggregation kernels, run by the emulation, against float64."""

import itertools
import math
import os

import pytest
import torch

from .cuda_kernels.aggregate import n_roundings_of_dot
from .emulation import build

if build.missing():
    pytest.skip(build.missing(), allow_module_level=True)

from .emulation import calls

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
VARIANT = os.environ.get("DASR_EMULATION_VARIANT", "plain")
# Instrumented code is several times slower.
LARGE = 100_003 if VARIANT == "plain" else 5_003

# B, K, N: nothing, one of each, tails of tiles (512) and groups (8), more experts than are staged
# at a time (32), vector rows and rows that start at odd addresses
SHAPES = [
    (0, 5, 7),
    (1, 1, 1),
    (3, 5, 0),
    (6, 5, 7),
    (9, 4, 512),
    (1, 8, 513),
    (8, 5, 1028),
    (17, 9, 1030),
    (2, 33, 640),
    (5, 70, 33),
    (6, 5, LARGE),
]


class Buffer:
    """A tensor filled with NaN, `offset` elements from an aligned address, between guards."""

    def __init__(self, *shape, dtype, offset=0):
        numel = math.prod(shape)
        self.memory = torch.full((numel + 2 * 16 + offset,), -1.0, dtype=dtype)
        self.inside = slice(16 + offset, 16 + offset + numel)
        self.memory[self.inside] = math.nan
        self.tensor = self.memory[self.inside].view(shape)

    def check(self):
        before, after = self.memory[: self.inside.start], self.memory[self.inside.stop :]
        assert (before == -1).all() and (after == -1).all(), "written outside the output"
        assert not self.tensor.isnan().any(), "not all of the output was written"
        return self.tensor.double()


def random(*shape, dtype, offset=0):
    buffer = Buffer(*shape, dtype=dtype, offset=offset)
    buffer.tensor.copy_(torch.randn(shape, dtype=torch.float64))
    return buffer.tensor


def assert_close(name, got, expected, magnitude, n_roundings, dtypes, out_dtype):
    """Each sum may err by one fp32 (fp64) rounding per operation on its way, relative to the sum of
    the absolute products, and by half a unit of the output type."""
    unit = 2.0**-53 if torch.float64 in dtypes else 2.0**-24
    info = torch.finfo(out_dtype)
    bound = (n_roundings + 1) * unit * magnitude * (1 + 1e-6)
    bound += (expected.abs() + bound) * info.eps / 2 + info.smallest_normal * info.eps / 2
    error = (got - expected).abs()
    assert (error <= bound).all(), f"{name}: {(error / bound).max():.3g} times the bound"


def check_forward(b, k, n, weight_dtype, routing_dtype, out_dtype, offset=0):
    weight = random(k, n, dtype=weight_dtype, offset=offset)
    routing = random(b, k, dtype=routing_dtype, offset=offset)
    out = Buffer(b, n, dtype=out_dtype, offset=offset)
    calls.aggregate_experts(weight, routing, out.tensor)
    w, a = weight.double(), routing.double()
    dtypes = (weight_dtype, routing_dtype, out_dtype)
    # The float64 reference itself errs as much as an fp64 kernel: twice the roundings.
    assert_close("out", out.check(), a @ w, a.abs() @ w.abs(), 2 * k, dtypes, out_dtype)


def check_backward(b, k, n, weight_dtype, routing_dtype, grad_dtype, offset=0, wanted=(1, 1)):
    weight = random(k, n, dtype=weight_dtype, offset=offset)
    routing = random(b, k, dtype=routing_dtype, offset=offset)
    if b * k > 1:
        routing.view(-1)[-1] = 0  # has a gradient nevertheless
    grad = random(b, n, dtype=grad_dtype, offset=offset)
    grad_weight = Buffer(k, n, dtype=weight_dtype, offset=offset)
    grad_routing = Buffer(b, k, dtype=routing_dtype, offset=offset)
    size = calls.aggregate_experts_backward(
        weight,
        routing,
        grad,
        grad_weight.tensor if wanted[0] else None,
        grad_routing.tensor if wanted[1] else None,
    )
    assert wanted[1] or size == 0
    w, a, g = weight.double(), routing.double(), grad.double()
    dtypes = (weight_dtype, routing_dtype, grad_dtype)
    if wanted[0]:
        got, magnitude = grad_weight.check(), a.abs().T @ g.abs()
        assert_close("grad_weight", got, a.T @ g, magnitude, 2 * b, dtypes, weight_dtype)
    if wanted[1]:
        got, magnitude = grad_routing.check(), g.abs() @ w.abs().T
        roundings = n_roundings_of_dot(n)
        assert_close("grad_routing", got, g @ w.T, magnitude, roundings, dtypes, routing_dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(shape):
    check_forward(*shape, torch.float32, torch.float32, torch.float32)
    check_forward(*shape, torch.float32, torch.float32, torch.bfloat16)
    check_forward(*shape, torch.float64, torch.float64, torch.float64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward(shape):
    check_backward(*shape, torch.float32, torch.float32, torch.float32)
    check_backward(*shape, torch.float32, torch.float32, torch.float16)
    check_backward(*shape, torch.float64, torch.float64, torch.float64)


@pytest.mark.parametrize("n", [516, 37])
@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, repeat=3)), ids=str)
def test_types(dtypes, n):
    check_forward(3, 5, n, *dtypes)
    check_backward(3, 5, n, *dtypes)


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_alignment(dtype, offset):
    check_forward(3, 5, 520, dtype, dtype, dtype, offset)
    check_backward(9, 5, 520, dtype, dtype, dtype, offset)


@pytest.mark.parametrize("wanted", [(1, 0), (0, 1), (0, 0)])
@pytest.mark.parametrize("shape", [(3, 5, 520), (9, 9, 519), (0, 4, 7), (2, 3, 0)], ids=str)
def test_unwanted_gradients_are_skipped(shape, wanted):
    check_backward(*shape, *[torch.float32] * 3, wanted=wanted)


@pytest.mark.parametrize("n", [520, 519])
def test_unused_experts_are_not_read(n):
    weight, routing = torch.randn(5, n), torch.randn(3, 5)
    routing[:, 1] = 0
    routing[0, 3], routing[1, 3] = -0.0, 0
    weight[1] = math.nan
    weight[3] = math.inf
    out = torch.full((3, n), math.nan)
    calls.aggregate_experts(weight, routing, out)
    used = routing.clone()
    used[2, 3] = 0
    expected = used.double() @ weight.double().nan_to_num(0, 0, 0)
    assert torch.allclose(out[:2].double(), expected[:2], atol=1e-5)
    assert out[2].isinf().all()


def test_a_sample_that_skips_an_expert_adds_nothing_to_its_gradient():
    weight, routing, grad = torch.randn(5, 520), torch.randn(3, 5), torch.randn(3, 520)
    routing[1, 2] = 0
    grad[1] = math.nan
    grad_weight = torch.empty_like(weight)
    calls.aggregate_experts_backward(weight, routing, grad, grad_weight, None)
    assert grad_weight[[0, 1, 3, 4]].isnan().all()
    expected = routing[[0, 2], 2].double() @ grad[[0, 2]].double()
    assert torch.allclose(grad_weight[2].double(), expected, atol=1e-5)


def test_special_values_follow_ieee():
    weight = torch.tensor([[math.inf, math.nan, 1.0, 3e38]] * 2)
    routing = torch.tensor([[1.0, 1.0], [1.0, -1.0], [math.nan, 0.0]])
    out = torch.empty(3, 4)
    calls.aggregate_experts(weight, routing, out)
    expected = torch.tensor([[math.inf, math.nan, 2.0, math.inf], [math.nan, math.nan, 0.0, 0.0]])
    assert torch.equal(out[:2].nan_to_num(7), expected.nan_to_num(7))
    assert out[2].isnan().all()


@pytest.mark.parametrize("batch", [6, 20])
def test_repeats_are_bit_equal(batch):
    weight, routing = torch.randn(5, 5003), torch.randn(batch, 5)
    grad = torch.randn(batch, 5003)
    results = []
    for order, seed in (("forward", 0), ("reverse", 0), ("shuffled", 1)):
        calls.module().set_order(order, seed)
        out, grad_weight, grad_routing = (torch.empty_like(t) for t in (grad, weight, routing))
        calls.aggregate_experts(weight, routing, out)
        calls.aggregate_experts_backward(weight, routing, grad, grad_weight, grad_routing)
        results.append((out, grad_weight, grad_routing))
    calls.module().set_order("forward")
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_workspace_is_bounded():
    m = calls.module()
    p = m.AggregateExpertsBackwardParams()
    for p.batch, p.experts, p.numel in ((6, 5, 36864), (65536, 8, 1 << 33), (1 << 22, 64, 4096)):
        p.grad_routing = 0
        assert m.aggregate_experts_backward_workspace_size(p) == 0
        p.grad_routing = 16
        one_split = p.batch * p.experts * 4
        assert m.aggregate_experts_backward_workspace_size(p) <= max(64 << 20, one_split)


def test_bad_sizes_are_refused():
    m = calls.module()
    for params, call in (
        (m.AggregateExpertsParams(), m.aggregate_experts),
        (m.AggregateExpertsBackwardParams(), m.aggregate_experts_backward),
    ):
        with pytest.raises(RuntimeError, match="invalid argument"):
            call(params)  # experts = 0


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(6, 5, 1_000_003), (11, 9, 300_000), (300, 4, 9)], ids=str)
def test_large(shape):
    if VARIANT != "plain":
        shape = (*shape[:2], shape[2] // 50 + 1)
    check_forward(*shape, torch.float32, torch.float32, torch.bfloat16)
    check_backward(*shape, torch.float32, torch.float32, torch.bfloat16)


@pytest.mark.slow
@pytest.mark.skipif(VARIANT != "plain", reason="too many blocks for instrumented code")
def test_more_groups_than_a_grid_holds():
    batch = 8 * 65535 + 11
    routing = torch.randn(batch, 2)
    out = torch.full((batch, 3), math.nan)
    weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    calls.aggregate_experts(weight, routing, out)
    assert torch.equal(out, routing @ weight)


@pytest.mark.slow
@pytest.mark.skipif(VARIANT != "plain", reason="reserves 5 GB of address space")
def test_elements_beyond_two_to_the_31():
    # Almost all experts are unused: their pages are never touched.
    weight = torch.zeros(70_000, 31_000, dtype=torch.float16)
    weight[-1] = torch.randn(31_000)
    routing = torch.zeros(1, 70_000)
    routing[0, -1] = 2
    out = torch.full((1, 31_000), math.nan)
    calls.aggregate_experts(weight, routing, out)
    assert torch.equal(out[0], 2 * weight[-1].float())
