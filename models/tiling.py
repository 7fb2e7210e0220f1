"""Cutting an image into overlapping tiles, and joining the enlarged tiles without seams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """One tile along one dimension, in LR pixels."""

    read: slice
    """What the network sees: the kept part and its context."""
    keep: slice
    """What is kept of its output; neighbours share ``fade`` pixels of it."""
    fade: int
    """Width of the shared part, over which the weight goes from 0 to 1."""
    size: int
    """Length of the whole image."""

    def weights(self, scale: int) -> Tensor:
        """Return the weight of each kept output pixel, [kept * scale], float32.

        The weights of neighbours add up to 1.
        """
        weights = torch.ones((self.keep.stop - self.keep.start) * scale)
        width = self.fade * scale
        if width:
            ramp = (torch.arange(width) + 0.5) / width
            if self.keep.start > 0:
                weights[:width] = ramp
            if self.keep.stop < self.size:
                weights[-width:] = 1 - ramp
        return weights


def cut(size: int, tile: int, overlap: int, radius: int) -> list[Span]:
    """Cut ``size`` pixels into pieces of about equal length.

    Args:
        size: length of the image, in LR pixels.
        tile: the most pixels that the network sees at a time; 0 for all.
        overlap: context on each side of a piece, in LR pixels, less than half of ``tile``.
        radius: context from which on the output is exact. With less, neighbours fade into each
            other over up to ``overlap`` pixels, half of them on either side.

    Returns:
        Pieces from the first pixel to the last.
    """
    if tile == 0 or size <= tile:
        return [Span(slice(0, size), slice(0, size), 0, size)]
    count = -(-size // (tile - 2 * overlap))
    edges = [size * i // count for i in range(count + 1)]
    shortest = min(b - a for a, b in pairwise(edges))
    half = 0 if overlap >= radius else min(overlap, shortest) // 2
    return [
        Span(
            slice(max(start - overlap, 0), min(stop + overlap, size)),
            slice(max(start - half, 0), min(stop + half, size)),
            2 * half,
            size,
        )
        for start, stop in pairwise(edges)
    ]


def upscale_bands(
    lr: Tensor,
    network: Callable[[Tensor], Tensor],
    rows: list[Span],
    columns: list[Span],
    scale: int,
) -> Iterator[tuple[int, Tensor]]:
    """Enlarge tile by tile and yield the result as bands from top to bottom.

    At any time one tile and one row of tiles are in memory, never the whole result.

    Args:
        lr: images, [B, C, H, W].
        network: maps [B, C, h, w] to [B, C, h * scale, w * scale]; called once for each tile.
        rows: how to cut H, see `cut`.
        columns: how to cut W.
        scale: the magnification.

    Yields:
        The first row of a band and the band, [B, C, h, W * scale], float32, on the device that
        ``network`` returns its results on. Who takes it may write to it.
    """
    above: Tensor | None = None
    for row in rows:
        band = _band(lr, network, row, columns, scale)
        fade = row.fade * scale
        first = row.keep.start * scale
        last = row.keep.stop == row.size
        vertical = row.weights(scale).to(band.device).view(-1, 1)
        if above is not None:
            band[:, :, :fade] = above + band[:, :, :fade] * vertical[:fade]
            above = None
        if fade and not last:
            above = band[:, :, -fade:] * vertical[-fade:]
            band = band[:, :, :-fade]
        yield first, band
        del band  # before the next one is made


def clamped(bands: Iterator[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
    """Clamp bands to 0..1, in place."""
    for first, band in bands:
        yield first, band.clamp_(0, 1)
        del band  # before the next one is made


def run_in_parts(
    tile: Tensor, network: Callable[[Tensor], Tensor], scale: int, radius: int
) -> Tensor:
    """Enlarge a tile, in halves where there is not enough memory for the whole.

    Args:
        tile: [B, C, H, W].
        network: maps [B, C, h, w] to [B, C, h * scale, w * scale].
        scale: the magnification.
        radius: LR pixels around a pixel that its result depends on.

    Returns:
        [B, C, H * scale, W * scale].

    Raises:
        RuntimeError: out of memory, and the tile is too small to be halved.
    """
    try:
        return network(tile)
    except RuntimeError as error:
        if not is_out_of_memory(error) or max(tile.shape[2:]) < 4 * max(radius, 1):
            raise
    # Out of the handler: the error's traceback holds on to the tensors of the failed run.
    if tile.device.type == "cuda":
        torch.cuda.empty_cache()
    dim = 2 if tile.shape[2] >= tile.shape[3] else 3
    size = tile.shape[dim]
    middle = size // 2
    first = run_in_parts(tile.narrow(dim, 0, middle + radius), network, scale, radius)
    kept = first.narrow(dim, 0, middle * scale)
    begin = middle - radius
    second = run_in_parts(tile.narrow(dim, begin, size - begin), network, scale, radius)
    return torch.cat([kept, second.narrow(dim, radius * scale, (size - middle) * scale)], dim)


_OUT_OF_MEMORY = ("can't allocate memory", "MPS backend out of memory", "std::bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on whichever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # Other allocators have no exception of their own.
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def _band(
    lr: Tensor,
    network: Callable[[Tensor], Tensor],
    row: Span,
    columns: list[Span],
    scale: int,
) -> Tensor:
    band: Tensor | None = None
    for column in columns:
        enlarged = network(lr[:, :, row.read, column.read]).float()
        kept = enlarged[:, :, _inside(row, scale), _inside(column, scale)]
        if len(columns) == 1:
            return kept
        if band is None:
            band = kept.new_zeros(*kept.shape[:3], column.size * scale)
        target = band[:, :, :, column.keep.start * scale : column.keep.stop * scale]
        target += kept * column.weights(scale).to(kept.device)
    assert band is not None
    return band


def _inside(span: Span, scale: int) -> slice:
    """Return the kept part of a tile's output."""
    return slice(
        (span.keep.start - span.read.start) * scale, (span.keep.stop - span.read.start) * scale
    )
