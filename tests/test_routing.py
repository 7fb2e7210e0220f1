"""Routers against their formulas written out, and what a training and a compiler need of them."""

import copy
import math

import pytest
import torch
import torch._dynamo.testing
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dasr_ops import DynamicConv2d
from dasr_ops.routing import (
    AttentionRouter,
    LinearGate,
    SigmoidGate,
    SoftmaxGate,
    TopKGate,
    anneal_temperature,
    load_balancing_loss,
    set_temperature,
)

FEATURES, EXPERTS = 6, 4
ROUTERS = {
    "linear": LinearGate,
    "attention": AttentionRouter,
    "sigmoid": SigmoidGate,
    "softmax": SoftmaxGate,
    "topk": TopKGate,
    "topk-silent": lambda *args, **kw: TopKGate(*args, noise=False, **kw),
}
SUM_ONE = ["attention", "softmax", "topk", "topk-silent"]


def make(name, dtype=torch.float64, seed=0):
    """A router in evaluation mode whose parameters are all random, so that each one matters."""
    torch.manual_seed(seed)
    router = ROUTERS[name](FEATURES, EXPERTS, dtype=dtype).eval()
    for parameter in router.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    set_temperature(router, 1.5)
    return router


def softmax(logits):
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / sum(powers) for power in powers]


def affine(layer, x):
    bias = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
    return [
        sum(w * v for w, v in zip(row, x, strict=True)) + b
        for row, b in zip(layer.weight.tolist(), bias, strict=True)
    ]


def formula(name, router, x, epsilon=None):
    """Routing weights of one vector, in plain Python."""
    if name == "linear":
        return affine(router[1], affine(router[0], x))
    if name == "attention":
        hidden = [max(h, 0.0) for h in affine(router.squeeze, x)]
        return softmax([h / router.temperature.item() for h in affine(router.attend, hidden)])
    logits = affine(router.gate, x)
    if name == "sigmoid":
        return [1 / (1 + math.exp(-logit)) for logit in logits]
    if name == "softmax":
        return softmax(logits)
    if epsilon is not None:
        scales = [math.log1p(math.exp(n)) for n in affine(router.noise, x)]
        logits = [h + e * s for h, e, s in zip(logits, epsilon, scales, strict=True)]
    kept = sorted(range(len(logits)), key=lambda i: -logits[i])[: router.k]
    return softmax([logit if i in kept else -math.inf for i, logit in enumerate(logits)])


# A sum of at most 6 + 6 products in float64 and a few exponentials: 1e-13 is hundreds of roundings.
CLOSE = {"rtol": 1e-13, "atol": 1e-13}


@pytest.mark.parametrize("name", ROUTERS)
def test_formula_on_vectors_and_on_pooled_features(name):
    router = make(name)
    features = torch.randn(5, FEATURES, 3, 7, dtype=torch.float64)
    means = [[sum(c.flatten().tolist()) / 21 for c in image] for image in features]
    expected = torch.tensor([formula(name, router, x) for x in means], dtype=torch.float64)
    torch.testing.assert_close(router(features), expected, **CLOSE)
    vectors = torch.tensor(means, dtype=torch.float64)
    torch.testing.assert_close(router(vectors), expected, **CLOSE)
    # The rows differ, so that a router that ignored its input would not pass.
    assert (expected[1:] - expected[0]).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("name", ROUTERS)
def test_gradients(name):
    router = make(name)
    features = torch.randn(3, FEATURES, 2, 2, dtype=torch.float64, requires_grad=True)
    parameters = dict(router.named_parameters())
    parameters.pop("noise.weight", None)  # silent in evaluation mode

    def run(x, *values):
        given = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(router, given, (x,))

    arguments = (features, *parameters.values())
    assert torch.autograd.gradcheck(run, arguments)
    assert torch.autograd.gradgradcheck(run, arguments)


@pytest.mark.parametrize("name", SUM_ONE)
@given(scale=st.floats(0, 1e4), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_weights_are_a_distribution(name, scale, seed):
    router = make(name, torch.float32, seed)
    weights = router(scale * torch.randn(7, FEATURES))
    assert (weights >= 0).all()
    # K roundings of quotients, K - 1 of the sum: each at most eps / 2 of a number <= 1.
    assert (weights.double().sum(1) - 1).abs().max() <= EXPERTS * torch.finfo(torch.float32).eps


@given(scale=st.floats(0, 1e4), seed=st.integers(0, 99), experts=st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_linear_gate_starts_with_weights_that_sum_to_one(scale, seed, experts):
    torch.manual_seed(seed)
    gate = LinearGate(33, experts)
    v = scale * torch.randn(6, 33)
    weights = gate(v).double()
    hidden = torch.nn.functional.linear(v, gate[0].weight, gate[0].bias).double()
    size = (hidden.abs() @ gate[1].weight.double().abs().T).sum(1) + 1
    # Roundings: 15 products and sums per weight; K in the mean that the columns had subtracted.
    bound = (15 + 2 * experts + 2) * torch.finfo(torch.float32).eps * size
    assert ((weights.sum(1) - 1).abs() <= bound).all()
    if experts > 1 and scale > 1:
        assert (weights[1:] - weights[0]).abs().amax(1).min() > 1e-4


def test_equal_experts_part_under_the_linear_gate():
    torch.manual_seed(0)
    static = torch.nn.Conv2d(3, 4, 3, padding=1)
    layer, gate = DynamicConv2d.from_conv2d(static, 5), LinearGate(33, 5)
    x, v = torch.randn(6, 3, 8, 8), torch.randn(6, 33)
    output = layer(x, gate(v))
    # Experts are copies and weights sum to 1: 27 products and 5 experts, in float32.
    torch.testing.assert_close(output, static(x), rtol=1e-5, atol=1e-5)
    output.square().sum().backward()
    gradients = layer.weight.grad.flatten(1)
    apart = torch.cdist(gradients, gradients).fill_diagonal_(math.inf)
    assert apart.min() > 1e-2 * gradients.norm(dim=1).max()


def test_linear_gate_has_the_parameters_of_the_official_mapping():
    shapes = {name: list(value.shape) for name, value in LinearGate(33, 5).state_dict().items()}
    assert shapes == {"0.weight": [15, 33], "0.bias": [15], "1.weight": [5, 15], "1.bias": [5]}


def test_temperature_is_annealed_saved_and_set():
    model = torch.nn.Sequential(AttentionRouter(8), AttentionRouter(4, temperature=10.0))
    first, second = model
    for progress, values in [(0, (30, 10)), (0.5, (15.5, 5.5)), (1, (1, 1)), (7, (1, 1))]:
        assert anneal_temperature(model, progress) == 2
        assert (first.temperature.item(), second.temperature.item()) == values
    first.anneal(-1)
    assert first.temperature.item() == 30
    assert set_temperature(model, 2.5) == 2
    assert first.temperature.item() == second.temperature.item() == 2.5
    fresh = AttentionRouter(8)
    fresh.load_state_dict(first.state_dict(), strict=True)
    assert fresh.temperature.item() == 2.5
    assert set_temperature(torch.nn.Linear(2, 2), 1.0) == 0
    with pytest.raises(ValueError, match="AttentionRouter: progress: expected a number, got nan"):
        first.anneal(float("nan"))
    empty = AttentionRouter(8, device="meta").to_empty(device="cpu")
    for module in empty.modules():
        module.reset_parameters()
    assert empty.temperature.item() == 30
    assert torch.allclose(empty(torch.zeros(1, 8)).sum(), torch.ones(()))


def test_high_temperature_is_near_uniform_and_low_is_not():
    router, x = make("attention"), 3 * torch.randn(50, FEATURES, dtype=torch.float64)
    spread = []
    for temperature in (30.0, 5.0, 1.0):
        set_temperature(router, temperature)
        spread.append((router(x) - 1 / EXPERTS).abs().amax(1).mean().item())
    assert spread[0] < 0.1 < spread[2]
    assert spread[0] < spread[1] < spread[2]


@given(seed=st.integers(0, 999), experts=st.integers(1, 7), data=st.data())
@settings(max_examples=40, deadline=None)
def test_top_k_keeps_the_largest_and_zeroes_the_others(seed, experts, data):
    k = data.draw(st.integers(1, experts))
    torch.manual_seed(seed)
    gate = TopKGate(FEATURES, experts, k, noise=False).double()
    x = torch.randn(5, FEATURES, dtype=torch.float64)
    logits = x @ gate.gate.weight.T
    weights = gate(x)
    assume(logits.sort(1).values.diff(dim=1).abs().amin() > 1e-9 if experts > 1 else True)
    assert (weights != 0).sum(1).tolist() == [k] * 5
    threshold = logits.sort(1, descending=True).values[:, k - 1 : k]
    assert ((weights != 0) == (logits >= threshold - 1e-12)).all()
    kept = torch.where(weights != 0, logits, -math.inf)
    torch.testing.assert_close(weights, kept.softmax(1), **CLOSE)


def test_top_k_noise_is_that_of_the_paper_and_only_in_training():
    gate = make("topk").train()
    x = torch.randn(5, FEATURES, dtype=torch.float64)
    torch.manual_seed(3)
    weights = gate(x)
    torch.manual_seed(3)
    epsilon = torch.randn(5, EXPERTS, dtype=torch.float64).tolist()
    rows = zip(x.tolist(), epsilon, strict=True)
    expected = [formula("topk", gate, row, noise) for row, noise in rows]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), **CLOSE)
    weights[:, 0].sum().backward()
    assert gate.noise.weight.grad.abs().max() > 0
    assert not torch.equal(gate(x), gate(x))
    gate.eval()
    assert torch.equal(gate(x), gate(x))


def test_top_k_starts_by_choosing_at_random():
    torch.manual_seed(0)
    gate = TopKGate(FEATURES, EXPERTS, 2)
    assert all((parameter == 0).all() for parameter in gate.parameters())
    weights = gate(torch.randn(4000, FEATURES))
    share = (weights != 0).double().mean(0)
    # Each expert is chosen with probability k/K = 1/2: six standard deviations of 4000 draws.
    assert (share - 0.5).abs().max() < 6 * 0.5 / math.sqrt(4000)


def test_experts_outside_the_top_k_get_no_gradient():
    gate, layer = make("topk", torch.float32), DynamicConv2d(FEATURES, 2, 3, num_experts=EXPERTS)
    x = torch.randn(1, FEATURES, 5, 5)
    weights = gate(x)
    layer(x, weights).sum().backward()
    used = (weights[0] != 0).tolist()
    assert sorted(used) == [False, False, True, True]
    assert [bool(g.abs().sum() > 0) for g in layer.weight.grad] == used
    assert [bool(g.abs().sum() > 0) for g in gate.gate.weight.grad] == used


@given(
    rows=st.lists(st.lists(st.floats(0, 1e3), min_size=3, max_size=3), min_size=1, max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_load_balancing_loss_is_the_squared_coefficient_of_variation(rows):
    importance = [sum(column) for column in zip(*rows, strict=True)]
    mean = sum(importance) / 3
    assume(mean == 0 or mean > 1e-100)
    variance = sum((i - mean) ** 2 for i in importance) / 3
    expected = variance / mean**2 if mean else 0.0
    loss = load_balancing_loss(torch.tensor(rows, dtype=torch.float64))
    # Between 0 and 2; deviations from the mean cancel, so the bound is absolute.
    assert loss.item() == pytest.approx(expected, abs=1e-14, rel=1e-13)
    assert 0 <= loss.item() <= 2 + 1e-14


def test_load_balancing_loss_at_its_ends_and_its_gradient():
    for experts in (1, 2, 5):
        one = torch.zeros(8, experts)
        one[:, 0] = 1
        assert load_balancing_loss(one).item() == pytest.approx(experts - 1, rel=1e-6)
        assert load_balancing_loss(torch.full((8, experts), 0.25)).item() == 0
    empty = torch.zeros(0, 4, requires_grad=True)
    loss = load_balancing_loss(empty)
    loss.backward()
    assert loss.item() == 0 and empty.grad.shape == (0, 4)
    # 1000 ones in bfloat16 add up to 256 where the sum is formed in bfloat16.
    assert load_balancing_loss(torch.ones(1000, 2, dtype=torch.bfloat16)).dtype == torch.float32
    uneven = torch.tensor([[1.0, 0.5]] * 1000).bfloat16()
    assert load_balancing_loss(uneven).item() == pytest.approx(1 / 9, rel=1e-5)
    weights = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(load_balancing_loss, weights)
    assert torch.autograd.gradgradcheck(load_balancing_loss, weights)


def test_load_balancing_loss_evens_out_a_gate():
    torch.manual_seed(0)
    gate, x = SoftmaxGate(FEATURES, EXPERTS), torch.randn(64, FEATURES)
    torch.nn.init.constant_(gate.gate.bias[:1], 4.0)
    optimizer = torch.optim.SGD(gate.parameters(), lr=1.0)
    before = load_balancing_loss(gate(x)).item()
    for _ in range(40):
        optimizer.zero_grad()
        load_balancing_loss(gate(x)).backward()
        optimizer.step()
    assert before > 1
    assert load_balancing_loss(gate(x)).item() < 0.05


@pytest.mark.parametrize("name", ROUTERS)
def test_weights_stay_float32(name):
    router, features = make(name, torch.float32), torch.randn(3, FEATURES, 4, 4)
    plain = router(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(router(features), plain)
    low = features.bfloat16()
    assert torch.equal(router(low), router(low.float()))
    half = copy.deepcopy(router).bfloat16()
    wide = copy.deepcopy(half).float()
    assert half(low).dtype == torch.float32
    assert torch.equal(half(low), wide(low.float()))
    assert router(features.double()).dtype == torch.float64


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("shape", [(0, FEATURES), (0, FEATURES, 4, 4)])
def test_empty_batch(name, shape):
    router, features = make(name).train(), torch.zeros(shape, dtype=torch.float64)
    weights = router(features.requires_grad_())
    assert weights.shape == (0, EXPERTS)
    weights.sum().backward()
    assert features.grad.shape == shape
    assert all((p.grad == 0).all() for p in router.parameters())


@pytest.mark.parametrize("name", ROUTERS)
def test_compiles_without_graph_breaks(name):
    torch.compiler.reset()
    router = make(name, torch.float32).train()
    compiled = torch.compile(router, fullgraph=True, backend="aot_eager")
    features, results = torch.randn(2, FEATURES, 4, 4), []
    for run in (router, compiled):
        torch.manual_seed(1)
        weights = run(features)
        loss = load_balancing_loss(weights) + weights.square().sum()
        results.append((weights, *torch.autograd.grad(loss, list(router.parameters()))))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
    # The forward alone: a compiled backward runs under the autocast around the whole graph.
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.manual_seed(1)
        torch.testing.assert_close(compiled(features), results[0][0], rtol=1e-5, atol=1e-6)


def test_annealing_does_not_recompile():
    torch.compiler.reset()
    router, x = make("attention", torch.float32), torch.randn(3, FEATURES)
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(router, fullgraph=True, backend=counter)
    outputs = []
    for progress in (0.0, 0.5, 1.0):
        router.anneal(progress)
        outputs.append(compiled(x))
        torch.testing.assert_close(outputs[-1], router(x))
    assert counter.frame_count == 1
    assert (outputs[0] - outputs[2]).abs().max() > 1e-2


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (torch.zeros(2, FEATURES + 1), ValueError, r"features: expected .* C = 6, got \[2, 7\]"),
        (torch.zeros(2, FEATURES, 3), ValueError, r"features: expected .*, got \[2, 6, 3\]"),
        (torch.zeros(2, FEATURES, 0, 3), ValueError, "features: expected at least one pixel"),
        (torch.zeros(2, FEATURES, dtype=torch.int64), TypeError, "features: .* got torch.int64"),
        ([[0.0] * FEATURES], TypeError, "features: expected a Tensor, got list"),
    ],
)
def test_features_that_do_not_fit(name, features, error, message):
    with pytest.raises(error, match=f"^{type(make(name)).__name__}: {message}"):
        make(name)(features)


@pytest.mark.parametrize(
    ("construct", "error", "message"),
    [
        (lambda: LinearGate(0), ValueError, "LinearGate: in_features: expected at least 1, got 0"),
        (lambda: LinearGate(3, hidden_features=2.0), TypeError, "LinearGate: hidden_features: "),
        (lambda: AttentionRouter(3, 0), ValueError, "AttentionRouter: num_experts: "),
        (lambda: AttentionRouter(3, hidden_features=0), ValueError, "hidden_features: .* got 0"),
        (lambda: AttentionRouter(3, temperature=0), ValueError, "temperature: .* got 0.0"),
        (lambda: AttentionRouter(3, final_temperature=math.nan), ValueError, "final_temperature"),
        (lambda: SigmoidGate(3, "4"), TypeError, "SigmoidGate: num_experts: .* got '4'"),
        (lambda: SoftmaxGate(-1), ValueError, "SoftmaxGate: in_features: .* got -1"),
        (lambda: TopKGate(3, 4, 5), ValueError, "TopKGate: k: expected at most .* = 4, got 5"),
        (lambda: TopKGate(3, 4, True), TypeError, "TopKGate: k: expected an int, got True"),
        (lambda: set_temperature(SigmoidGate(3), -1), ValueError, "temperature: .* got -1.0"),
        (lambda: load_balancing_loss(torch.ones(3)), ValueError, r"routing_weights: .* got \[3\]"),
        (lambda: load_balancing_loss(3.0), TypeError, "routing_weights: expected a Tensor"),
    ],
)
def test_arguments_that_do_not_fit(construct, error, message):
    with pytest.raises(error, match=message):
        construct()
