"""Pictures of Pillow: every mode, through the network and back."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dasr_ops.models import DASR, Degradation_Predictor, MSRResNetDynamic
from dasr_ops.models.pictures import (
    Picture,
    PictureError,
    PictureWarning,
    depth,
    fill_transparent,
)
from dasr_ops.models.upscale import Upscaler
from tests.picture_files import deep_grey, exif, picture, rgb, with_alpha


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    torch.manual_seed(0)
    net_g = MSRResNetDynamic(num_feat=6, num_block=1, num_models=2, upscale=2)
    return Upscaler(DASR(net_g, Degradation_Predictor(nf=4, num_networks=2)))


def _palette_with_transparency() -> Image.Image:
    image = rgb().quantize(8)
    image.info["transparency"] = 2
    return image


MODES = {
    "L": (lambda: rgb().convert("L"), "L"),
    "LA": (lambda: with_alpha(rgb().convert("L")), "LA"),
    "RGB": (rgb, "RGB"),
    "RGBA": (lambda: with_alpha(rgb()), "RGBA"),
    "P": (lambda: rgb().quantize(8), "RGB"),
    "P with transparency": (_palette_with_transparency, "RGBA"),
    "1": (lambda: rgb().convert("1"), "L"),
    "CMYK": (lambda: rgb().convert("CMYK"), "RGB"),
    "YCbCr": (lambda: rgb().convert("YCbCr"), "RGB"),
    "HSV": (lambda: rgb().convert("HSV"), "RGB"),
    "LAB": (lambda: Image.new("LAB", (5, 4), (140, 20, 200)), "RGB"),
    "RGBX": (lambda: rgb().convert("RGBX"), "RGB"),
    "RGBa": (lambda: with_alpha(rgb()).convert("RGBa"), "RGBA"),
    "La": (lambda: with_alpha(rgb().convert("L")).convert("La"), "LA"),
    "PA": (lambda: with_alpha(rgb()).convert("PA"), "RGBA"),
    "I;16": (deep_grey, "I;16"),
    "I;16B": (lambda: Image.frombytes("I;16B", (3, 2), bytes(range(12))), "I;16"),
    "I": (lambda: deep_grey().convert("I"), "I;16"),
}


@pytest.mark.filterwarnings("ignore:CMYK without")
@pytest.mark.parametrize("name", MODES)
def test_every_mode(upscaler, name):
    build, mode = MODES[name]
    image = build()
    result = upscaler(image)
    image = image.convert("LA") if name == "La" else image
    assert result.mode == mode
    assert result.size == (image.width * 2, image.height * 2)
    color, opacity = result, None
    if mode in ("LA", "RGBA"):
        opacity = (image if mode == "LA" else image.convert("RGBA")).getchannel("A")
        expected = np.asarray(opacity.resize(result.size, Image.Resampling.LANCZOS))
        assert np.array_equal(np.asarray(result.getchannel("A")), expected)
        color = result.convert(mode.rstrip("A"))
    # The same values as a tensor, without any of the handling of modes.
    peak = 65535 if mode == "I;16" else 255
    if mode == "I;16":
        values = np.asarray(image.convert("I")).astype(np.uint16)
    elif mode in ("L", "LA"):
        values = np.asarray(image.convert("L"))
    else:
        values = np.asarray(image.convert("RGB" if mode == "RGB" else "RGBA").convert("RGB"))
    if opacity is not None:
        values = fill_transparent(values, np.asarray(opacity))
    if values.ndim == 2:
        values = np.stack([values] * 3, axis=2)
    lr = torch.from_numpy(np.moveaxis(values / peak, 2, 0))[None].float()
    expected = upscaler(lr)[0].double().numpy()
    got = np.asarray(color).astype(np.float64)
    expected = expected.mean(0) if got.ndim == 2 else np.moveaxis(expected, 0, 2)
    # Half a step of rounding, and float32 on the way.
    assert np.abs(got - expected * peak).max() <= 0.5 + peak * 1e-6


def test_deep_grey_is_not_squeezed_through_8_bits(upscaler):
    values = np.asarray(upscaler(deep_grey()))
    assert values.dtype == np.uint16
    assert len(np.unique(values % 257)) > 50


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("F", (3, 3)), "mode F cannot be read: floating-point"),
        (Image.fromarray(np.full((2, 2), 70000, np.int32)), r"grey values 70000..70000"),
        (Image.new("RGB", (0, 3)), "empty: 0x3 pixels"),
    ],
)
def test_modes_without_a_meaning(image, message):
    with pytest.raises(PictureError, match=message):
        Picture.from_pil(image)


def test_cmyk_profile_is_not_kept_for_rgb():
    image = rgb().convert("CMYK")
    image.info["icc_profile"] = b"not a profile"
    with pytest.warns(PictureWarning, match="CMYK without a usable colour profile"):
        assert Picture.from_pil(image).icc_profile is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does(orientation):
    image = with_alpha(rgb())
    image.info["exif"] = exif(orientation)
    image.info["dpi"] = (100, 200)
    upright = Picture.from_pil(image)
    expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(upright.color, expected[..., :3])
    assert np.array_equal(upright.alpha, expected[..., 3])
    assert upright.dpi == ((100, 200) if orientation < 5 else (200, 100))
    kept = Image.Exif()
    kept.load(upright.exif)
    assert 0x0112 not in kept
    assert kept[0x010F] == "Maker"
    assert kept.get_ifd(0x8769) == {0x829A: 0.25}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("band", [50, 1 << 20])
def test_to_pil_and_back(monkeypatch, channels, bits, band):
    monkeypatch.setattr(depth, "_BAND", band)
    original = picture(channels, bits)
    image = original.to_pil()
    deep = bits == 16 and channels == 1
    assert image.mode == ("I;16" if deep else ["L", "LA", "RGB", "RGBA"][channels - 1])
    back = Picture.from_pil(image)
    divisor = 1 if bits == 8 or deep else 257
    assert np.array_equal(back.color, np.rint(original.color / divisor))
    if channels in (2, 4):
        assert np.array_equal(back.alpha, np.rint(original.alpha / divisor))
    else:
        assert back.alpha is None


@pytest.mark.parametrize(
    ("color", "alpha", "error", "message"),
    [
        ([[1]], None, TypeError, "color: expected a NumPy array, got list"),
        (np.zeros((2, 2)), None, TypeError, "color: expected uint8 or uint16, got float64"),
        (np.zeros((2, 2, 4), np.uint8), None, ValueError, r"color: expected \[H, W\] or"),
        (np.zeros((0, 2), np.uint8), None, ValueError, r"got \[0, 2\]"),
        (np.zeros(3, np.uint8), None, ValueError, r"got \[3\]"),
        (np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), ValueError, "alpha: expected"),
        (np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint16), ValueError, "alpha: expected"),
    ],
)
def test_what_is_no_picture_is_named(color, alpha, error, message):
    with pytest.raises(error, match=f"Picture: .*{message}"):
        Picture(color, alpha)


def test_16_bit_colour_goes_through_the_network_as_such(upscaler):
    original = picture(4)
    result = upscaler(original)
    filled = fill_transparent(original.color, original.alpha)
    lr = torch.from_numpy(np.moveaxis(filled / 65535, 2, 0))[None].float()
    expected = np.moveaxis(upscaler(lr)[0].double().numpy(), 0, 2) * 65535
    assert result.color.dtype == np.uint16
    assert result.size == (26, 18)
    assert np.abs(result.color - expected).max() <= 0.5 + 0.07
    assert result.alpha.dtype == np.uint16


def test_nothing_is_said_of_ordinary_pictures():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("L", "LA", "RGB", "RGBA", "P", "1", "I;16"):
            Picture.from_pil(MODES[name][0]())
