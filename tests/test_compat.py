"""Drop-in replacements against what they replace, written out sample by sample."""

import copy
import inspect
import itertools
import math
import pickle

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dasr_ops.compat import Dynamic_conv2d, FusedCondConv2d, fuse_condconv

# float64 sums of at most 4 experts and 8 * 25 taps of numbers of order 1.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


class CondConv2d(nn.Module):
    """A layer with the attributes, parameters and call of timm's, one sample at a time."""

    def __init__(self, inputs, outputs, kernel, stride=1, padding=0, dilation=1, groups=1, **rest):
        super().__init__()
        self.in_channels, self.out_channels, self.groups = inputs, outputs, groups
        self.kernel_size, self.stride, self.dilation, self.padding = (
            value if isinstance(value, tuple) else (value, value)
            for value in (kernel, stride, dilation, padding)
        )
        self.num_experts = rest.get("num_experts", 3)
        self.dynamic_padding = rest.get("same", False)
        size = outputs * (inputs // groups) * math.prod(self.kernel_size)
        self.weight = nn.Parameter(torch.randn(self.num_experts, size))
        bias = torch.randn(self.num_experts, outputs) if rest.get("bias", True) else None
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x, routing_weights):
        if self.dynamic_padding:
            x = pad_like_tensorflow(x, self.kernel_size, self.stride, self.dilation)
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        outputs = []
        for image, a in zip(x, routing_weights, strict=True):
            kernel = sum(a[k] * self.weight[k] for k in range(self.num_experts)).view(shape)
            bias = None
            if self.bias is not None:
                bias = sum(a[k] * self.bias[k] for k in range(self.num_experts))
            outputs.append(F.conv2d(image[None], kernel, bias, *geometry))
        return torch.cat(outputs)


def pad_like_tensorflow(x, kernel, stride, dilation):
    """The 'SAME' of TensorFlow: ceil(n / stride) outputs, an odd rest at the end."""
    sides = []
    for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True):
        outputs = math.ceil(n / s)
        missing = max((outputs - 1) * s + (k - 1) * d + 1 - n, 0)
        sides.append([missing // 2, missing - missing // 2])
    return F.pad(x, sides[1] + sides[0])


def double(layer):
    """Make a layer and a fused copy of it."""
    layer = layer.double()
    fused = copy.deepcopy(layer)
    assert fuse_condconv(fused) == 1
    return layer, fused


def results(layer, x, a):
    """Output and all gradients of a layer for a fixed random gradient of the output."""
    x, a = x.clone().requires_grad_(), a.clone().requires_grad_()
    output = layer(x, a)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(output.shape, dtype=output.dtype, generator=generator)
    return output, *torch.autograd.grad((output * weight).sum(), [x, a, *layer.parameters()])


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=pairs,
    dilation=pairs,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    same=st.booleans(),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    experts=st.integers(1, 4),
    size=st.tuples(st.integers(13, 17), st.integers(13, 17)),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_fused_condconv_computes_the_same(
    kernel, stride, dilation, padding, same, groups, bias, experts, size, seed
):
    torch.manual_seed(seed)
    padding = 0 if same else padding
    extra = {"same": same, "bias": bias, "num_experts": experts}
    layer, fused = double(CondConv2d(8, 4, kernel, stride, padding, dilation, groups, **extra))
    x, a = torch.randn(3, 8, *size, dtype=torch.float64), torch.randn(3, experts).double()
    expected = results(layer, x, a)
    for value, reference in zip(results(fused, x, a), expected, strict=True):
        torch.testing.assert_close(value, reference, **CLOSE)
    if same:
        outputs = [math.ceil(n / s) for n, s in zip(size, stride, strict=True)]
        assert list(expected[0].shape[2:]) == outputs


def test_fused_condconv_agrees_with_timm():
    layers = pytest.importorskip(
        "timm.layers", reason="timm and torchvision are not installed", exc_type=ImportError
    )
    for kernel, stride, padding, groups, bias in itertools.product(
        [1, 3, (3, 5)], [1, 2, (2, 1)], ["", "same", "valid", 1], [1, 4], [True, False]
    ):
        timm_layer = layers.CondConv2d(
            8, 12, kernel, stride, padding, groups=groups, bias=bias, num_experts=3
        )
        layer, fused = double(timm_layer)
        x, a = torch.randn(2, 8, 9, 12).double(), torch.rand(2, 3).double()
        for value, reference in zip(results(fused, x, a), results(layer, x, a), strict=True):
            torch.testing.assert_close(value, reference, **CLOSE)


class Network(nn.Module):
    """Two layers and a third that shares the first's module."""

    def __init__(self):
        super().__init__()
        self.first = CondConv2d(3, 3, 3, padding=1)
        self.block = nn.ModuleDict({"conv": CondConv2d(3, 3, 3, same=True, bias=False)})
        self.shared = self.first

    def forward(self, x, a):
        return self.shared(self.block["conv"](self.first(x, a), a), a)


def test_fusing_goes_on_with_optimizer_state_and_checkpoints():
    torch.manual_seed(0)
    expected = Network().double()
    model = copy.deepcopy(expected)
    x, a = torch.randn(2, 3, 8, 8).double(), torch.rand(2, 3).double()
    optimizers = [torch.optim.Adam(net.parameters(), 0.01) for net in (expected, model)]
    parameters = list(model.parameters())
    for step in range(4):
        if step == 2:
            assert fuse_condconv(model) == 2
        for network, optimizer in zip((expected, model), optimizers, strict=True):
            optimizer.zero_grad()
            network(x, a).square().mean().backward()
            optimizer.step()
    assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))
    assert model.shared is model.first
    assert isinstance(model.first, FusedCondConv2d)
    state = model.state_dict()
    assert list(state) == list(expected.state_dict())
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-9)
    assert (model.first.weight - Network().double().first.weight).abs().max() > 0.01
    Network().double().load_state_dict(state, strict=True)
    model.load_state_dict(expected.state_dict(), strict=True)


def test_fusing_keeps_hooks_mode_and_frozen_parameters():
    layer, calls = CondConv2d(3, 3, 3).eval(), []
    layer.register_forward_hook(lambda module, inputs, output: calls.append(output.shape))
    layer.weight.requires_grad_(False)
    assert fuse_condconv(layer) == 1
    assert not layer.training and not layer.weight.requires_grad and layer.bias.requires_grad
    layer(torch.randn(2, 3, 5, 6), torch.rand(2, 3))
    assert calls == [(2, 3, 3, 4)]


def test_fusing_twice_copying_and_pickling():
    layer = CondConv2d(3, 3, 3, same=True, stride=2)
    x, a = torch.randn(2, 3, 5, 6), torch.rand(2, 3)
    assert fuse_condconv(layer) == 1
    assert fuse_condconv(layer) == 0
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x, a), layer(x, a))
        assert other.weight is not layer.weight
    assert "padding='same'" in repr(layer)


def test_fusing_leaves_other_layers_alone():
    class Special(CondConv2d):
        """A subclass may compute something else."""

    model = nn.Sequential(nn.Conv2d(3, 3, 3), Special(3, 3, 3), nn.ReLU())
    assert fuse_condconv(model) == 0
    assert [type(m) for m in model] == [nn.Conv2d, Special, nn.ReLU]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: delattr(m, "dynamic_padding"), "no attribute 'dynamic_padding'"),
        (lambda m: setattr(m, "stride", 2), "stride: expected a pair, got 2"),
        (lambda m: setattr(m, "padding", "same"), "padding: expected a pair, got 'same'"),
        (
            lambda m: setattr(m, "weight", nn.Parameter(torch.zeros(3, 3, 3, 3, 3))),
            r"weight: expected shape \[3, 81\], got \[3, 3, 3, 3, 3\]",
        ),
        (
            lambda m: setattr(m, "bias", nn.Parameter(torch.zeros(3))),
            r"bias: expected shape \[3, 3\], got \[3\]",
        ),
        (lambda m: setattr(m, "weight", None), r"weight: expected shape \[3, 81\], got None"),
    ],
)
def test_another_layout_is_refused_before_anything_changes(change, message):
    model = nn.ModuleDict({"good": CondConv2d(3, 3, 3), "other": CondConv2d(3, 3, 3)})
    change(model["other"])
    with pytest.raises(TypeError, match=f"fuse_condconv: model: .*'other' .*: .*{message}"):
        fuse_condconv(model)
    assert type(model["good"]) is CondConv2d


def test_fused_condconv_compiles_once_for_all_sizes():
    torch.compiler.reset()
    layer = CondConv2d(3, 4, (3, 2), stride=(2, 1), same=True)
    fuse_condconv(layer)
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(layer, fullgraph=True, backend=counter, dynamic=True)
    graphs = set()
    for size in [(7, 8), (10, 9), (12, 15)]:
        x, a = torch.randn(2, 3, *size), torch.rand(2, 3)
        torch.testing.assert_close(compiled(x, a), layer(x, a))
        graphs.add(counter.frame_count)
    assert len(graphs) == 1


def test_condconv_refuses_routing_weights_of_another_number_of_experts():
    layer = CondConv2d(3, 3, 3)
    fuse_condconv(layer)
    with pytest.raises(ValueError, match=r"routing_weights: expected .* K = 3"):
        layer(torch.randn(2, 3, 5, 5), torch.rand(2, 4))


OFFICIAL_SIGNATURE = {
    "in_planes": inspect.Parameter.empty,
    "out_planes": inspect.Parameter.empty,
    "kernel_size": inspect.Parameter.empty,
    "stride": 1,
    "padding": 1,
    "dilation": 1,
    "groups": 1,
    "if_bias": True,
    "K": 5,
    "init_weight": False,
}


def test_dynamic_conv2d_is_constructed_like_the_official_class():
    parameters = inspect.signature(Dynamic_conv2d).parameters
    assert {name: p.default for name, p in parameters.items()} == OFFICIAL_SIGNATURE
    assert list(parameters) == list(OFFICIAL_SIGNATURE)
    values = (6, 4, 3, 2, 2, 2, 2, False, 3)
    layer = Dynamic_conv2d(*values)
    assert tuple(getattr(layer, name) for name in list(OFFICIAL_SIGNATURE)[:-1]) == values
    assert layer.bias is None and list(layer.state_dict()) == ["weight"]


def test_dynamic_conv2d_has_the_official_parameters():
    state = Dynamic_conv2d(64, 256, 3, groups=1, if_bias=True, K=5).state_dict()
    shapes = {name: list(value.shape) for name, value in state.items()}
    assert shapes == {"weight": [5, 256, 64, 3, 3], "bias": [5, 256]}


@pytest.mark.parametrize("kernel", [1, 3, (3, 2)])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 0, 2), (1, "same", 2)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("if_bias", [True, False])
def test_dynamic_conv2d_computes_its_formula(kernel, stride, padding, dilation, groups, if_bias):
    torch.manual_seed(0)
    layer = Dynamic_conv2d(4, 6, kernel, stride, padding, dilation, groups, if_bias, 3).double()
    x, a = torch.randn(3, 4, 8, 9).double(), torch.randn(3, 3).double()
    rows = []
    for image, weights in zip(x, a, strict=True):
        kernels = sum(weights[k] * layer.weight[k] for k in range(3))
        bias = sum(weights[k] * layer.bias[k] for k in range(3)) if if_bias else None
        rows.append(F.conv2d(image[None], kernels, bias, stride, padding, dilation, groups))
    torch.testing.assert_close(layer({"x": x, "weights": a}), torch.cat(rows), **CLOSE)


@pytest.mark.parametrize("init_weight", [True, False])
def test_dynamic_conv2d_is_initialised(init_weight):
    torch.manual_seed(0)
    layer = Dynamic_conv2d(16, 32, 3, K=4, init_weight=init_weight)
    # kaiming_uniform_ with a = 0 is U(-b, b), b = sqrt(6 / fan_in); nn.Conv2d has b = sqrt(1 / f).
    bound = math.sqrt((6 if init_weight else 1) / (16 * 9))
    for expert in layer.weight:
        assert bound * 0.99 < expert.abs().max() <= bound
        # The standard deviation of 4608 draws of U(-b, b) is known to about 0.7 %.
        assert expert.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.04)
    if init_weight:
        assert (layer.bias == 0).all()
    else:
        assert bound * 0.8 < layer.bias.abs().max() <= bound


def test_dynamic_conv2d_takes_the_dict_of_a_block():
    layer = Dynamic_conv2d(3, 3, 3)
    inputs = {"x": torch.randn(2, 3, 5, 6), "weights": torch.randn(2, 5), "other": None}
    assert layer(inputs).shape == (2, 3, 5, 6)
    with pytest.raises(TypeError, match=r"inputs: expected .* 'x' and 'weights', got \['x'\]"):
        layer({"x": inputs["x"]})
    with pytest.raises(TypeError, match=r"inputs: expected a dict .* got Tensor"):
        layer(inputs["x"])
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(inputs), layer(inputs))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"in_planes": 5, "groups": 2}, ValueError, "in_planes: expected a multiple of groups = 2"),
        ({"out_planes": 5, "groups": 2}, ValueError, "out_planes: expected a multiple"),
        ({"groups": 0}, ValueError, "groups: expected at least 1, got 0"),
        ({"K": 2.0}, TypeError, "K: expected an int, got 2.0"),
        ({"kernel_size": 0}, ValueError, "kernel_size: "),
        ({"stride": 0}, ValueError, "stride: "),
        ({"dilation": (1, 2, 3)}, TypeError, "dilation: "),
        ({"padding": -1}, ValueError, "padding: "),
    ],
)
def test_dynamic_conv2d_refuses_what_does_not_fit(arguments, error, message):
    with pytest.raises(error, match=f"^Dynamic_conv2d: {message}"):
        Dynamic_conv2d(**{"in_planes": 4, "out_planes": 4, "kernel_size": 3, **arguments})
