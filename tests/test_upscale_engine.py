"""`Upscaler`: what comes out is what the network computes, for every kind of input."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dasr_ops.models import (
    DASR,
    CheckpointError,
    Degradation_Predictor,
    MSRResNetDynamic,
    memory,
    read_metadata,
    save_dasr,
    shipped,
)
from dasr_ops.models.controls import Controls
from dasr_ops.models.upscale import NonFiniteError, Upscaler


@pytest.fixture(scope="module")
def model() -> DASR:
    torch.manual_seed(0)
    return DASR(
        MSRResNetDynamic(num_feat=8, num_block=2, num_models=3, upscale=2),
        Degradation_Predictor(nf=4, num_networks=3),
    )


@pytest.fixture
def picture() -> np.ndarray:
    """Noise whose brightness grows to the right: tiles predict different degradations."""
    noise = np.random.default_rng(0).integers(0, 256, (70, 83, 3))
    return (noise * np.linspace(0.1, 1, 83)[None, :, None]).astype(np.uint8)


def _assert_rounded(result: np.ndarray, expected: torch.Tensor) -> None:
    """``result`` uint8 [H, W, C] is ``expected`` [1, C, H, W] in 0..1, rounded.

    Another order of additions may round a value next to k + 1/2 the other way, rarely.
    """
    exact = expected[0].clamp(0, 1).permute(1, 2, 0).double().numpy() * 255
    assert np.abs(result.astype(float) - exact).max() <= 0.5 + 1e-3


def _whole(model: DASR, array: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255)


def test_array_and_picture_and_tensor_agree(model, picture):
    upscaler = Upscaler(model, tile=0)
    expected = _whole(model, picture)
    _assert_rounded(upscaler(picture), expected)
    image = upscaler(Image.fromarray(picture))
    assert isinstance(image, Image.Image)
    _assert_rounded(np.asarray(image), expected)
    lr = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    torch.testing.assert_close(upscaler(lr), expected.clamp(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_arrays_keep_their_channels(model, channels):
    array = np.random.default_rng(1).integers(0, 256, (11, 13, channels), dtype=np.uint8)
    result = Upscaler(model)(array)
    assert result.shape == (22, 26, channels)
    assert result.dtype == np.uint8
    color = array[:, :, :3] if channels > 2 else np.repeat(array[:, :, :1], 3, axis=2)
    expected = _whole(model, color)
    if channels < 3:
        expected = expected.clamp(0, 1).mean(1, keepdim=True)
    _assert_rounded(result[:, :, : expected.shape[1]], expected)
    if channels in (2, 4):
        alpha = Image.fromarray(array[:, :, -1]).resize((26, 22), Image.Resampling.LANCZOS)
        assert np.array_equal(result[:, :, -1], np.asarray(alpha))


@pytest.mark.parametrize("overlap", [7, 9])
@pytest.mark.parametrize("size", [(70, 83), (31, 140), (1, 1), (33, 1)])
def test_tiles_with_the_receptive_field_change_nothing(model, overlap, size):
    lr = torch.rand(2, 3, *size) * torch.linspace(0.1, 1, size[1])
    untiled, tiled = Upscaler(model, tile=0), Upscaler(model, tile=32, overlap=overlap)
    assert tiled.receptive_field_radius == 7
    # Another shape may take another order of additions: some roundings of 2^-24.
    torch.testing.assert_close(tiled(lr), untiled(lr), rtol=0, atol=2e-6)


def test_one_pixel_less_than_the_receptive_field_is_not_exact(model):
    lr = torch.rand(1, 3, 70, 83)
    untiled, tiled = Upscaler(model, tile=0), Upscaler(model, tile=32, overlap=5)
    difference = (tiled(lr) - untiled(lr)).abs().max()
    assert 2e-6 < difference < 1e-2


def test_automatic_tiles_change_nothing(model, monkeypatch):
    lr = torch.rand(2, 3, 150, 210) * torch.linspace(0.1, 1, 210)
    expected = Upscaler(model, tile=0)(lr)
    sizes = []
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    hook = model.net_g.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[2:]))
    try:
        result = Upscaler(model, overlap=9)(lr)
    finally:
        hook.remove()
    assert len(sizes) > 3
    assert all(h * w <= 128**2 for h, w in sizes)
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("scale", [1, 1.5, 2, 3.7])
def test_other_scales_are_lanczos_of_the_network(model, picture, scale):
    upscaler = Upscaler(model, scale=scale, tile=32, overlap=9)
    result = upscaler(picture)
    width, height = upscaler.output_size(83, 70)
    assert (width, height) == (round(83 * scale), round(70 * scale))
    assert result.shape == (height, width, 3)
    enlarged = _whole(model, picture)[0].clamp(0, 1)
    planes = [Image.fromarray(plane.numpy()).resize((width, height), 1) for plane in enlarged]
    assert Image.Resampling.LANCZOS == 1
    _assert_rounded(result, torch.from_numpy(np.stack(planes))[None])
    lr = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    assert upscaler(lr).shape == (1, 3, height, width)


def test_no_side_becomes_zero(model):
    assert Upscaler(model, scale=0.1)(np.zeros((1, 3, 3), np.uint8)).shape == (1, 1, 3)


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 2), (9, 7, 3), (9, 7, 4)])
def test_16_bit_arrays_keep_their_depth(model, shape):
    array = np.random.default_rng(1).integers(0, 65536, shape, dtype=np.uint16)
    result = Upscaler(model)(array)
    assert result.dtype == np.uint16
    assert result.shape == (18, 14, *shape[2:])
    layers = array.reshape(9, 7, -1)
    color = layers[:, :, :3] if layers.shape[2] > 2 else layers[:, :, :1].repeat(3, axis=2)
    with torch.no_grad():
        exact = model(torch.from_numpy(color / np.float32(65535)).permute(2, 0, 1)[None])
    exact = exact[0].clamp(0, 1).permute(1, 2, 0).numpy() * 65535.0
    if layers.shape[2] < 3:
        exact = exact.mean(2, keepdims=True)
    got = result.reshape(18, 14, -1)[:, :, : exact.shape[2]]
    # Half a step, and some roundings of float32 values up to 65535.
    assert np.abs(got - exact).max() <= 0.5 + 0.05


def test_16_bit_pictures_are_computed_in_float32_unless_told_otherwise(model, monkeypatch):
    upscaler = Upscaler(model)
    upscaler.dtype = torch.float16  # as on CUDA
    seen = []
    hook = model.net_g.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    try:
        upscaler(np.zeros((4, 4, 3), np.uint16))
        upscaler(np.zeros((4, 4, 3), np.uint8))
        Upscaler(model, dtype=torch.float16)(np.zeros((4, 4, 3), np.uint16))
    finally:
        hook.remove()
    assert seen == [torch.float32, torch.float16, torch.float16]


def test_tiles_may_be_given(model, picture):
    upscaler = Upscaler(model)
    assert upscaler.choose_tiles(70, 83) == (70, 83)
    assert Upscaler(model, tile=32, overlap=4).choose_tiles(70, 83) == (32, 32)
    sizes = []
    hook = model.net_g.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[2:]))
    try:
        upscaler(picture, tiles=(40, 50))
    finally:
        hook.remove()
    assert len(sizes) > 3
    assert max(h for h, _ in sizes) <= 40
    assert max(w for _, w in sizes) <= 50


def test_no_more_context_than_is_of_use(model, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    assert Upscaler(model, overlap=1000).choose_tiles(4000, 6000)[0] <= 200


def test_what_progress_raises_ends_the_work(model, picture):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Upscaler(model, tile=24, overlap=4)(picture, progress=stop)


def test_degradation_is_predicted_once_from_the_whole_image(model, picture):
    calls, seen = [], []
    hooks = [
        model.net_p.MappingNet.register_forward_hook(lambda *_: calls.append(1)),
        model.net_g.register_forward_pre_hook(lambda _, args: seen.append(args[1])),
    ]
    try:
        Upscaler(model, tile=24, overlap=4)(picture)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(calls) == 1
    assert len(seen) > 12
    assert all(torch.equal(weights, seen[0]) for weights in seen)
    with torch.no_grad():
        lr = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        torch.testing.assert_close(seen[0], model.predict(lr).weights, rtol=1e-5, atol=1e-6)


def test_tiles_are_no_larger_than_asked(model, picture):
    sizes = []
    hook = model.net_g.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[2:]))
    progress = []
    try:
        Upscaler(model, tile=30, overlap=5)(picture, progress=lambda *now: progress.append(now))
    finally:
        hook.remove()
    assert max(max(size) for size in sizes) <= 30
    assert progress == [(i + 1, len(sizes)) for i in range(len(sizes))]


def test_degradation_can_be_given_or_edited(model):
    lr = torch.rand(1, 3, 12, 12)
    upscaler = Upscaler(model)
    v = upscaler.predict(lr).v
    torch.testing.assert_close(upscaler(lr, degradation=v), upscaler(lr), rtol=0, atol=0)
    other = upscaler(lr, degradation=lambda v: v + torch.linspace(-3, 3, 33))
    expected = upscaler(lr, degradation=v + torch.linspace(-3, 3, 33))
    torch.testing.assert_close(other, expected, rtol=0, atol=0)
    assert (other - upscaler(lr)).abs().max() > 1e-4
    with pytest.raises(ValueError, match=r"degradation: expected \[1, 33\], got \[1, 5\]"):
        upscaler(lr, degradation=torch.rand(1, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_arithmetic(model, picture, dtype):
    exact = Upscaler(model, dtype=torch.float32)(picture).astype(int)
    result = Upscaler(model, dtype=dtype)(picture).astype(int)
    # Eight bits of mantissa are half a grey level near 1; a few such roundings meet.
    assert np.abs(result - exact).max() <= (1 if dtype == torch.float16 else 4)


def _overflowing(value: float) -> DASR:
    torch.manual_seed(0)
    net_g = MSRResNetDynamic(num_feat=4, num_block=1, num_models=2, upscale=2)
    with torch.no_grad():
        net_g.conv_first.bias.fill_(value)  # beyond float16; the last layer brings it back
        for layer in (net_g.body[0].conv1, net_g.body[0].conv2, net_g.upconv1, net_g.conv_hr):
            layer.weight.zero_()
        net_g.upconv1.weight.fill_(1e-3 / value)
    return DASR(net_g, Degradation_Predictor(nf=4, num_networks=2))


def test_overflow_in_float16_falls_back_to_float32_with_one_warning():
    upscaler = Upscaler(_overflowing(1e6), tile=16, overlap=2, dtype=torch.float16)
    lr = torch.rand(1, 3, 20, 20)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = [upscaler(lr), upscaler(lr)]
    messages = [str(w.message) for w in caught if "float16 overflows" in str(w.message)]
    assert len(messages) == 1
    expected = Upscaler(upscaler.model, tile=16, overlap=2, dtype=torch.float32)(lr)
    for result in results:
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_broken_weights_are_an_error():
    model = _overflowing(1.0)
    with torch.no_grad():
        model.net_g.conv_hr.bias[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="infinities or NaN"):
        Upscaler(model, dtype=torch.float32)(torch.rand(1, 3, 4, 4))


def test_tensors_keep_type_and_gradients_are_not_tracked(model):
    for dtype in (torch.float32, torch.float64, torch.float16):
        result = Upscaler(model)(torch.rand(2, 3, 5, 6).to(dtype))
        assert result.dtype == dtype
        assert result.shape == (2, 3, 10, 12)
        assert not result.requires_grad
        assert 0 <= result.min() <= result.max() <= 1


def test_shipped_weights_say_what_they_are():
    files = list(shipped.FOLDER.glob("*.safetensors"))
    assert files
    for path in files:
        metadata = read_metadata(path)
        assert path.stem in shipped.NAMES
        assert (metadata["title"], metadata["licence"]) == (path.stem, "Apache-2.0")
        assert path.stat().st_size <= 17e6


def test_the_model_card_names_the_weights():
    card = (shipped.FOLDER / "README.md").read_text()
    for name in shipped.available():
        assert f"`{name}`" in card


def test_from_pretrained(model, tmp_path, picture, monkeypatch):
    save_dasr(model, tmp_path / "m.safetensors")
    save_dasr(model, tmp_path / "g.pth", tmp_path / "p.pth")
    expected = Upscaler(model)(picture)
    for path in (tmp_path / "m.safetensors", [tmp_path / "g.pth", tmp_path / "p.pth"]):
        assert np.array_equal(Upscaler.from_pretrained(path)(picture), expected)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match="this build comes without weights"):
        Upscaler.from_pretrained()
    (tmp_path / "m.safetensors").rename(tmp_path / "small.safetensors")
    for name in (None, "small", Path("small")):
        assert Upscaler.from_pretrained(name, tile=0).scale == 2
    message = "dasr-gan: this build comes without these weights; it has small"
    with pytest.raises(CheckpointError, match=message):
        Upscaler.from_pretrained("dasr-gan")
    with pytest.raises(CheckpointError, match="large: expected a name that ends in"):
        Upscaler.from_pretrained("large")


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"tile": -1}, ValueError, "tile: expected at least 0, got -1"),
        ({"tile": 32, "overlap": 16}, ValueError, "more than twice the overlap of 16, got 32"),
        ({"tile": 32.0}, TypeError, r"tile: expected an int, got 32.0"),
        ({"tile": "all"}, ValueError, "tile: expected an int or \"auto\", got 'all'"),
        ({"scale": 0}, ValueError, "scale: expected more than 0 and at most 32, got 0"),
        ({"scale": 33.0}, ValueError, "scale: expected more than 0 and at most 32, got 33"),
        ({"scale": float("nan")}, ValueError, "scale: expected more than 0"),
        ({"scale": "2"}, TypeError, "scale: expected a number, got '2'"),
        ({"overlap": -2}, ValueError, "overlap: expected at least 0, got -2"),
        ({"dtype": torch.float64}, ValueError, "dtype: expected one of"),
    ],
)
def test_bad_options_are_named(model, kwargs, error, message):
    with pytest.raises(error, match=message):
        Upscaler(model, **kwargs)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ("photo.png", TypeError, "image: expected a PIL image, a NumPy array or a Tensor, got str"),
        (
            np.zeros(4, np.uint8),
            ValueError,
            r"image: expected \[H, W\] or \[H, W, C\] .* got \[4\]",
        ),
        (np.zeros((4, 4, 5), np.uint8), ValueError, r"image: expected \[H, W\] or \[H, W, C\]"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"image: expected \[H, W\] or \[H, W, C\]"),
        (np.zeros((4, 4, 3)), TypeError, "image: expected a uint8 or uint16 array, got float64"),
        (torch.zeros(3, 4, 4), ValueError, r"image: expected \[B, 3, H, W\]"),
        (torch.zeros(1, 3, 0, 4), ValueError, r"image: expected \[B, 3, H, W\]"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), TypeError, "expected a floating-point"),
        (torch.full((1, 3, 4, 4), 200.0), ValueError, r"expected values in 0..1, got 200..200"),
        (torch.full((1, 3, 4, 4), torch.nan), ValueError, r"expected values in 0..1, got nan"),
        (Image.new("F", (4, 4)), ValueError, "mode F cannot be read"),
    ],
)
def test_bad_images_are_named(model, image, error, message):
    with pytest.raises(error, match=message):
        Upscaler(model)(image)


def test_numbers_of_numpy(model, picture):
    upscaler = Upscaler(model, tile=np.int64(40), overlap=np.int32(8), scale=np.float32(1.5))
    assert (upscaler.tile, upscaler.overlap, upscaler.scale) == (40, 8, 1.5)
    deep = picture.astype(np.uint16) * 257
    result = upscaler(deep.astype(">u2"))
    assert result.dtype == np.uint16 and np.array_equal(result, upscaler(deep))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"degradation": torch.full((1, 33), torch.nan)}, ValueError, "expected finite numbers"),
        ({"degradation": lambda v: v / 0}, ValueError, "expected finite numbers"),
        ({"degradation": np.zeros((1, 33))}, TypeError, "a Tensor or a function, got ndarray"),
        ({"degradation": [0.0] * 33}, TypeError, "a Tensor or a function, got list"),
        ({"tiles": (10, 10)}, ValueError, r"tiles: expected rows .* more than \d+, got \(10, 10\)"),
        ({"tiles": (-5, 3)}, ValueError, "tiles: expected rows and columns"),
        ({"tiles": 64}, ValueError, "tiles: expected rows and columns"),
    ],
)
def test_bad_arguments_of_a_call_are_named(model, kwargs, error, message):
    with pytest.raises(error, match=message):
        Upscaler(model)(torch.rand(1, 3, 20, 20), **kwargs)


def test_controls_mean_what_the_weights_say(model):
    model.label_scheme = "official"
    image = torch.rand(1, 3, 20, 20)
    with pytest.raises(ValueError, match="expected scheme official, that of the weights, got unif"):
        Upscaler(model)(image, degradation=Controls(denoise=-1))
    Upscaler(model)(image, degradation=Controls(denoise=-1, scheme="official"))


def test_broken_weights_are_what_is_blamed(model):
    with torch.no_grad():
        model.net_p.MappingNet[0].bias.fill_(torch.nan)
        next(model.net_p.parameters()).fill_(torch.nan)
    for degradation in (None, lambda v: v):
        with pytest.raises(NonFiniteError, match="its weights are broken"):
            Upscaler(model)(torch.rand(1, 3, 20, 20), degradation=degradation)


def test_model_must_be_dasr_for_rgb():
    with pytest.raises(TypeError, match="model: expected a DASR, got Linear"):
        Upscaler(torch.nn.Linear(1, 1))
    grey = DASR(MSRResNetDynamic(1, 1, 4, 1, 2), Degradation_Predictor(1, 4, num_networks=2))
    with pytest.raises(ValueError, match="model: expected one of 3 channels, got 1"):
        Upscaler(grey)
