"""What sample number n of a run is: a square of a picture, where its patch lies, and a seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dasr_ops.train.config import DataConfig

from .crops import CANDIDATES, cut, mirror, quarter_turn
from .library import Library
from .pictures import detail

_REPLACEMENTS = 32  # pictures drawn in place of a bad one before all are gone through
# Streams of random numbers that share a seed.
_ORDER, _DRAWS, _REPLACE = range(3)


class Sample(NamedTuple):
    """One sample before it is degraded."""

    source: Tensor
    """uint8 [3, S, S]."""
    corner: tuple[int, int]
    """Top and left of the patch in `source`, in pixels of the low resolution."""
    seed: int
    """Of the degradation, 0..2^62 - 1."""


class Samples:
    """Samples by their number 0, 1, 2, ..., without an end.

    Sample n belongs to epoch n // len(library). Within an epoch each picture comes once, in an
    order that (seed, epoch) give. Crop, mirroring, turn and the seed of the degradation are
    functions of (seed, epoch, place in the epoch) and the picture. A picture that cannot be used is
    replaced by one that the same numbers choose, so that it changes no other sample.

    Where a picture is smaller than the source, its patch still lies inside it, and what is beyond
    its borders is filled by reflection.

    Args:
        library: the pictures; its `smallest` must be `config.patch_size`.
        config: sizes, flip, rotate, min_detail.
        scale: magnification, of which the sizes are multiples.
        seed: 0 or more.
    """

    def __init__(self, library: Library, config: DataConfig, scale: int, seed: int) -> None:
        self.library, self.config, self.scale, self.seed = library, config, scale, seed
        self._orders: dict[int, np.ndarray] = {}

    def __getitem__(self, number: int) -> Sample:
        """Return a sample. Raises RuntimeError if no picture can be used."""
        epoch, place = divmod(number, len(self.library))
        order = self._order(epoch)
        picture = self.library.usable(int(order[place]), lambda: self._replacements(epoch, place))
        return self._cut(picture, self._generator(_DRAWS, epoch, place))

    def _cut(self, picture: np.ndarray, rng: np.random.Generator) -> Sample:
        config = self.config
        size, patch = config.source_size, config.patch_size
        # Always all of them, and the crop last: its number of draws depends on the picture.
        seed, flipped, turns = int(rng.integers(2**62)), rng.random() < 0.5, int(rng.integers(4))
        span = (size - patch) // self.scale
        corner = tuple(int(c) for c in rng.integers(span + 1, size=2))
        best, most = (0, 0), -1.0
        for _ in range(CANDIDATES):
            starts = tuple(
                self._start(side, offset * self.scale, rng)
                for side, offset in zip(picture.shape[:2], corner, strict=True)
            )
            if config.min_detail <= 0:
                best = starts
                break
            top, left = (s + c * self.scale for s, c in zip(starts, corner, strict=True))
            amount = detail(picture[top : top + patch, left : left + patch])
            if amount > most:
                best, most = starts, amount
            if amount >= config.min_detail:
                break
        source = cut(picture, *best, size)
        if config.flip and flipped:
            source, corner = mirror(source, corner, span)
        for _ in range(turns if config.rotate else 0):
            source, corner = quarter_turn(source, corner, span)
        planes = np.ascontiguousarray(source.transpose(2, 0, 1))
        return Sample(torch.from_numpy(planes), corner, seed)

    def _start(self, side: int, offset: int, rng: np.random.Generator) -> int:
        """Draw where the source begins along an axis, given where in it the patch does."""
        if side >= self.config.source_size:
            return int(rng.integers(side - self.config.source_size + 1))
        return int(rng.integers(side - self.config.patch_size + 1)) - offset

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            while len(self._orders) > 1:  # two epochs meet in a batch
                del self._orders[min(self._orders)]
            order = self._generator(_ORDER, epoch).permutation(len(self.library))
            self._orders[epoch] = order
        return self._orders[epoch]

    def _replacements(self, epoch: int, place: int) -> Iterator[int]:
        rng = self._generator(_REPLACE, epoch, place)
        for _ in range(_REPLACEMENTS):
            yield int(rng.integers(len(self.library)))
        yield from self._order(epoch).tolist()

    def _generator(self, stream: int, *numbers: int) -> np.random.Generator:
        sequence = np.random.SeedSequence([self.seed, *numbers], spawn_key=(stream,))
        return np.random.default_rng(sequence)
