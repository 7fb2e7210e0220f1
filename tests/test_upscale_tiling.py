"""Cutting and joining: every pixel covered once in sum, bounded tiles, no seams."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dasr_ops.models.tiling import cut, upscale_bands


@st.composite
def _cuts(draw):
    overlap = draw(st.integers(0, 20))
    tile = draw(st.just(0) | st.integers(2 * overlap + 1, 90))
    return draw(st.integers(1, 300)), tile, overlap, draw(st.integers(1, 30))


@settings(max_examples=200, deadline=None)
@given(_cuts(), st.sampled_from([1, 2, 3, 4]))
def test_spans_cover_everything_with_a_total_weight_of_one(cuts, scale):
    size, tile, overlap, radius = cuts
    spans = cut(size, tile, overlap, radius)
    total = torch.zeros(size * scale)
    for span in spans:
        total[span.keep.start * scale : span.keep.stop * scale] += span.weights(scale)
        assert tile == 0 or span.read.stop - span.read.start <= tile
        context = 0 if span.fade == 0 else overlap - span.fade // 2
        assert span.read.start <= max(span.keep.start - context, 0)
        assert span.read.stop >= min(span.keep.stop + context, size)
        if overlap >= radius:
            assert span.fade == 0
            assert span.read.start <= max(span.keep.start - radius, 0)
            assert span.read.stop >= min(span.keep.stop + radius, size)
    # a weight and its complement, each rounded once
    torch.testing.assert_close(total, torch.ones(size * scale), rtol=0, atol=2**-23)


def _pointwise(tile: torch.Tensor) -> torch.Tensor:
    """A network without any context: enlarged by repetition."""
    return F.interpolate(tile, scale_factor=2, mode="nearest")


@pytest.mark.parametrize("tile", [0, 13, 20, 64])
@pytest.mark.parametrize("overlap", [0, 1, 4, 6])
@pytest.mark.parametrize("radius", [1, 30])
def test_joined_tiles_of_a_pointwise_network_are_its_output(tile, overlap, radius):
    lr = torch.rand(2, 3, 47, 61)
    rows, columns = (cut(size, tile, overlap, radius) for size in lr.shape[2:])
    result = torch.full((2, 3, 94, 122), torch.nan)
    next_row = 0
    for first, band in upscale_bands(lr, _pointwise, rows, columns, 2):
        assert first == next_row
        next_row = first + band.shape[2]
        result[:, :, first:next_row] = band
    assert next_row == 94
    # Up to four weighted values of at most 1 are added: a few roundings of 2^-24.
    torch.testing.assert_close(result, _pointwise(lr), rtol=0, atol=4 * 2**-24)


def test_disagreeing_tiles_fade_into_each_other():
    """A network that gives each tile another brightness: steps at seams stay small."""
    calls = []

    def network(tile: torch.Tensor) -> torch.Tensor:
        calls.append(tile.shape)
        return torch.full_like(_pointwise(tile), float(len(calls) % 2))

    lr = torch.zeros(1, 3, 90, 70)
    spans = [cut(size, 40, 8, 30) for size in (90, 70)]
    result = torch.cat([band for _, band in upscale_bands(lr, network, *spans, 2)], dim=2)
    assert len(calls) == len(spans[0]) * len(spans[1]) > 6
    steps = max(result.diff(dim=dim).abs().max().item() for dim in (2, 3))
    fade = spans[0][0].fade * 2
    assert fade == 16
    assert steps == pytest.approx(1 / fade)
    hard = [cut(size, 40, 8, 8) for size in (90, 70)]
    result = torch.cat([band for _, band in upscale_bands(lr, network, *hard, 2)], dim=2)
    assert result.diff(dim=3).abs().max() == 1


def test_bands_are_no_higher_than_a_row_of_tiles():
    lr = torch.zeros(1, 3, 500, 20)
    rows, columns = cut(500, 50, 10, 30), cut(20, 50, 10, 30)
    heights = [band.shape[2] for _, band in upscale_bands(lr, _pointwise, rows, columns, 2)]
    assert sum(heights) == 1000
    assert max(heights) <= 2 * 50
