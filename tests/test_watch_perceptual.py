"""ST-LPIPS against its formula in NumPy and SciPy, and with its real weights where they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from dasr_ops.train import perceptual_distance
from dasr_ops.train.perceptual_distance import (
    MissingWeightsError,
    PerceptualDistance,
    find_weights,
)
from dasr_ops.train.watch.scores import Scores

LAYERS = [
    ("net.slice1.0", 3, 64, 11),
    ("net.slice2.5", 64, 192, 5),
    ("net.slice3.9", 192, 384, 3),
    ("net.slice4.11", 384, 256, 3),
    ("net.slice5.13", 256, 256, 3),
]


def random_state():
    rng = np.random.default_rng(0)

    def normal(*shape, spread=1.0):
        return torch.from_numpy(rng.normal(0, spread, shape).astype(np.float32))

    state = {
        "scaling_layer.shift": normal(1, 3, 1, 1, spread=0.1),
        "scaling_layer.scale": torch.full((1, 3, 1, 1), 0.45),
    }
    for index, (name, inputs, outputs, side) in enumerate(LAYERS):
        state[f"{name}.weight"] = normal(
            outputs, inputs, side, side, spread=(2 / (inputs * side**2)) ** 0.5
        )
        state[f"{name}.bias"] = normal(outputs, spread=0.1)
        state[f"lin{index}.model.1.weight"] = normal(1, outputs, 1, 1).abs()
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(random_state(), path)
    return path


def blur_and_halve(x):
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2)), mode="reflect")
    binomial = np.outer([1, 2, 1], [1, 2, 1])[None] / 16
    return ndimage.correlate(padded, binomial, mode="constant")[:, 1:-1, 1:-1][:, ::2, ::2]


def convolve(x, weight, bias, pad):
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(1, 2))
    return np.einsum("chwyx,ocyx->ohw", windows, weight, optimize=True) + bias[:, None, None]


def max_pool(x):
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    return windows.max(axis=(3, 4))


def oracle(a, b, state):
    """The distance of two pictures [3, H, W] in float64, from the paper."""
    state = {name: tensor.double().numpy() for name, tensor in state.items()}
    features = []
    for x in (a, b):
        x = 2 * x.double().numpy() - 1
        x = (x - state["scaling_layer.shift"][0]) / state["scaling_layer.scale"][0]
        of_layers = []
        for index, (name, _, _, side) in enumerate(LAYERS):
            if index in (1, 2):
                x = blur_and_halve(max_pool(x))
            pad = 2 if side > 3 else 1
            x = convolve(x, state[f"{name}.weight"], state[f"{name}.bias"], pad)
            x = np.maximum(blur_and_halve(x) if index == 0 else x, 0)
            of_layers.append(x / (np.sqrt((x**2).sum(0, keepdims=True)) + 1e-10))
        features.append(of_layers)
    total = 0.0
    for index, (x, y) in enumerate(zip(*features, strict=True)):
        importance = state[f"lin{index}.model.1.weight"][0]
        total += ((x - y) ** 2 * importance).sum(0).mean()
    return total


@pytest.mark.parametrize("size", [(21, 21), (34, 27)])
def test_the_distance_is_that_of_the_formula(weights, size):
    a = torch.rand(2, 3, *size)
    b = (a + 0.2 * torch.randn_like(a)).clamp(0, 1)
    found = PerceptualDistance(weights)(a, b)
    state = random_state()
    for i in range(2):
        # float32 sums of up to 4800 products, squared differences of normalised features
        assert found[i].item() == pytest.approx(oracle(a[i], b[i], state), rel=1e-4)
    assert PerceptualDistance(weights)(a, a).tolist() == [0, 0]


def test_scores_remember_the_right_ground_truth(weights, monkeypatch):
    monkeypatch.setattr(perceptual_distance, "find_weights", lambda: weights)
    scores, distance = Scores(4, perceptual=True), PerceptualDistance()
    features, computed = scores.distance.features, []
    monkeypatch.setattr(
        scores.distance, "features", lambda x: (computed.append(x.shape), features(x))[1]
    )
    truths = torch.randint(0, 256, (2, 1, 3, 40, 36), dtype=torch.uint8)
    cut = truths[0][..., :32]
    results = torch.rand(2, 1, 3, 40, 36)
    for gt in (truths[0], truths[0].clone(), truths[1], cut, truths[0]):
        for sr in results:
            sr = (sr[..., : gt.shape[-1]] * 255).round() / 255
            # The order of sums may depend on the layout.
            expected = distance(sr, gt / 255).item()
            assert scores(sr, gt)["perceptual"] == pytest.approx(expected, rel=1e-5)
    assert len(computed) == 5 * len(results) + 4  # the second ground truth equals the first
    scores.forget()
    scores(results[0], truths[0])
    assert len(computed) == 5 * len(results) + 6


def test_bad_pictures(weights):
    distance, x = PerceptualDistance(weights), torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match="H and W at least 21, got"):
        distance(x[..., :20], x[..., :20])
    with pytest.raises(ValueError, match="as target"):
        distance(x, x[..., :24])
    with pytest.raises(TypeError, match="pred: expected a floating tensor"):
        distance(x.byte(), x)


def test_a_missing_package(monkeypatch):
    monkeypatch.setattr(perceptual_distance, "PACKAGE", "no_such_package_anywhere")
    with pytest.raises(
        MissingWeightsError, match=r"not installed: pip install 'dasr-ops\[train\]'"
    ):
        PerceptualDistance()
    monkeypatch.setattr(perceptual_distance, "PACKAGE", "torch")
    with pytest.raises(MissingWeightsError, match=r"has no weights/vST0\.0/alex"):
        PerceptualDistance()


def test_broken_weights(tmp_path):
    path = tmp_path / "x.pth"
    with pytest.raises(MissingWeightsError, match="cannot be read"):
        PerceptualDistance(path)
    path.write_bytes(b"nothing of this kind")
    with pytest.raises(MissingWeightsError, match="cannot be read"):
        PerceptualDistance(path)
    state = random_state()
    del state["lin3.model.1.weight"]
    torch.save(state, path)
    with pytest.raises(MissingWeightsError, match=r"lin3.model.1.weight: expected shape \[1, 256"):
        PerceptualDistance(path)


def test_the_real_weights():
    try:
        find_weights()
    except MissingWeightsError:
        pytest.skip("stlpips-pytorch is not installed")
    generator = torch.Generator().manual_seed(1)
    a = torch.rand(2, 3, 64, 80, generator=generator)
    b = (a + 0.1 * torch.randn(a.shape, generator=generator)).clamp(0, 1)
    # What the package's own code says.
    expected = [0.002934654, 0.002737103]
    assert PerceptualDistance()(a, b).tolist() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("height", [*range(21, 34), 64, 65])
def test_strips_change_nothing(weights, monkeypatch, height):
    distance, a = PerceptualDistance(weights), torch.rand(1, 3, height, 23)
    b = torch.rand_like(a)
    monkeypatch.setattr(perceptual_distance, "_STRIP_VALUES", 10**9)
    whole = distance._first(a), distance(a, b).item()
    monkeypatch.setattr(perceptual_distance, "_STRIP_VALUES", 1)  # eight rows of the result
    torch.testing.assert_close(distance._first(a), whole[0], rtol=1e-5, atol=1e-5)
    assert distance(a, b).item() == pytest.approx(whole[1], rel=1e-5)
