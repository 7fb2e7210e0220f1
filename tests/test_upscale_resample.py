"""Lanczos's method in bands beside Pillow's, which sees the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dasr_ops.models.resample import lanczos_taps, resample_bands

SIZES = [
    ((40, 50), (20, 25)),
    ((40, 50), (33, 61)),
    ((1, 1), (3, 2)),
    ((7, 9), (1, 1)),
    ((128, 96), (50, 200)),
    ((64, 64), (63, 65)),
    ((100, 3), (7, 300)),
]


def _pillow(image: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    planes = [Image.fromarray(plane.numpy()) for plane in image]
    assert all(plane.mode == "F" for plane in planes)
    return np.stack([np.asarray(p.resize(size[::-1], Image.Resampling.LANCZOS)) for p in planes])


@pytest.mark.parametrize("step", [1, 5, 1000])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_bands_are_what_pillow_makes_of_the_whole(source, target, step):
    torch.manual_seed(0)
    image = torch.rand(2, 3, *source)
    bands = ((i, image[:, :, i : i + step]) for i in range(0, source[0], step))
    result, end = torch.full((2, 3, *target), torch.nan), 0
    for first, band in resample_bands(bands, source, target):
        assert first == end
        end = first + band.shape[2]
        result[:, :, first:end] = band
    assert end == target[0]
    for got, whole in zip(result, image, strict=True):
        # Weights and sums in float32, in two passes: a few roundings of values up to 1.5.
        np.testing.assert_allclose(got.numpy(), _pillow(whole, target), rtol=0, atol=1e-6)


def test_nothing_waits_longer_than_needed():
    image = torch.rand(1, 1, 400, 8)
    bands = ((i, image[:, :, i : i + 4]) for i in range(0, 400, 4))
    rows = [band.shape[2] for _, band in resample_bands(bands, (400, 8), (200, 8))]
    assert max(rows[:-1]) <= 3  # two for each band, and one that had to wait


@pytest.mark.parametrize(("source", "target"), [(100, 25), (25, 100), (1, 7), (7, 1)])
def test_taps_are_inside_and_add_up(source, target):
    taps = lanczos_taps(source, target)
    assert len(taps.first) == len(taps.stop) == len(taps.weights) == target
    assert taps.first.min() >= 0
    assert taps.stop.max() <= source
    torch.testing.assert_close(taps.weights.sum(1), torch.ones(target))
