"""JPEG: the codec, the same on the device in batches, and both against the definition."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image, features
from scipy import ndimage

from dasr_ops.train.degradations.jpeg import jpeg_compress
from dasr_ops.train.degradations.jpeg_batched import jpeg_batched, quantisation_tables


def picture(*shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def smooth(height, width, channels=3, seed=0):
    noise = np.random.default_rng(seed).random((channels, height, width))
    blurred = ndimage.gaussian_filter(noise, (0, 2, 2))
    low, high = blurred.min(), blurred.max()
    return torch.from_numpy((blurred - low) / max(high - low, 1e-9))


LUMA_TABLE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)


def jpeg_oracle(pixels, quality):
    """Grey baseline JPEG by its definition: 8x8 DCT, quantise, back."""
    factor = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = np.clip((LUMA_TABLE * factor + 50) // 100, 1, 255)
    n = np.arange(8)
    dct = np.cos((2 * n[None] + 1) * n[:, None] * math.pi / 16) / 2
    dct[0] /= math.sqrt(2)
    out = np.zeros(pixels.shape)
    for y in range(0, pixels.shape[0], 8):
        for x in range(0, pixels.shape[1], 8):
            block = pixels[y : y + 8, x : x + 8].astype(float) - 128
            coded = np.round(dct @ block @ dct.T / table) * table
            out[y : y + 8, x : x + 8] = dct.T @ coded @ dct + 128
    return np.clip(np.round(out), 0, 255)


@pytest.mark.parametrize("codec", ["pillow", "batched"])
@pytest.mark.parametrize("quality", [30, 60, 95])
def test_grey_jpeg_matches_the_definition(quality, codec):
    x = (smooth(120, 96, channels=1) * 255).round() / 255
    ours = jpeg_compress([x], [quality], codec)[0][0].numpy() * 255
    expected = jpeg_oracle((x[0] * 255).round().numpy(), quality)
    difference = np.abs(ours - expected)
    # The codec's integer DCT now and then rounds a coefficient the other way, which moves a block
    # by one quantisation step of one wave. All else agrees to one grey level.
    assert np.mean(difference > 1) < 0.08
    assert difference.mean() < 0.25
    assert np.abs(ours - x[0].numpy() * 255).mean() > 2.5 * difference.mean()


def test_colour_jpeg_of_mixed_sizes_is_what_a_file_holds(tmp_path):
    sizes, quality = [(40, 33), (7, 50), (64, 64)], [35, 95, 70]
    images = [smooth(h, w, seed=h).float() for h, w in sizes]
    ours = jpeg_compress(images, quality)
    for x, y, q in zip(images, ours, quality, strict=True):
        pixels = np.rint(x.numpy().transpose(1, 2, 0).astype(np.float64) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "p.jpg", quality=q)
        expected = np.asarray(Image.open(tmp_path / "p.jpg"), dtype=np.float32)
        assert y.dtype == torch.float32
        np.testing.assert_array_equal((y * 255).round().numpy().transpose(1, 2, 0), expected)


def test_tables_are_those_that_files_hold():
    quality = [1, 2, 10, 25, 49, 50, 51, 75, 90, 95, 99, 100]
    ours = quantisation_tables(torch.tensor(quality))
    for q, tables in zip(quality, ours, strict=True):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, format="JPEG", quality=q)
        stored = Image.open(buffer).quantization
        for index in (0, 1):
            np.testing.assert_array_equal(tables[index].numpy(), stored[index])


SIZES = [(40, 33), (7, 50), (64, 64), (1, 1), (3, 4), (17, 5), (47, 90), (15, 3), (2, 2), (16, 31)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("contents", ["smooth", "noise", "saturated"])
def test_batched_jpeg_is_that_of_the_codec(contents, channels):
    """Bit for bit with libjpeg-turbo; another libjpeg may differ where a value lies on a tie."""
    images = []
    for seed, (height, width) in enumerate(SIZES):
        x = smooth(height, width, channels, seed).float()
        if contents != "smooth":
            x = picture(channels, height, width, seed=seed, dtype=torch.float32)
        images.append(x.round() if contents == "saturated" else x)
    for offset in (0, 3, 7):
        quality = [(30, 95, 75, 50, 90, 60, 10, 99, 1, 100)[(i + offset) % 10] for i in range(10)]
        ours = jpeg_compress(images, quality, "batched")
        expected = jpeg_compress(images, quality, "pillow")
        for x, y in zip(ours, expected, strict=True):
            assert x.shape == y.shape and x.dtype == y.dtype
        pairs = zip(ours, expected, strict=True)
        steps = torch.cat([(x - y).abs().flatten() * 255 for x, y in pairs]).round()
        if features.check_feature("libjpeg_turbo"):
            assert steps.max() == 0
        else:
            assert steps.mean() < 0.25 and (steps > 1).float().mean() < 0.08


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_lies_beyond_a_picture_has_no_influence(dtype):
    sizes = torch.tensor([[23, 30], [40, 17]])
    canvas = picture(2, 3, 40, 30, dtype=dtype)
    other = canvas.clone()
    for plane, (height, width) in zip(other, sizes.tolist(), strict=True):
        plane[:, height:], plane[:, :, width:] = 1, -3
    tables = quantisation_tables(torch.tensor([40, 80]))
    first, second = (jpeg_batched(x, sizes[:, 0], sizes[:, 1], tables) for x in (canvas, other))
    for i, (height, width) in enumerate(sizes.tolist()):
        assert torch.equal(first[i, :, :height, :width], second[i, :, :height, :width])
        alone = jpeg_compress([canvas[i, :, :height, :width]], [(40, 80)[i]], "batched")[0]
        assert torch.equal(first[i, :, :height, :width], alone)
    assert first.dtype == dtype


def test_jpeg_clamps_and_loses_less_at_higher_quality():
    x = smooth(64, 64) * 1.4 - 0.2
    error = [(y - x.clamp(0, 1)).abs().mean() for y in jpeg_compress([x] * 4, [30, 60, 90, 99])]
    assert error[0] > error[1] > error[2] > error[3] > 0
    wide, cut = jpeg_compress([x, x.clamp(0, 1)], [80, 80])
    assert torch.equal(wide, cut)


def test_jpeg_refuses_bad_arguments():
    x = picture(3, 8, 8)
    assert jpeg_compress([], []) == []
    with pytest.raises(ValueError, match=r"quality: expected whole numbers in 1\.\.100, got 0"):
        jpeg_compress([x], [0])
    with pytest.raises(ValueError, match="quality: expected 1 values, got 2"):
        jpeg_compress([x], [50, 60])
    with pytest.raises(ValueError, match=r"codec: expected one of .* got 'turbo'"):
        jpeg_compress([x], [50], "turbo")
    with pytest.raises(ValueError, match="images: expected all grey or all RGB"):
        jpeg_compress([x, x[:1]], [50, 50])
