"""Lanczos resampling of pictures that arrive in bands, so that the whole is never in memory.

The definition is Pillow's (and that of most photo software): a windowed sinc of three lobes,
stretched by the ratio where the picture shrinks, cut off at the edges and normalised.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

LOBES = 3


class Taps(NamedTuple):
    """What each output sample along one dimension is made of."""

    first: Tensor
    """int64 [target]: the first input sample."""
    stop: Tensor
    """int64 [target]: the one behind the last."""
    weights: Tensor
    """float32 [target, taps]; 0 from ``stop`` on."""


def lanczos_taps(source: int, target: int) -> Taps:
    """Return the taps that turn ``source`` samples into ``target``, both at least 1."""
    ratio = source / target
    stretch = max(ratio, 1.0)
    centre = (torch.arange(target, dtype=torch.float64) + 0.5) * ratio
    first = (centre - LOBES * stretch + 0.5).floor().clamp(0, source - 1)
    stop = (centre + LOBES * stretch + 0.5).floor().clamp(1, source)
    count = int((stop - first).max())
    position = first[:, None] + torch.arange(count, dtype=torch.float64)
    x = (position + 0.5 - centre[:, None]) / stretch
    weights = torch.sinc(x) * torch.sinc(x / LOBES)
    weights[(x.abs() >= LOBES) | (position >= stop[:, None])] = 0.0
    weights /= weights.sum(1, keepdim=True)
    return Taps(first.long(), stop.long(), weights.float())


def resample_rows(image: Tensor, first: Tensor, weights: Tensor) -> Tensor:
    """Make each row of the result of some rows of ``image``.

    Args:
        image: float [B, C, H, W].
        first: int64 [h], the first row that each result row is made of.
        weights: float [h, taps].

    Returns:
        [B, C, h, W]. Rows beyond the last count as the last; their weights are 0.
    """
    first, weights = first.to(image.device), weights.to(image.device, image.dtype)
    result = torch.zeros(
        (*image.shape[:2], len(first), image.shape[3]), dtype=image.dtype, device=image.device
    )
    for tap in range(weights.shape[1]):
        rows = (first + tap).clamp_(max=image.shape[2] - 1)
        result.addcmul_(image.index_select(2, rows), weights[:, tap, None])
    return result


def resample_bands(
    bands: Iterator[tuple[int, Tensor]], source: tuple[int, int], target: tuple[int, int]
) -> Iterator[tuple[int, Tensor]]:
    """Resample a picture band by band.

    Args:
        bands: first row and rows, float [B, C, h, W], from top to bottom without gaps.
        source: height and width of the picture.
        target: height and width of the result.

    Yields:
        First row and rows of the result, [B, C, h', target width], from top to bottom.
    """
    rows, columns = lanczos_taps(source[0], target[0]), lanczos_taps(source[1], target[1])
    waiting: Tensor | None = None  # rows that results to come are made of
    origin = done = 0
    for first, band in bands:
        # Gathering rows is fast, so columns are resampled as rows as well.
        turned = resample_rows(band.transpose(2, 3).contiguous(), columns.first, columns.weights)
        band = turned.transpose(2, 3).contiguous()
        waiting = band if waiting is None else torch.cat([waiting, band], 2)
        stop = int(torch.searchsorted(rows.stop, first + band.shape[2], right=True))
        if stop > done:
            yield (
                done,
                resample_rows(waiting, rows.first[done:stop] - origin, rows.weights[done:stop]),
            )
            done = stop
        if done < target[0]:
            needed = min(int(rows.first[done]), origin + waiting.shape[2])
            waiting, origin = waiting[:, :, needed - origin :], needed
