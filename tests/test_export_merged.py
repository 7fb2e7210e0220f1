"""Merged networks compute what DASR does for their degradation, and load wherever SRResNet does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dasr_ops.models import DASR, SRResNet, load_srresnet, read_metadata
from dasr_ops.models.export import (
    choose_degradation,
    degradation_metadata,
    merge,
    save_merged,
)
from dasr_ops.train.degradations import LAYOUT

from .export_tools import pictures as noise
from .export_tools import tiny_model


def basicsr(state: dict[str, torch.Tensor], x: torch.Tensor, scale: int) -> torch.Tensor:
    """BasicSR's MSRResNet, written down from its state dict."""

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], 1, 1)

    feat = F.leaky_relu(conv("conv_first", x), 0.1)
    blocks = len({name.split(".")[1] for name in state if name.startswith("body.")})
    for i in range(blocks):
        feat = feat + conv(f"body.{i}.conv2", F.relu(conv(f"body.{i}.conv1", feat)))
    for name, factor in [("upconv1", 2), ("upconv2", 2)] if scale == 4 else [("upconv1", scale)]:
        feat = F.leaky_relu(F.pixel_shuffle(conv(name, feat), factor), 0.1)
    out = conv("conv_last", F.leaky_relu(conv("conv_hr", feat), 0.1))
    return out + F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)


@pytest.mark.parametrize(
    ("scale", "experts", "channels"), [(2, 3, 3), (3, 1, 3), (4, 5, 3), (4, 2, 1)]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_merged_files(tmp_path, scale, experts, channels, suffix):
    model = tiny_model(scale, experts, channels)
    v = torch.rand(33)
    path = tmp_path / f"merged{suffix}"
    save_merged(merge(model, v), path)
    loaded = load_srresnet(path)
    assert isinstance(loaded, SRResNet)
    lr = noise(model, 2, 11, 14)
    with torch.no_grad():
        expected = model(lr, degradation=v.expand(2, -1))
        # Layers of a hundred terms each: some 1e-6 of the largest value.
        tolerance = 1e-5 * max(1, float(expected.abs().max()))
        torch.testing.assert_close(loaded(lr), expected, rtol=0, atol=tolerance)
        state = loaded.state_dict()
        if suffix == ".pth":
            stored = torch.load(path, weights_only=True)
            state = stored["params"]
            assert all(stored["params_ema"][name] is not None for name in state)
        torch.testing.assert_close(basicsr(state, lr, scale), expected, rtol=0, atol=tolerance)


def test_official_size_has_a_fifth_of_the_parameters():
    network = merge(DASR(), torch.rand(1, 33))
    assert sum(p.numel() for p in network.parameters()) == 1_517_571
    names = {"conv_first", "upconv1", "upconv2", "conv_hr", "conv_last"}
    names |= {f"body.{i}.conv{j}" for i in range(16) for j in (1, 2)}
    assert {name.rpartition(".")[0] for name in network.state_dict()} == names


def test_half_and_metadata(tmp_path):
    model = tiny_model()
    v = torch.linspace(0, 1, 33)
    entries = {"licence": "CC0-1.0", **degradation_metadata(v)}
    save_merged(merge(model, v), tmp_path / "a.safetensors", metadata=entries)
    save_merged(merge(model, v), tmp_path / "b.safetensors", half=True)
    assert (tmp_path / "b.safetensors").stat().st_size < 0.7 * (
        tmp_path / "a.safetensors"
    ).stat().st_size
    found = read_metadata(tmp_path / "a.safetensors")
    assert found["licence"] == "CC0-1.0"
    assert json.loads(found["degradation"]) == pytest.approx(v.tolist(), abs=1e-6)
    full, half = (load_srresnet(tmp_path / f"{name}.safetensors") for name in "ab")
    for name, tensor in full.state_dict().items():
        torch.testing.assert_close(half.state_dict()[name], tensor.half().float(), rtol=0, atol=0)


def test_merging_keeps_the_model_and_its_place():
    model = tiny_model().double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network = merge(model, torch.rand(33))
    assert network.conv_last.weight.dtype == torch.float64
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("v", "error", "message"),
    [
        (torch.rand(32), ValueError, r"v: expected \[1, 33\], got \[1, 32\]"),
        (torch.rand(2, 33), ValueError, r"v: expected \[1, 33\], got \[2, 33\]"),
        (torch.full((33,), float("nan")), ValueError, "v: expected finite numbers"),
        ([0.0] * 33, TypeError, "v: expected a Tensor, got list"),
        (torch.zeros(33, dtype=torch.int64), TypeError, "v: expected a floating-point tensor"),
    ],
)
def test_bad_vectors(v, error, message):
    with pytest.raises(error, match=message):
        merge(tiny_model(), v)


def test_bad_arguments(tmp_path):
    with pytest.raises(TypeError, match="model: expected a DASR, got SRResNet"):
        merge(SRResNet(num_feat=2, num_block=1), torch.rand(33))
    with pytest.raises(TypeError, match="model: expected a SRResNet, got DASR"):
        save_merged(tiny_model(), tmp_path / "a.pth")
    network = merge(tiny_model(), torch.rand(33))
    with pytest.raises(ValueError, match=r"path: expected a \.safetensors or \.pth file"):
        save_merged(network, tmp_path / "a.onnx")
    save_merged(network, tmp_path / "a.pth")
    with pytest.raises(FileExistsError):
        save_merged(network, tmp_path / "a.pth", overwrite=False)
    with torch.no_grad():
        network.conv_hr.bias[0] = 1e6
    with pytest.raises(ValueError, match=r"half: conv_hr.bias holds values beyond"):
        save_merged(network, tmp_path / "b.pth", half=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_named_degradations():
    model = tiny_model()
    clean, mean = choose_degradation(model, "clean"), choose_degradation(model, "mean")
    assert clean.shape == mean.shape == (1, 33)
    quality = LAYOUT.index("jpeg1_quality") if "jpeg1_quality" in LAYOUT else 26
    assert clean[0, quality] == 1  # not compressed
    assert clean[0, 18:26].abs().max() == 0  # no noise
    assert 0.3 < mean[0, quality] < 0.9
    # Of noises 1-10, 1-20 and 1-30, half of them Gaussian: some tenths.
    assert 0.1 < mean[0, 18] < 0.6
    official = choose_degradation(model, "clean", "official")
    assert not torch.equal(official, clean)
    with pytest.raises(ValueError, match="scheme: expected one of"):
        choose_degradation(model, "mean", "mine")
    with pytest.raises(ValueError, match="predicts 7 numbers instead of the 33"):
        choose_degradation(tiny_model(num_params=7), "clean")


def test_degradation_of_a_file(tmp_path):
    v = [round(0.01 * i, 2) for i in range(33)]
    (tmp_path / "v.json").write_text(json.dumps({"v": v}))
    found = choose_degradation(tiny_model(), tmp_path / "v.json")
    torch.testing.assert_close(found, torch.tensor([v]))
    (tmp_path / "v.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"v\.json: expected 33 numbers, found 2"):
        choose_degradation(tiny_model(), tmp_path / "v.json")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_degradation_of_a_picture(tmp_path, channels, mode):
    model = tiny_model(channels=channels)
    array = np.random.default_rng(0).integers(0, 256, (21, 30, 3), dtype=np.uint8)
    image = Image.fromarray(array).convert(mode)
    image.save(tmp_path / "photo.png")
    found = choose_degradation(model, tmp_path / "photo.png")
    color = np.asarray(image.convert("L" if mode == "L" else "RGB"), np.float32) / 255
    lr = torch.from_numpy(color).reshape(21, 30, -1).permute(2, 0, 1)
    lr = lr.mean(0, keepdim=True) if channels == 1 else lr.expand(3, -1, -1)
    with torch.no_grad():
        torch.testing.assert_close(found, model.predict(lr[None]).v, rtol=0, atol=1e-5)
