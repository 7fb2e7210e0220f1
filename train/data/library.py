"""The pictures of a run: read on demand, kept while there is room, skipped where they are bad."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from .pictures import read_patiently, reason
from .sources import Source


class NoPictureError(RuntimeError):
    """No picture at all can be used."""


class Library:
    """Pictures of several sources behind each other.

    Nothing is decoded before it is asked for. Which pictures are skipped depends on them alone, not
    on the order in which they are asked for.

    Args:
        sources: where pictures come from.
        smallest: least side in pixels; smaller pictures are skipped.
        cache_bytes: decoded pictures are kept while they fit in this, by process; the others are
            decoded on every use.

    Attributes:
        skipped: for each picture found bad so far, its index and why.
    """

    def __init__(self, sources: Sequence[Source], smallest: int, cache_bytes: int) -> None:
        self.sources, self.smallest = tuple(sources), smallest
        self.skipped: dict[int, str] = {}
        self._ends = list(accumulate(len(source) for source in self.sources))
        self._room = cache_bytes
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def path(self, index: int) -> Path:
        """Return what a picture is called."""
        source, index = self._locate(index)
        return source.path(index)

    def picture(self, index: int) -> np.ndarray | None:
        """Return uint8 [H, W, 3], not to be written to, or None for a picture that is skipped."""
        if index in self.skipped:
            return None
        picture = self._kept.get(index)
        if picture is not None:
            return picture
        source, place = self._locate(index)
        try:
            picture = read_patiently(lambda: source.open(place), self.smallest)
        except OSError as error:
            self.skipped[index] = reason(error)
            return None
        if picture.nbytes <= self._room:
            self._room -= picture.nbytes
            self._kept[index] = picture
        return picture

    def usable(self, first: int, others: Callable[[], Iterable[int]]) -> np.ndarray:
        """Return the first usable picture among `first` and then `others`.

        Raises:
            NoPictureError: there is none.
        """
        picture = self.picture(first)
        if picture is not None:
            return picture
        for index in others():
            picture = self.picture(index)
            if picture is not None:
                return picture
        examples = "; ".join(
            f"{self.path(i)}: {why}" for i, why in sorted(self.skipped.items())[:3]
        )
        raise NoPictureError(f"none of the {len(self)} pictures can be used ({examples})")

    def _locate(self, index: int) -> tuple[Source, int]:
        number = bisect.bisect_right(self._ends, index)
        return self.sources[number], index - (self._ends[number - 1] if number else 0)
