"""The last layers of a generator, piece by piece, so that their large feature maps never exist.

A picture of 512x512, magnified four times, has feature maps of 1 GB there. Pieces small enough stay
in the cache, and memory stays bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dasr_ops._autograd import is_transformed

from .tiling import cut

MAP_BYTES = {"cpu": 31 << 20}
"""The most bytes of a piece's largest feature map, by type of device.

On a CPU about its last-level cache: with one of 32 MiB, pieces of 16 to 48 MiB took equally long.
Blocks from 32 MiB on glibc's malloc returns to the system each time.
"""

MAP_BYTES_ELSEWHERE = 256 << 20
"""The same for other devices, where it does no more than bound memory."""

LEAST_SIDE = 96
"""Output pixels that a piece has at least where it is cut, however many bytes they take.

Pieces repeat some work around them: about 7 / LEAST_SIDE along each dimension that is cut.
"""


class Stage(NamedTuple):
    """A 3x3 convolution with a padding of 1, and the pixel shuffle that follows it."""

    run: Callable[[Tensor], Tensor]
    """Maps [B, C, h, w] to [B, C', h * factor, w * factor]."""
    factor: int


class Tail(NamedTuple):
    """The layers from features of the input's size to the output."""

    stages: Sequence[Stage]
    last: Callable[[Tensor, Tensor], Tensor]
    """A 3x3 convolution of its first argument, with a padding of 1, plus its second argument."""
    layers: Sequence[nn.Module]
    """All modules that these call."""

    @property
    def factors(self) -> tuple[int, ...]:
        """What each convolution is followed by, the last one too."""
        return (*(stage.factor for stage in self.stages), 1)


def reach(factors: Sequence[int]) -> int:
    """Return how far a chain of 3x3 convolutions sees.

    Args:
        factors: magnification behind each convolution, from first to last.

    Returns:
        Input pixels on each side of a pixel that its output pixels depend on.
    """
    result = 0
    for factor in reversed(factors):
        # Floor division goes to the coarser grid, on which the convolution sees 1 pixel further.
        result = -(-result // factor) + 1
    return result


def run_tail(tail: Tail, features: Tensor, enlarged: Tensor) -> Tensor:
    """Run the layers on the whole or, where nothing is to be differentiated, piece by piece.

    Pieces are strips of rows, or blocks where strips would be too thin. Each reads the context that
    its layers need, and what the zeros around it have touched is cut off behind each layer, so the
    result is that of the whole to float rounding. Modules are called once for each piece.
    `torch.compile`, `torch.export` and transforms of `torch.func` see the whole.

    Args:
        tail: the layers.
        features: [B, F, H, W].
        enlarged: [B, C, H * s, W * s], added by the last layer; s is the product of the factors.

    Returns:
        [B, C, H * s, W * s].
    """
    pieces = [] if _needs_whole(tail, features) else _pieces(tail, features)
    if len(pieces) <= 1:
        for stage in tail.stages:
            features = stage.run(features)
        return tail.last(features, enlarged)
    output: Tensor | None = None
    for rows, columns in pieces:
        piece = _run_piece(tail, features, enlarged, rows, columns)
        if output is None:
            output = torch.empty(
                enlarged.shape,
                dtype=piece.dtype,
                device=piece.device,
                memory_format=_format(piece),
            )
        output[:, :, rows[-1], columns[-1]] = piece
    assert output is not None
    return output


def _needs_whole(tail: Tail, features: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed():
        return True
    return torch.is_grad_enabled() and (
        features.requires_grad or any(p.requires_grad for m in tail.layers for p in m.parameters())
    )


_Spans = list[slice]
"""What each layer reads along one dimension of its input, and at last what the output keeps."""


def _pieces(tail: Tail, features: Tensor) -> list[tuple[_Spans, _Spans]]:
    """Return rows and columns of pieces whose largest feature map takes the bytes allowed."""
    batch, channels, height, width = features.shape
    scale, context = math.prod(tail.factors), reach(tail.factors)
    allowed = MAP_BYTES.get(features.device.type, MAP_BYTES_ELSEWHERE)
    pixels = allowed // max(batch * channels * features.element_size() * scale**2, 1)
    if height * width <= pixels:
        return []
    least = -(-LEAST_SIDE // scale) + 2 * context
    strip, side = pixels // width, max(math.isqrt(pixels), least)
    # Strips repeat rows only: at half the height they repeat as much as a square block.
    rows, columns = (strip, width) if strip >= max(least, side // 2) else (side, side)
    return [
        (_spans(row.keep, height, tail.factors), _spans(column.keep, width, tail.factors))
        for row in cut(height, rows, context, context)
        for column in cut(width, columns, context, context)
    ]


def _spans(kept: slice, size: int, factors: Sequence[int]) -> _Spans:
    """Go back from the output of the input pixels ``kept`` to what each layer reads for it."""
    scale = math.prod(factors)
    start, stop = kept.start * scale, kept.stop * scale
    spans = [slice(start, stop)]
    for factor in reversed(factors):
        scale //= factor
        start = max(start // factor - 1, 0)
        stop = min(-(-stop // factor) + 1, size * scale)
        spans.append(slice(start, stop))
    return spans[::-1]


def _run_piece(
    tail: Tail, features: Tensor, enlarged: Tensor, rows: _Spans, columns: _Spans
) -> Tensor:
    piece = features[:, :, rows[0], columns[0]]
    enlarged = enlarged[:, :, rows[-2], columns[-2]]
    runs = [*(stage.run for stage in tail.stages), lambda piece: tail.last(piece, enlarged)]
    for run, factor, row, column in zip(
        runs, tail.factors, pairwise(rows), pairwise(columns), strict=True
    ):
        piece = run(piece)[:, :, _inside(*row, factor), _inside(*column, factor)]
    return piece


def _inside(read: slice, kept: slice, factor: int) -> slice:
    """Return where ``kept`` lies in the output of a layer that has read ``read``."""
    origin = read.start * factor
    return slice(kept.start - origin, kept.stop - origin)


def _format(piece: Tensor) -> torch.memory_format:
    by_pixel = piece.shape[1] > 1 and piece.stride(1) == 1
    return torch.channels_last if by_pixel else torch.contiguous_format
