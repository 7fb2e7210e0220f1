"""Opacity: nothing bleeds from what is invisible, and enlarging keeps its range."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from dasr_ops.models.pictures import alpha as alpha_module
from dasr_ops.models.pictures import depth, enlarge_alpha, fill_transparent
from tests.picture_files import noise


def _disc(side: int, dtype: type) -> np.ndarray:
    y, x = np.mgrid[0:side, 0:side] - (side - 1) / 2
    return ((x**2 + y**2 < (side / 3) ** 2) * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("shape", [(37, 50), (37, 50, 3), (1, 9, 3), (9, 1), (64, 64, 3)])
def test_visible_pixels_stay_and_holes_are_within_their_range(bits, shape):
    color = noise(*shape, bits=bits)
    alpha = noise(*shape[:2], bits=bits, seed=1)
    alpha[alpha < np.iinfo(alpha.dtype).max // 2] = 0
    alpha.reshape(-1)[0] = 1
    seen = alpha > 0
    before = color.copy()
    filled = fill_transparent(color, alpha)
    assert np.array_equal(color, before)
    assert filled.dtype == color.dtype and filled.shape == color.shape
    assert np.array_equal(filled[seen], color[seen])
    low, high = color[seen].min(axis=0), color[seen].max(axis=0)
    assert np.all(filled >= low) and np.all(filled <= high)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_one_colour_fills_everything(dtype):
    alpha = _disc(200, dtype)
    color = np.zeros((200, 200, 3), dtype)
    color[alpha > 0] = (200, 10, 77)
    assert np.all(fill_transparent(color, alpha) == (200, 10, 77))


def test_neighbours_at_an_edge_continue_what_is_seen():
    # A ramp is seen on the left; what is next to its edge must not jump, as black would.
    color = np.zeros((64, 64), np.uint8)
    color[:, :40] = np.arange(100, 180, 2)
    alpha = np.zeros((64, 64), np.uint8)
    alpha[:, :40] = 255
    filled = fill_transparent(color, alpha).astype(int)
    edge = filled[:, 40:44]
    assert np.abs(edge - 178).max() <= 12
    steps = np.abs(np.diff(filled[:, 40:], axis=1))
    assert steps.max() <= 8


def test_it_is_close_to_averages_of_gaussians():
    # Independent oracle: normalised convolution, which also weighs colours by opacity.
    generator = np.random.default_rng(0)
    color = ndimage.gaussian_filter(generator.random((96, 96)) * 255, 6)
    color = ((color - color.min()) / np.ptp(color) * 255).astype(np.uint8)
    alpha = ((generator.random((96, 96)) < 0.2) * 255).astype(np.uint8)
    weight = ndimage.gaussian_filter((alpha / 255).astype(float), 2)
    smooth = ndimage.gaussian_filter(color * (alpha / 255), 2) / np.maximum(weight, 1e-9)
    holes = alpha == 0
    difference = np.abs(fill_transparent(color, alpha)[holes] - smooth[holes])
    assert difference.mean() < 4
    assert np.abs(fill_transparent(color, alpha)[holes] - color[holes].astype(float)).mean() < 6


def test_faint_pixels_weigh_little():
    color = np.array([[[0], [250], [0]]], np.uint8)[..., 0]
    alpha = np.array([[1, 255, 0]], np.uint8)
    assert fill_transparent(color, alpha)[0, 2] > 200


def test_all_or_none_invisible():
    color = noise(5, 6, 3, bits=8)
    for value in (0, 1, 255):
        assert fill_transparent(color, np.full((5, 6), value, np.uint8)) is color


def test_bands_change_nothing(monkeypatch):
    color, alpha = noise(70, 90, 3), _disc(90, np.uint16)[:70]
    expected = fill_transparent(color, alpha)
    enlarged = enlarge_alpha(alpha, (280, 210))
    monkeypatch.setattr(depth, "_BAND", 500)
    assert np.array_equal(fill_transparent(color, alpha), expected)
    # Coordinates of bands are rounded apart: half a step of 65535.
    again = enlarge_alpha(alpha, (280, 210))
    assert np.abs(again.astype(int) - enlarged).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("size", [(40, 28), (25, 17), (10, 7), (33, 50)])
def test_enlarged_alpha_is_lanczos(bits, size):
    alpha = noise(7, 10, bits=bits)
    result = enlarge_alpha(alpha, size)
    peak = (1 << bits) - 1
    assert result.dtype == alpha.dtype
    assert result.shape == size[::-1]
    # Columns, then rows; of bytes Pillow clamps what is between the passes, too.
    expected = alpha.astype(np.float32)
    for target in ((size[0], 7), size):
        image = Image.fromarray(expected).resize(target, Image.Resampling.LANCZOS)
        expected = np.asarray(image)
        if bits == 8 or target == size:
            expected = np.clip(expected, 0, peak)
    # Of bytes, both passes are rounded.
    assert np.abs(result - expected).max() <= (1.2 if bits == 8 else 0.51)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_opaque_stays_opaque(dtype):
    peak = np.iinfo(dtype).max
    assert np.all(enlarge_alpha(np.full((5, 7), peak, dtype), (28, 20)) == peak)
    almost = np.full((40, 40), peak, dtype)
    almost[0, 0] = 0
    result = enlarge_alpha(almost, (160, 160))
    assert np.all(result[20:, 20:] == peak)  # beyond the filter's reach


def test_levels_of_the_pyramid_are_sums():
    color, alpha = noise(7, 5, 3, bits=8), noise(7, 5, bits=8, seed=1)
    weight = alpha[..., None] / 255
    layer = np.pad(np.concatenate([color * weight, weight], 2), ((0, 1), (0, 1), (0, 0)))
    expected = layer.reshape(4, 2, 3, 2, 4).sum(axis=(1, 3))
    assert alpha_module._halved(color, alpha) == pytest.approx(expected, rel=1e-5)
