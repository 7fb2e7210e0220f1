"""The joint module: overriding the prediction, P in strips, the receptive field."""

from __future__ import annotations

import pytest
import torch

from dasr_ops.models import DASR, Degradation_Predictor, MSRResNetDynamic, Prediction


@pytest.fixture
def model() -> DASR:
    torch.manual_seed(0)
    return DASR(
        MSRResNetDynamic(num_feat=8, num_block=2, num_models=3, upscale=2),
        Degradation_Predictor(nf=6, num_networks=3),
    )


def test_prediction_can_be_overridden(model):
    lr = torch.rand(2, 3, 11, 10)
    prediction = model.predict(lr)
    assert isinstance(prediction, Prediction)
    assert prediction.v.shape == (2, 33)
    assert prediction.weights.shape == (2, 3)
    sr = model(lr)
    assert sr.shape == (2, 3, 22, 20)
    torch.testing.assert_close(model(lr, degradation=prediction.v), sr, rtol=0, atol=0)
    torch.testing.assert_close(model(lr, weights=prediction.weights), sr, rtol=0, atol=0)
    other = prediction.v + torch.linspace(-1, 1, 33)
    changed = model(lr, degradation=other)
    torch.testing.assert_close(changed, model.net_g(lr, model.net_p.mix(other)), rtol=0, atol=0)
    assert (changed - sr).abs().max() > 1e-4


def test_gradients_reach_both_networks(model):
    model(torch.rand(2, 3, 8, 8)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"degradation": torch.rand(2, 33), "weights": torch.rand(2, 3)}, ValueError, "got both"),
        ({"degradation": torch.rand(1, 33)}, ValueError, r"degradation: expected \[2, 33\]"),
        ({"weights": torch.rand(2, 4)}, ValueError, r"weights: expected \[2, 3\], got \[2, 4\]"),
        ({"weights": [1.0]}, TypeError, "weights: expected a Tensor, got list"),
        ({"weights": torch.ones(2, 3, dtype=torch.int64)}, TypeError, "weights: expected a float"),
    ],
)
def test_bad_overrides_are_named(model, kwargs, error, message):
    with pytest.raises(error, match=message):
        model(torch.rand(2, 3, 8, 8), **kwargs)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 3, 0, 8)])
def test_bad_images_are_named(model, shape):
    with pytest.raises(ValueError, match=r"input: expected"):
        model(torch.rand(shape))
    with pytest.raises(TypeError, match=r"input: expected a floating-point tensor"):
        model(torch.ones(1, 3, 8, 8, dtype=torch.uint8))


def test_networks_must_fit():
    with pytest.raises(ValueError, match="net_p: expected num_networks = 3 to fit net_g, got 5"):
        DASR(MSRResNetDynamic(num_feat=4, num_block=1, num_models=3), Degradation_Predictor(nf=4))
    with pytest.raises(TypeError, match="net_g: expected an MSRResNetDynamic"):
        DASR(Degradation_Predictor())


@pytest.mark.parametrize(
    ("height", "width", "max_pixels"),
    [
        (257, 95, 95 * 70),  # strips of 70 rows, 38 without their halo
        (256, 96, 96 * 71),  # an odd number of rows at a time
        (131, 301, 1),  # as small as blocks get: 64x64
        (97, 211, 64 * 75),  # blocks in both directions
        (33, 333, 33 * 100),
        (300, 1, 100),
        (64, 64, 64 * 64),  # fits as a whole
    ],
)
def test_strips_predict_as_the_whole_image_does(model, height, width, max_pixels):
    lr = torch.rand(2, 3, height, width, dtype=torch.float64)
    lr[..., height // 2 :, :] *= 0.2
    net = model.net_p.double()
    whole, strips = net(lr), net.predict_in_strips(lr, max_pixels)
    # Only the order of at most 25,000 additions differs: 25,000 * 2^-53 = 3e-12.
    torch.testing.assert_close(strips.v, whole.v, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(strips.weights, whole.weights, rtol=1e-11, atol=1e-12)


def test_strips_bound_what_is_computed_at_a_time(model):
    sizes = []
    model.net_p.ConvNet.register_forward_pre_hook(
        lambda _, args: sizes.append(args[0].shape[2] * args[0].shape[3])
    )
    model.predict(torch.rand(1, 3, 400, 300), max_pixels=20_000)
    assert len(sizes) > 6
    assert max(sizes) <= 20_000
    with pytest.raises(ValueError, match="max_pixels: expected at least 1, got 0"):
        model.predict(torch.rand(1, 3, 8, 8), max_pixels=0)


def test_halo_of_the_predictor_is_its_receptive_field(model):
    net = model.net_p.double()
    x = torch.rand(1, 3, 80, 80, dtype=torch.float64, requires_grad=True)
    net.ConvNet(x)[0, :, 20, 20].sum().backward()
    touched = x.grad[0].abs().sum(0).nonzero()
    centre = 20 * net.stride
    assert touched.min().item() == centre - net.halo
    assert touched.max().item() == centre + net.halo


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("blocks", [1, 3])
def test_receptive_field_radius(scale, blocks):
    torch.manual_seed(0)
    net = MSRResNetDynamic(num_feat=6, num_block=blocks, num_models=1, upscale=scale).double()
    radius = net.receptive_field_radius
    assert radius == 2 * blocks + 3
    size = 2 * radius + 5
    x = torch.rand(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    sr = net(x, torch.ones(1, 1, dtype=torch.float64))
    centre = size // 2
    block = slice(centre * scale, (centre + 1) * scale)
    # Weights at random signs: a sum of squares cannot cancel exactly.
    sr[0, :, block, block].square().sum().backward()
    touched = x.grad[0].abs().sum(0).nonzero()
    assert touched.min().item() == centre - radius
    assert touched.max().item() == centre + radius


def test_official_receptive_field():
    assert MSRResNetDynamic().receptive_field_radius == 35


@pytest.mark.slow
def test_compiles_as_one_graph_and_exports_with_dynamic_sizes(model):
    lr = torch.rand(2, 3, 12, 9)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(lr), model(lr), rtol=0, atol=1e-6)
    height, width = (torch.export.Dim(name, min=4, max=4096) for name in ("height", "width"))
    program = torch.export.export(model, (lr,), dynamic_shapes={"lr": {2: height, 3: width}})
    other = torch.rand(2, 3, 31, 17)
    torch.testing.assert_close(program.module()(other), model(other), rtol=0, atol=1e-6)
