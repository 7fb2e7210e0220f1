"""`DynamicConv2d` beside `torch.nn.Conv2d`."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import dasr_ops
from dasr_ops import DynamicConv2d, FusedConv2d
from dasr_ops.compat import Dynamic_conv2d
from tests.reference import max_error, rms_error


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "bias": False},
        {"kernel_size": (4, 3), "padding": "same", "dilation": 2},
        {"kernel_size": 3, "padding": 1, "groups": 2},
    ],
    ids=str,
)
def test_from_conv2d_computes_the_same(kwargs: dict, padding_mode: str) -> None:
    conv = nn.Conv2d(4, 6, padding_mode=padding_mode, **kwargs)
    layer = DynamicConv2d.from_conv2d(conv, num_experts=3)
    routing = torch.randn(2, 3)
    routing = routing / routing.sum(1, keepdim=True)
    x = torch.randn(2, 4, 9, 8)
    # Routing weights of either sign that sum to 1 cost a few digits: their sizes bound the error.
    tolerance = 3e-6 * float(routing.abs().sum(1).max())
    torch.testing.assert_close(layer(x, routing), conv(x), rtol=tolerance, atol=4 * tolerance)


def test_from_conv2d_copies() -> None:
    conv = nn.Conv2d(3, 4, 3, device="cpu", dtype=torch.float64).eval()
    layer = DynamicConv2d.from_conv2d(conv, 2, activation="relu")
    assert layer.weight.dtype == torch.float64 and not layer.training
    assert layer.activation == "relu"
    before = layer.weight.detach().clone()
    with torch.no_grad():
        conv.weight.add_(1)
    assert torch.equal(layer.weight, before)


def test_every_expert_is_initialised_like_a_convolution_of_its_own() -> None:
    torch.manual_seed(0)
    layer = DynamicConv2d(32, 64, 3, groups=2, num_experts=4)
    bound = 1 / math.sqrt(16 * 9)
    for expert, bias in zip(layer.weight, layer.bias, strict=True):
        assert expert.abs().max() <= bound and bias.abs().max() <= bound
        # The standard deviation of a uniform distribution is its bound / sqrt(3).
        assert expert.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(layer.weight, 2))


def test_defaults_are_those_of_conv2d() -> None:
    conv, layer = nn.Conv2d(3, 4, 3), DynamicConv2d(3, 4, 3)
    for name in ("stride", "padding", "dilation", "groups", "padding_mode"):
        assert getattr(layer, name) == getattr(conv, name)
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert layer.weight.shape == (4, 4, 3, 3, 3)


def test_repr_names_what_differs_from_the_defaults() -> None:
    layer = DynamicConv2d(4, 8, (3, 1), padding="same", groups=2, bias=False, activation="relu")
    text = repr(layer)
    for part in ("4, 8", "kernel_size=(3, 1)", "padding='same'", "groups=2", "bias=False", "relu"):
        assert part in text
    assert "dilation" not in text


def test_deepcopy_state_dict_and_half() -> None:
    layer = DynamicConv2d(3, 4, 3)
    twin = DynamicConv2d(3, 4, 3)
    twin.load_state_dict(layer.state_dict(), strict=True)
    x, routing = torch.randn(2, 3, 5, 5), torch.randn(2, 4)
    assert torch.equal(copy.deepcopy(layer)(x, routing), twin(x, routing))
    half = copy.deepcopy(layer).bfloat16()
    assert half(x.bfloat16(), routing).dtype == torch.bfloat16


def test_fused_arguments_do_what_separate_modules_do() -> None:
    fused = DynamicConv2d(4, 16, 3, padding=1, activation="leaky_relu", negative_slope=0.2,
                          upscale_factor=2, residual_scale=0.5)  # fmt: skip
    plain = DynamicConv2d(4, 16, 3, padding=1)
    plain.load_state_dict(fused.state_dict())
    x, routing, residual = torch.randn(2, 4, 6, 5), torch.randn(2, 4), torch.randn(2, 4, 12, 10)
    y = nn.functional.leaky_relu(nn.functional.pixel_shuffle(plain(x, routing), 2), 0.2)
    expected = residual + 0.5 * y
    torch.testing.assert_close(fused(x, routing, residual), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused(x, routing), y, rtol=1e-5, atol=1e-5)


ACTIVATIONS = {
    None: nn.Identity(),
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(0.2),
}


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "kwargs",
    [
        {"kernel_size": 5, "padding": 2},
        {"kernel_size": 5, "stride": 2, "padding": 2},
        {"kernel_size": 3, "padding": 1, "bias": False, "groups": 2},
        {"kernel_size": (1, 3), "padding": "same", "padding_mode": "reflect"},
    ],
    ids=str,
)
def test_fused_convolution_is_a_convolution_and_its_activation(
    kwargs: dict, activation: str | None, residual: bool, backend: str
) -> None:
    torch.manual_seed(0)
    fused = FusedConv2d(6, 8, activation=activation, negative_slope=0.2, **kwargs)
    plain = nn.Conv2d(6, 8, **kwargs)
    plain.load_state_dict(fused.state_dict())
    exact = nn.Sequential(plain.double(), ACTIVATIONS[activation])
    x = torch.randn(2, 6, 33, 32)  # large enough for kernels of our own
    x_exact = x.double().requires_grad_()
    want = exact(x_exact)
    inputs, inputs_exact = [x.requires_grad_()], [x_exact]
    if residual:
        inputs.append(torch.randn(want.shape, requires_grad=True))
        inputs_exact.append(inputs[1].detach().double().requires_grad_())
        want = want + inputs_exact[1]
    grads = torch.autograd.grad(want.square().sum(), [*inputs_exact, *plain.parameters()])
    with dasr_ops.use_backend(backend):
        got = fused(*inputs)
        parameters = [*inputs, *fused.parameters()]
        got_grads = torch.autograd.grad(got.square().sum(), parameters)
    assert max_error(got, want) <= 3e-6
    for ours, theirs in zip(got_grads, grads, strict=True):
        assert rms_error(ours, theirs) <= 3e-6


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_fused_convolution_of_little_and_of_much(kernel: int, channels_last: bool) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for channels in (3, 16):
        layer = FusedConv2d(channels, 16, kernel, padding=kernel // 2, activation="relu")
        layer.requires_grad_(False)
        for size in (1, 8, 40, 70):
            for batch in (0, 1, 2):
                x = torch.randn(batch, channels, size, size).to(memory_format=memory_format)
                want = torch.relu(nn.Conv2d.forward(copy.deepcopy(layer).double(), x.double()))
                assert max_error(layer(x), want) <= 3e-6


def test_fused_convolution_says_what_it_is() -> None:
    layer = FusedConv2d(3, 4, 5, padding=2, activation="leaky_relu", negative_slope=0.2)
    assert "kernel_size=(5, 5)" in repr(layer)
    assert "activation='leaky_relu', negative_slope=0.2" in repr(layer)
    with pytest.raises(ValueError, match="FusedConv2d: activation: expected None, 'relu'"):
        FusedConv2d(3, 4, 5, activation="gelu")


def test_fused_convolution_under_autocast_returns_the_narrow_type() -> None:
    layer = FusedConv2d(3, 4, 5, padding=2, activation="relu")
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(1, 3, 8, 8)).dtype == torch.bfloat16


def test_fused_convolution_takes_what_a_convolution_takes() -> None:
    layer = FusedConv2d(4, 6, 3, activation="relu")
    image = torch.randn(4, 40, 40)
    torch.testing.assert_close(layer(image), layer(image[None])[0], rtol=0, atol=3e-6)
    with pytest.raises(RuntimeError):
        layer(torch.randn(1, 4, 40, 40, dtype=torch.bfloat16))
    assert layer(torch.randn(0, 4, 40, 40)).shape == (0, 6, 38, 38)
    twin = copy.deepcopy(layer).double()
    assert twin(image.double()[None]).dtype == torch.float64


def test_dynamic_layer_keeps_the_activation_of_a_fused_one() -> None:
    layer = DynamicConv2d.from_conv2d(FusedConv2d(3, 4, 3, activation="relu"), 2)
    assert layer.activation == "relu"
    other = DynamicConv2d.from_conv2d(FusedConv2d(3, 4, 3, activation="relu"), 2, activation=None)
    assert other.activation is None


def test_channels_last_is_for_features() -> None:
    layer = nn.Sequential(nn.Conv2d(3, 4, 3), DynamicConv2d(4, 5, 3), Dynamic_conv2d(4, 5, 3))
    before = copy.deepcopy(layer.state_dict())
    layer = layer.to(torch.float64, memory_format=torch.channels_last)
    assert layer[0].weight.is_contiguous(memory_format=torch.channels_last)
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name].double()), name
    for dynamic in layer[1:]:
        assert dynamic.weight.is_contiguous() and dynamic.weight.dtype == torch.float64
    assert isinstance(layer[1].weight, nn.Parameter) and layer[1].weight.requires_grad
    output = layer[1](torch.randn(2, 4, 5, 5, dtype=torch.float64), torch.rand(2, 4).double())
    output.sum().backward()
    layer.to(memory_format=torch.channels_last)  # with gradients
    assert layer[1].weight.grad.shape == layer[1].weight.shape
    layer.to("meta")
    with pytest.raises(NotImplementedError):
        layer.to("cpu")


@pytest.mark.parametrize("size", [6, 64])  # PyTorch's convolution, and ours
def test_residual_of_a_fused_convolution(size: int) -> None:
    layer, x = FusedConv2d(32, 32, 3, padding=1), torch.randn(1, 32, size, size)
    residual = torch.randn(1, 32, size, size, dtype=torch.float64)
    expected = nn.functional.conv2d(x, layer.weight, layer.bias, padding=1) + residual.float()
    output = layer(x, residual)
    assert output.dtype == torch.float32 and max_error(output, expected.double()) <= 4e-6
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x, residual.float()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="residual: expected as output"):
        layer(x, residual[:, :, :1, :1])


def test_what_needs_no_kernel_may_be_changed_in_place() -> None:
    x, weight, routing = torch.randn(1, 3, 6, 6), torch.randn(2, 4, 3, 3, 3), torch.rand(1, 2)
    residual = torch.randn(1, 4, 6, 6, requires_grad=True)
    output = dasr_ops.dynamic_conv2d(
        x, weight, routing, padding=1, activation="relu", residual=residual
    )
    output.add_(1)
    output.sum().backward()
    assert torch.equal(residual.grad, torch.ones_like(residual))


# ---- transforms: rules for them exist in ATen alone ----


def test_vmap_keeps_what_is_differentiated() -> None:
    weight = torch.randn(2, 5, 4, 3, 3)
    inputs = torch.randn(3, 2, 4, 8, 8, requires_grad=True)
    mapped = torch.vmap(lambda x: dasr_ops.per_sample_conv2d(x, weight, padding=1))(inputs)
    looped = torch.stack([dasr_ops.per_sample_conv2d(x, weight, padding=1) for x in inputs])
    torch.testing.assert_close(mapped, looped, rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(mapped.square().sum(), inputs)
    (expected,) = torch.autograd.grad(looped.square().sum(), inputs)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-4)


def test_ensembles_train() -> None:
    layers = [DynamicConv2d(3, 4, 3, num_experts=2) for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(layers)
    x, routing = torch.randn(1, 3, 6, 6), torch.rand(1, 2)

    def call(parameters: dict, buffers: dict) -> torch.Tensor:
        return torch.func.functional_call(layers[0], (parameters, buffers), (x, routing))

    output = torch.vmap(call)(parameters, buffers)
    output.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in parameters.values())


def test_tangents_are_not_lost() -> None:
    torch.manual_seed(0)
    layer = FusedConv2d(3, 4, 3, activation="relu")
    weight, routing = torch.randn(2, 4, 3, 3, 3), torch.rand(1, 2)
    x, tangent = torch.randn(1, 3, 40, 40), torch.randn(1, 3, 40, 40)
    for function in (layer, lambda x: dasr_ops.dynamic_conv2d(x, weight, routing)):
        output, jvp = torch.func.jvp(function, (x,), (tangent,))
        _, pullback = torch.func.vjp(function, x)
        (vjp,) = pullback(torch.ones_like(output))
        torch.testing.assert_close((vjp * tangent).sum(), jvp.sum(), rtol=1e-4, atol=1e-3)


def _transformed() -> dict[str, tuple[Callable, torch.Tensor]]:
    weight, routing = torch.randn(2, 4, 4, 3, 3), torch.rand(2, 2)
    x = torch.randn(2, 4, 6, 6)

    def call(x: torch.Tensor) -> torch.Tensor:
        return dasr_ops.dynamic_conv2d(x, weight, routing, padding=1)

    def ensemble(kernels: torch.Tensor) -> torch.Tensor:
        def member(kernel: torch.Tensor) -> torch.Tensor:
            return dasr_ops.per_sample_conv2d(x, kernel, padding=1, activation="relu", residual=x)

        return torch.func.vmap(member)(kernels)

    return {
        "jvp": (lambda x: torch.func.jvp(call, (x,), (x,))[1], x),
        "grad": (torch.func.grad(lambda x: call(x).square().sum()), x),
        "vmap": (ensemble, torch.randn(3, 2, 4, 4, 3, 3)),
    }


@pytest.mark.parametrize("name", ["jvp", "grad", "vmap"])
def test_compiled_transforms(name: str) -> None:
    function, argument = _transformed()[name]
    results = []
    for tried in (function, torch.compile(function, backend="aot_eager")):
        x = argument.clone().requires_grad_()
        output = tried(x)
        (grad,) = torch.autograd.grad(output.square().sum(), x)
        results.append((output.detach(), grad))
    assert results[0][0].any() and results[0][1].any()
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["jvp", "grad", "vmap"])
def test_transforms_are_refused_by_backends_without_rules(backend: str, name: str) -> None:
    function, argument = _transformed()[name]
    expected = function(argument)
    layer, x = FusedConv2d(3, 4, 3), torch.randn(1, 3, 64, 64)
    with dasr_ops.use_backend(backend):
        torch.func.jvp(layer, (x,), (x,))  # which is PyTorch's own there
        if backend == "eager":
            assert torch.equal(function(argument), expected)
            return
        with pytest.raises(RuntimeError, match=f"{backend!r} was asked for, but transforms of"):
            function(argument)
