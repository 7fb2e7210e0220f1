"""The networks against the table of the official files, and G and P against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dasr_ops.models import (
    DASR,
    Degradation_Predictor,
    MSRResNetDynamic,
    SRResNet,
    UNetDiscriminatorSN,
)

# A chain of about 40 float32 roundings on values of order 1: some 40 * 2^-24 = 2.4e-6, and sums of
# 576 products in another order on top.
TOLERANCE = 2e-5


def _generator_shapes(scale: int, experts: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The state dict of the official G; ``experts`` is (K,), or () for the static network."""
    outputs = {"conv_first": (64, 3)}
    for block in range(16):
        outputs[f"body.{block}.conv1"] = (64, 64)
        outputs[f"body.{block}.conv2"] = (64, 64)
    outputs["upconv1"] = ({2: 256, 3: 576, 4: 256}[scale], 64)
    if scale == 4:
        outputs["upconv2"] = (256, 64)
    outputs["conv_hr"] = (64, 64)
    outputs["conv_last"] = (3, 64)
    shapes = {}
    for name, (o, i) in outputs.items():
        shapes[f"{name}.weight"] = (*experts, o, i, 3, 3)
        shapes[f"{name}.bias"] = (*experts, o)
    return shapes


PREDICTOR_SHAPES = {
    "ConvNet.0.weight": (64, 3, 5, 5),
    "ConvNet.0.bias": (64,),
    "ConvNet.2.weight": (64, 64, 5, 5),
    "ConvNet.2.bias": (64,),
    "ConvNet.4.weight": (64, 64, 5, 5),
    "ConvNet.4.bias": (64,),
    "ConvNet.6.weight": (64, 64, 5, 5),
    "ConvNet.6.bias": (64,),
    "ConvNet.8.weight": (64, 64, 5, 5),
    "ConvNet.8.bias": (64,),
    "ConvNet.10.weight": (33, 64, 5, 5),
    "ConvNet.10.bias": (33,),
    "MappingNet.0.weight": (15, 33),
    "MappingNet.0.bias": (15,),
    "MappingNet.1.weight": (5, 15),
    "MappingNet.1.bias": (5,),
}

# name: (O, I, size of the kernel); u has O entries, v has I * size^2.
NORMALISED = {
    "conv1": (128, 64, 4),
    "conv2": (256, 128, 4),
    "conv3": (512, 256, 4),
    "conv4": (256, 512, 3),
    "conv5": (128, 256, 3),
    "conv6": (64, 128, 3),
    "conv7": (64, 64, 3),
    "conv8": (64, 64, 3),
}


def _discriminator_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"conv0.weight": (64, 3, 3, 3), "conv0.bias": (64,)}
    shapes |= {"conv9.weight": (1, 64, 3, 3), "conv9.bias": (1,)}
    for name, (o, i, size) in NORMALISED.items():
        shapes[f"{name}.weight_orig"] = (o, i, size, size)
        shapes[f"{name}.weight_u"] = (o,)
        shapes[f"{name}.weight_v"] = (i * size * size,)
    return shapes


@pytest.mark.parametrize(
    ("build", "shapes", "parameters"),
    [
        (MSRResNetDynamic, _generator_shapes(4, (5,)), 7_587_855),
        (lambda: MSRResNetDynamic(upscale=2), _generator_shapes(2, (5,)), 6_849_295),
        (lambda: MSRResNetDynamic(upscale=3), _generator_shapes(3, (5,)), 7_772_495),
        (SRResNet, _generator_shapes(4, ()), 1_517_571),
        (lambda: SRResNet(upscale=3), _generator_shapes(3, ()), 1_554_499),
        (Degradation_Predictor, PREDICTOR_SHAPES, 468_143),
        (UNetDiscriminatorSN, _discriminator_shapes(), 4_376_897),
    ],
    ids=["G", "G-x2", "G-x3", "static", "static-x3", "P", "D"],
)
def test_keys_shapes_counts(build, shapes, parameters):
    network = build()
    assert {name: tuple(t.shape) for name, t in network.state_dict().items()} == shapes
    assert sum(p.numel() for p in network.parameters()) == parameters
    network.load_state_dict({name: torch.zeros(s) for name, s in shapes.items()}, strict=True)


def _official_conv(x: Tensor, state: dict[str, Tensor], name: str, a: Tensor) -> Tensor:
    """Convolution of the paper: mix kernels per image, fold the batch into the groups."""
    batch, _, height, width = x.shape
    kernels = torch.einsum("bk,koihw->boihw", a, state[f"{name}.weight"])
    biases = torch.einsum("bk,ko->bo", a, state[f"{name}.bias"])
    out = F.conv2d(
        x.reshape(1, -1, height, width),
        kernels.flatten(0, 1),
        biases.flatten(),
        padding=1,
        groups=batch,
    )
    return out.reshape(batch, -1, height, width)


def _official_generator(x: Tensor, state: dict[str, Tensor], a: Tensor, scale: int) -> Tensor:
    def lrelu(t: Tensor) -> Tensor:
        return torch.where(t > 0, t, 0.1 * t)

    out = lrelu(_official_conv(x, state, "conv_first", a))
    block = 0
    while f"body.{block}.conv1.weight" in state:
        hidden = _official_conv(out, state, f"body.{block}.conv1", a).clamp(min=0)
        out = out + _official_conv(hidden, state, f"body.{block}.conv2", a)
        block += 1
    shuffle = nn.PixelShuffle(2 if scale == 4 else scale)
    out = lrelu(shuffle(_official_conv(out, state, "upconv1", a)))
    if scale == 4:
        out = lrelu(shuffle(_official_conv(out, state, "upconv2", a)))
    out = lrelu(_official_conv(out, state, "conv_hr", a))
    out = _official_conv(out, state, "conv_last", a)
    size = (x.shape[2] * scale, x.shape[3] * scale)
    return out + F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _randomise(network: nn.Module, seed: int = 0) -> None:
    """Give every parameter, biases included, values of the size that trained networks have."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        fan_in = max(parameter[0].numel(), 4) if parameter.dim() < 5 else parameter[0, 0].numel()
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise.to(parameter.dtype) * fan_in**-0.5


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("channels_last", [False, True])
def test_generator_is_the_official_one(scale, channels_last):
    net = MSRResNetDynamic(num_feat=12, num_block=3, num_models=4, upscale=scale)
    _randomise(net)
    x, a = torch.rand(3, 3, 9, 14), torch.randn(3, 4)
    expected = _official_generator(x, net.state_dict(), a, scale)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    result = net(x, a)
    assert result.shape == (3, 3, 9 * scale, 14 * scale)
    spread = expected.std().item()
    torch.testing.assert_close(result, expected, rtol=TOLERANCE, atol=TOLERANCE * max(spread, 1))
    expected_format = torch.channels_last if channels_last else torch.contiguous_format
    assert result.is_contiguous(memory_format=expected_format)


def test_generator_of_the_official_size_is_the_official_one():
    net = MSRResNetDynamic()
    x, a = torch.rand(2, 3, 8, 7), torch.randn(2, 5)
    with torch.no_grad():
        expected = _official_generator(x, net.state_dict(), a, 4)
        torch.testing.assert_close(net(x, a), expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (13, 22)])
def test_predictor_is_the_official_one(size):
    net = Degradation_Predictor(nf=8)
    _randomise(net)
    x = torch.rand(2, 3, *size)
    out, state = x, net.state_dict()
    for index in range(6):
        weight, bias = (state[f"ConvNet.{2 * index}.{name}"] for name in ("weight", "bias"))
        out = F.conv2d(out, weight, bias, stride=2 if index == 3 else 1, padding=2)
        out = torch.where(out > 0, out, 0.2 * out)
    v = out.flatten(2).mean(2)
    hidden = v @ state["MappingNet.0.weight"].T + state["MappingNet.0.bias"]
    a = hidden @ state["MappingNet.1.weight"].T + state["MappingNet.1.bias"]
    prediction = net(x)
    torch.testing.assert_close(prediction.v, v, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(prediction.weights, a, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(net.mix(prediction.v), prediction.weights, rtol=0, atol=0)


def test_discriminator_returns_a_map_and_uses_its_skips():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 16, 24)
    with_skips = UNetDiscriminatorSN(num_feat=4).eval()
    without = UNetDiscriminatorSN(num_feat=4, skip_connection=False).eval()
    without.load_state_dict(with_skips.state_dict())
    assert with_skips(x).shape == (2, 1, 16, 24)
    assert (with_skips(x) - without(x)).abs().max() > 1e-4
    with pytest.raises(
        ValueError, match=r"input: expected .* multiples of 8, got \[2, 3, 12, 16\]"
    ):
        with_skips(torch.rand(2, 3, 12, 16))


@pytest.mark.parametrize("shape", [(2, 3, 16, 8), (2, 3, 64, 72)], ids=str)
def test_discriminator_is_the_official_one(shape: tuple[int, ...]):
    """The larger pictures are those that CPU kernels take."""
    torch.manual_seed(0)
    net, x = UNetDiscriminatorSN(num_feat=4), torch.rand(shape)
    net(x)  # fresh u and v are random: one step brings them near the singular vectors
    state = {name: tensor.double() for name, tensor in net.eval().state_dict().items()}
    parameters = dict(net.named_parameters())
    for name in parameters:
        state[name].requires_grad_()

    def conv(t: Tensor, name: str, stride: int = 1) -> Tensor:
        weight, u, v = (state[f"{name}.weight_{part}"] for part in ("orig", "u", "v"))
        out = F.conv2d(t, weight / (u @ weight.flatten(1) @ v), stride=stride, padding=1)
        return torch.where(out > 0, out, 0.2 * out)

    def up(t: Tensor) -> Tensor:
        size = (2 * t.shape[2], 2 * t.shape[3])
        return F.interpolate(t, size=size, mode="bilinear", align_corners=False)

    first = F.conv2d(x.double(), state["conv0.weight"], state["conv0.bias"], padding=1)
    downs = [torch.where(first > 0, first, 0.2 * first)]
    for name in ("conv1", "conv2", "conv3"):
        downs.append(conv(downs[-1], name, stride=2))
    out = downs.pop()
    for name in ("conv4", "conv5", "conv6"):
        out = conv(up(out), name) + downs.pop()
    out = conv(conv(out, "conv7"), "conv8")
    expected = F.conv2d(out, state["conv9.weight"], state["conv9.bias"], padding=1)
    got = net(x)
    torch.testing.assert_close(got.double(), expected, rtol=TOLERANCE, atol=TOLERANCE)
    ours = torch.autograd.grad(got.square().mean(), list(parameters.values()))
    theirs = torch.autograd.grad(expected.square().mean(), [state[n] for n in parameters])
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        error = (a.double() - b).norm() / b.norm()
        assert error <= TOLERANCE, (name, error.item())


def test_discriminator_is_spectrally_normalised():
    torch.manual_seed(0)
    net = UNetDiscriminatorSN(num_feat=4)
    for _ in range(50):  # power iterations, one for each training forward
        net(torch.rand(1, 3, 8, 8))
    for name in NORMALISED:
        norm = torch.linalg.matrix_norm(getattr(net, name).weight.flatten(1), ord=2).item()
        assert norm == pytest.approx(1, abs=0.03), name  # one iteration leaves 0.1 to 0.5


def test_power_iterations_by_themselves_are_those_of_a_training_call():
    torch.manual_seed(0)
    called, asked = UNetDiscriminatorSN(num_feat=4), UNetDiscriminatorSN(num_feat=4)
    asked.load_state_dict(called.state_dict())
    x = torch.rand(1, 3, 8, 8)
    called(x)
    output = called(x)
    asked.iterate_norms(2)
    assert torch.equal(asked.eval()(x), output)
    for name, buffer in called.named_buffers():
        assert torch.equal(dict(asked.named_buffers())[name], buffer), name


def test_fresh_network_is_near_bilinear_and_finite():
    torch.manual_seed(0)
    model, x = DASR(), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        sr = model(x)
    bilinear = F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
    assert 0 < (sr - bilinear).abs().max() < 0.5


def test_initialisation_of_experts():
    torch.manual_seed(0)
    net = MSRResNetDynamic()
    kaiming = (2 / (64 * 9)) ** 0.5
    for layer, scale in (
        (net.body[7].conv1, 0.1),
        (net.conv_hr, 1 / 1.01**0.5),  # gain for LeakyReLU(0.1): sqrt(2 / (1 + 0.01))
    ):
        for expert in layer.weight:
            # The deviation of a deviation of 36,864 samples is 0.4 %.
            assert expert.std().item() == pytest.approx(kaiming * scale, rel=0.02)
    assert all(not p.any() for name, p in net.named_parameters() if name.endswith("bias"))


def test_mixing_weights_start_summing_to_one_and_differ():
    torch.manual_seed(0)
    net = Degradation_Predictor(nf=16, num_networks=5)
    images = torch.rand(4, 3, 20, 20) * torch.tensor([0.1, 0.4, 0.7, 1.0]).view(4, 1, 1, 1)
    a = net(images).weights
    torch.testing.assert_close(a.sum(1), torch.ones(4), rtol=0, atol=1e-6)
    assert (a[0] - a[1]).abs().max() > 1e-3


def test_fresh_predictor_sees_detail_and_not_brightness():
    torch.manual_seed(0)
    v = torch.rand(33)
    net = Degradation_Predictor(nf=16)
    net.reset_parameters(v)
    flat = torch.full((1, 3, 96, 96), 0.4)
    noise = 0.05 * torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        inner = [net.ConvNet(x)[..., 12:-12, 12:-12].mean((2, 3))[0] for x in (flat, flat + noise)]
        brighter = net.ConvNet(flat + 0.3)[..., 12:-12, 12:-12].mean((2, 3))[0]
    torch.testing.assert_close(inner[0], v, rtol=0, atol=1e-5)
    torch.testing.assert_close(brighter, v, rtol=0, atol=1e-5)
    assert (inner[1] - v).abs().max() > 0.02
    with pytest.raises(ValueError, match=r"reset_parameters: v: expected \[33\], got \[32\]"):
        net.reset_parameters(v[1:])


def _small_static(scale: int = 4) -> SRResNet:
    torch.manual_seed(1)
    static = SRResNet(num_feat=8, num_block=2, upscale=scale)
    _randomise(static)
    return static


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_start_from_static_preserves_the_function(scale):
    static = _small_static(scale)
    model = DASR(
        MSRResNetDynamic.from_static(static, 3), Degradation_Predictor(nf=4, num_networks=3)
    )
    x = torch.rand(2, 3, 10, 9)
    expected = static(x)
    atol = TOLERANCE * max(expected.std().item(), 1)
    torch.testing.assert_close(model(x), expected, rtol=TOLERANCE, atol=atol)


def _gaps_after_training(rows: float) -> dict[str, float]:
    """Smallest distance between two experts of each layer that were equal before two steps.

    ``rows`` scales the rows of MappingNet.1; 0 is the trap in which experts never part.
    """
    torch.manual_seed(2)
    net_g = MSRResNetDynamic.from_static(_small_static(), 3)
    model = DASR(net_g, Degradation_Predictor(nf=4, num_networks=3))
    with torch.no_grad():
        model.net_p.MappingNet[1].weight.mul_(rows)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    x = torch.rand(2, 3, 12, 12) * torch.tensor([0.2, 1.0]).view(2, 1, 1, 1)
    for _ in range(2):
        optimizer.zero_grad()
        F.l1_loss(model(x), torch.rand(2, 3, 48, 48)).backward()
        optimizer.step()
    return {
        name: torch.pdist(parameter.detach().flatten(1)).min().item()
        for name, parameter in net_g.named_parameters()
        if name.endswith("weight")
    }


def test_experts_that_start_equal_part():
    # Adam moves an entry by up to 1e-4 a step; gradients of equal signs part experts by less.
    assert min(_gaps_after_training(rows=1).values()) > 1e-7
    assert max(_gaps_after_training(rows=0).values()) == 0


def test_to_static_is_the_mixture():
    net = MSRResNetDynamic(num_feat=8, num_block=2, num_models=3)
    _randomise(net)
    x, a = torch.rand(1, 3, 8, 9), torch.randn(1, 3)
    expected = net(x, a)
    atol = TOLERANCE * max(expected.std().item(), 1)
    torch.testing.assert_close(net.to_static(a)(x), expected, rtol=TOLERANCE, atol=atol)
    torch.testing.assert_close(net.to_static(a[0])(x), expected, rtol=TOLERANCE, atol=atol)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: MSRResNetDynamic(upscale=5), ValueError, r"upscale: expected one of \(2, 3, 4\)"),
        (lambda: MSRResNetDynamic(num_feat=0), ValueError, "num_feat: expected at least 1, got 0"),
        (lambda: MSRResNetDynamic(num_models=2.0), TypeError, "num_models: expected an int"),
        (lambda: SRResNet(num_out_ch=1), ValueError, "num_out_ch: expected num_in_ch = 3"),
        (lambda: SRResNet(num_block=True), TypeError, "num_block: expected an int, got True"),
        (lambda: Degradation_Predictor(nf=-1), ValueError, "nf: expected at least 1, got -1"),
        (lambda: UNetDiscriminatorSN(skip_connection=1), TypeError, "skip_connection: expected"),
        (lambda: MSRResNetDynamic.from_static(nn.Identity()), TypeError, "static: expected"),
    ],
)
def test_bad_arguments_are_named(build, error, message):
    with pytest.raises(error, match=message):
        build()
