"""Perceptual and style loss against a plain implementation over made-up weights."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dasr_ops.models import CheckpointError
from dasr_ops.train.config_losses import PerceptualLossConfig
from dasr_ops.train.losses import PerceptualLoss
from dasr_ops.train.losses.features import ARCHITECTURES, FeatureNetwork, find_weights, networks
from dasr_ops.train.losses.perceptual import gram_matrix

from . import losses_files as files

pytest.importorskip("h5py")
pytestmark = pytest.mark.usefixtures("one_thread")
NETWORKS = ("vgg19", "vgg16_hed")
DEFAULTS = {
    "vgg19": {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0},
    "vgg16_hed": {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_3": 1.0, "conv4_3": 1.0, "conv5_3": 1.0},
}


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    monkeypatch.setattr(networks, "_CHANNELS", files.CHANNELS)


@pytest.fixture
def made(tmp_path):
    """Return a function: network -> (arrays, path of the file that holds them)."""

    def make(network):
        arrays = files.random_arrays(network)
        if network == "vgg16_hed":
            return arrays, files.write_h5(tmp_path / "hed.weights.h5", arrays)
        path = tmp_path / "vgg19.pth"
        torch.save(files.torchvision_state(arrays), path)
        return arrays, path

    return make


def loss_of(network, path, **settings):
    return PerceptualLoss(PerceptualLossConfig(network=network, weights=path, **settings))


def scaled(network, features):
    sizes = ARCHITECTURES[network].magnitudes
    return {name: feature / sizes.get(name, 1.0) for name, feature in features.items()}


def pictures(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=dtype)


def gram(feature):
    b, c, h, w = feature.shape
    rows = feature.detach().numpy().reshape(b, c, h * w)
    return np.einsum("bik,bjk->bij", rows, rows) / (c * h * w)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [(32, 32), (37, 51), (16, 23)])
def test_features_of_every_layer(network, size, made):
    arrays, path = made(network)
    x = pictures(2, 3, *size)
    expected = scaled(network, files.plain_features(network, arrays, x))
    loss = loss_of(network, path, layers=dict.fromkeys(files.layer_names(network), 1.0))
    exact = loss.double().network(x)
    assert list(exact) == list(expected)
    for name, feature in exact.items():
        # Only constants and, where features are divided, kernels were rounded to float32.
        largest = expected[name].abs().max().item()
        torch.testing.assert_close(feature, expected[name], rtol=0, atol=2e-6 * largest)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_losses_and_gradient_in_float32(network, memory_format, criterion, made):
    arrays, path = made(network)
    # Large enough for the package's own kernels, see FusedConv2d; some layers are tapped inside.
    layers = DEFAULTS[network] | {"conv3_1": 0.7, "conv1_1": 0.3}
    loss = loss_of(network, path, style_weight=1.0, layers=layers, criterion=criterion)
    loss = loss.to(memory_format=memory_format)
    output, target = pictures(2, 3, 70, 66), pictures(2, 3, 70, 66, seed=1)

    exact = output.clone().requires_grad_()
    ours = scaled(network, files.plain_features(network, arrays, exact))
    wanted = scaled(network, files.plain_features(network, arrays, target))
    power = {"l1": 1, "l2": 2}[criterion]
    difference = {n: (ours[n] - wanted[n]).abs().pow(power).mean() for n in layers}
    perceptual = sum(w * difference[n] for n, w in layers.items())
    grams = {n: np.abs(gram(ours[n]) - gram(wanted[n])) ** power for n in layers}
    style = sum(w * grams[n].mean() for n, w in layers.items())
    (gradient,) = torch.autograd.grad(perceptual, exact)

    single = output.float().contiguous(memory_format=memory_format).requires_grad_()
    got = loss(single, target.float())
    assert set(got) == {"perceptual", "style"}
    assert all(value.dtype == torch.float32 and value.shape == () for value in got.values())
    # 16 layers whose sums err by 3e-6 of the largest value each.
    assert got["perceptual"].item() == pytest.approx(perceptual.item(), rel=2e-4)
    assert got["style"].item() == pytest.approx(style.item(), rel=2e-4)
    got["perceptual"].backward()
    # A sign of L1 or of ReLU may fall to the other side where a value is almost 0.
    error = (single.grad.double() - gradient).norm() / gradient.norm()
    assert error < (2e-2 if criterion == "l1" else 2e-3)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("criterion", ["l1", "l2"])
@pytest.mark.parametrize("part", ["perceptual", "style"])
def test_gradients(network, criterion, part, made):
    _, path = made(network)
    weights = {"weight": float(part == "perceptual"), "style_weight": float(part == "style")}
    loss = loss_of(network, path, criterion=criterion, **weights).double()
    output, target = pictures(1, 3, 17, 16).requires_grad_(), pictures(1, 3, 17, 16, seed=1)

    def value(x):
        return loss(x, target)[part]

    assert torch.autograd.gradcheck(value, output, fast_mode=True, eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_pooling_before_the_activation_changes_no_gradient(network, made):
    _, path = made(network)
    features = loss_of(network, path).double().network

    def in_the_usual_order(x):
        x = (x - features.mean) / features.std
        for name in files.layer_names(network):
            if name.endswith("_1") and name != "conv1_1":
                x = F.max_pool2d(x, 2, ceil_mode=network == "vgg16_hed")
            conv = getattr(features, name)
            before = F.conv2d(x, conv.weight, conv.bias, padding=1)
            x = before.relu()
        return before

    x = pictures(1, 3, 33, 35)
    x[..., :16] = 0.5  # windows of equal values
    x.requires_grad_()
    ours, plain = list(features(x).values())[-1], in_the_usual_order(x)
    seed = torch.randn_like(ours)
    (expected,) = torch.autograd.grad(plain, x, seed)
    (got,) = torch.autograd.grad(ours, x, seed)
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12 * expected.abs().max().item())


@pytest.mark.parametrize("network", NETWORKS)
def test_autocast_runs_convolutions_narrow_and_sums_in_float32(network, made, monkeypatch):
    _, path = made(network)
    loss = loss_of(network, path, style_weight=1.0)
    output, target = pictures(2, 3, 64, 64).float(), pictures(2, 3, 64, 64, seed=1).float()
    expected = loss(output, target)
    narrow = output.clone().requires_grad_()
    seen = []
    hook = loss.network.register_forward_hook(lambda m, i, o: seen.extend(o.values()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(narrow, target)
    hook.remove()
    assert {feature.dtype for feature in seen} == {torch.bfloat16}
    for name, value in got.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected[name].item(), rel=3e-2)
    sum(got.values()).backward()
    assert torch.isfinite(narrow.grad).all() and narrow.grad.any()


def test_gram_matrices_do_not_overflow_or_lose_digits():
    features = torch.full((1, 4, 300, 300), 100.0, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gram_matrix(features)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.full((1, 4, 4), 2500.0), rtol=1e-5, atol=0)
    last = features.contiguous(memory_format=torch.channels_last) * torch.rand(1, 4, 300, 300)
    np.testing.assert_allclose(gram_matrix(last).numpy(), gram(last.double()), rtol=1e-3)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_defaults_are_the_papers_layers(network, made):
    _, path = made(network)
    assert loss_of(network, path).layers == DEFAULTS[network]
    loss = loss_of(network, path)
    x = pictures(1, 3, 32, 32).float()
    assert loss(x, x)["perceptual"].item() == 0


def test_the_network_ends_with_the_deepest_layer(made):
    _, path = made("vgg19")
    loss = loss_of("vgg19", path, layers={"conv3_2": 1.0, "conv1_1": 0.5, "conv5_4": 0.0})
    assert [name for name, _ in loss.network.named_children()] == files.layer_names("vgg19")[:6]
    assert loss.layers == {"conv3_2": 1.0, "conv1_1": 0.5}
    # 4 pixels are enough for two poolings.
    x = pictures(1, 3, 4, 4).float()
    assert torch.isfinite(loss(x, 1 - x)["perceptual"])


def test_only_what_has_a_weight_is_computed(made, tmp_path):
    _, path = made("vgg19")
    x = pictures(1, 3, 16, 16).float()
    assert set(loss_of("vgg19", path)(x, x)) == {"perceptual"}
    assert set(loss_of("vgg19", path, weight=0.0, style_weight=2.0)(x, x)) == {"style"}
    # Nothing is read where nothing is wanted.
    assert loss_of("vgg19", tmp_path / "nothing.pth", weight=0.0)(x, x) == {}
    # The weights of the settings are the engine's business.
    one = loss_of("vgg19", path, weight=1.0, style_weight=1.0)(x, 1 - x)
    many = loss_of("vgg19", path, weight=7.0, style_weight=9.0)(x, 1 - x)
    assert one == many


def test_nothing_is_trained_saved_or_drawn(made):
    _, path = made("vgg19")
    before = torch.get_rng_state()
    loss = loss_of("vgg19", path)
    assert torch.equal(torch.get_rng_state(), before)
    assert not list(loss.parameters()) and not loss.state_dict()
    holder = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), loss)
    assert set(holder.state_dict()) == {"0.weight", "0.bias"}
    holder.load_state_dict(holder.state_dict(), strict=True)
    output, target = pictures(1, 3, 16, 16).float(), pictures(1, 3, 16, 16, seed=1).float()
    output.requires_grad_()
    target.requires_grad_()
    value = loss(output, target)["perceptual"]
    value.backward()
    assert output.grad.any() and target.grad is None
    assert all(buffer.grad is None for buffer in loss.buffers())
    assert torch.equal(copy.deepcopy(loss)(output, target)["perceptual"], value)
    assert {buffer.dtype for buffer in loss.double().buffers()} == {torch.float64}


def test_pictures_are_left_as_they_were(made):
    _, path = made("vgg19")
    loss = loss_of("vgg19", path, style_weight=1.0)
    output, target = pictures(1, 3, 16, 16).float(), pictures(1, 3, 16, 16, seed=1).float()
    copies = output.clone(), target.clone()
    first = loss(output, target)
    assert torch.equal(output, copies[0]) and torch.equal(target, copies[1])
    assert first == loss(output, target)


def test_bad_settings_are_refused(made):
    _, path = made("vgg19")
    with pytest.raises(ValueError, match=r"layers: .*vgg19, conv1_1 .. conv5_4, got \['conv6_1'\]"):
        loss_of("vgg19", path, layers={"conv1_1": 1.0, "conv6_1": 1.0})
    with pytest.raises(ValueError, match=r"vgg16_hed, .*conv5_3, got \['conv5_4'\]"):
        loss_of("vgg16_hed", path, layers={"conv5_4": 1.0})
    for bad in (-1.0, 0.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"layers: expected weights >= 0, not all 0"):
            loss_of("vgg19", path, layers={"conv1_1": bad})
    with pytest.raises(ValueError, match=r"network: expected one of .*vgg19.*, got 'vgg11'"):
        loss_of("vgg11", path)
    with pytest.raises(ValueError, match=r"criterion: expected one of l1, l2, got 'fro'"):
        loss_of("vgg19", path, criterion="fro")
    with pytest.raises(ValueError, match=r"FeatureNetwork: layers: .*; got none"):
        FeatureNetwork(ARCHITECTURES["vgg19"], {}, [])


def test_bad_pictures_are_refused(made):
    _, path = made("vgg19")
    loss = loss_of("vgg19", path)
    x = torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"output: expected \[B, 3, H, W\], got \[1, 1, 32, 32\]"):
        loss(x[:, :1], x[:, :1])
    with pytest.raises(TypeError, match=r"target: expected a floating-point tensor"):
        loss(x, (255 * x).byte())
    with pytest.raises(ValueError, match=r"target: expected the shape of output"):
        loss(x, x[..., 1:])
    with pytest.raises(ValueError, match=r"at least 16 x 16 pixels for conv5_4, got .*15, 32"):
        loss(x[..., :15, :], x[..., :15, :])


def test_one_pixel_is_enough_for_hed(made):
    _, path = made("vgg16_hed")
    x = torch.rand(1, 3, 1, 1)
    assert torch.isfinite(loss_of("vgg16_hed", path)(x, 1 - x)["perceptual"])


def test_real_features_of_hed_see_blur_and_noise(monkeypatch):
    monkeypatch.undo()
    try:
        path = find_weights("vgg16_hed")
    except CheckpointError as error:
        pytest.skip(str(error))
    from scipy.ndimage import gaussian_filter
    from skimage import data

    photo = data.astronaut()[40:168, 160:288].astype(np.float32) / 255
    noise = np.random.default_rng(0).normal(size=photo.shape)
    loss = loss_of("vgg16_hed", path)

    def distance(other):
        pair = [torch.tensor(p).float().permute(2, 0, 1)[None] for p in (other, photo)]
        with torch.no_grad():
            return loss(*pair)["perceptual"].item()

    blurred = [distance(gaussian_filter(photo, (s, s, 0))) for s in (0.5, 1, 2, 4)]
    noisy = [distance(photo + s / 255 * noise) for s in (2, 5, 10, 25, 50)]
    for course in (blurred, noisy):
        assert course[0] > 0 and all(a < 0.9 * b for a, b in itertools.pairwise(course))
        assert course[-1] < 10
    # Features have a mean size of about 1 on photographs, which is what they are divided for.
    tensor = torch.tensor(photo).permute(2, 0, 1)[None]
    for feature in loss.network(tensor).values():
        assert 0.4 < feature.abs().mean() < 2.5
