"""How well P predicts the degradation vector, beside predictors that say the same always."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..degradations import LAYOUT, NUM_LABELS, mix_vectors

COLUMNS = ("P", "median of the mix", "mean of the mix", "best constant")
"""Predictors of the table. No constant has a lower error on the pictures than the best one: it is
the median of their true vectors, which nobody knows beforehand."""

_UNCHANGING = 1e-6
"""Variance below which there is nothing to explain."""


def mix_constants(
    mix: Mapping[str, float], scheme: str = "unified", samples: int = 4096
) -> tuple[Tensor, Tensor]:
    """Return the median and the mean [33] of the vectors of a mix of levels."""
    v = mix_vectors(mix, scheme, samples)
    return v.median(0).values, v.mean(0)


class VectorErrors:
    """Mean absolute errors of each of the 33 entries.

    Args:
        median: what a constant predictor would have learned under an L1 loss, [33].
        mean: the same under a squared loss, [33].

    Raises:
        ValueError: not 33 numbers each.
    """

    def __init__(self, median: Tensor, mean: Tensor) -> None:
        for name, value in (("median", median), ("mean", mean)):
            if value.shape != (NUM_LABELS,):
                raise ValueError(f"{name}: expected [{NUM_LABELS}], got {list(value.shape)}")
        self._constants = (median.double(), mean.double())
        self._levels: list[str] = []
        self._predicted: list[Tensor] = []
        self._true: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._levels)

    def add(self, level: str, predicted: Tensor, true: Tensor) -> None:
        """Take in a prediction [1, 33] and the truth [1, 33]."""
        self._levels.append(level)
        self._predicted.append(predicted.detach().double().cpu().view(NUM_LABELS))
        self._true.append(true.double().cpu().view(NUM_LABELS))

    def result(self, level: str | None = None) -> dict[str, list[float]]:
        """Return predictor (`COLUMNS`) -> 33 errors, over all pictures or those of a level.

        Raises:
            ValueError: there are none.
        """
        predicted, true = self._chosen(level)
        best = true.median(0).values
        errors = [(guess - true).abs().mean(0) for guess in (predicted, *self._constants, best)]
        return {name: e.tolist() for name, e in zip(COLUMNS, errors, strict=True)}

    def explained(self, level: str | None = None) -> list[float]:
        """Return which share of the variance of each entry P explains, over all or at a level.

        1 - mean((predicted - true)^2) / variance(true): 1 at best, 0 of the best constant under a
        squared loss, the mean, below 0 where that is better; NaN where an entry never changes.

        Raises:
            ValueError: there are no pictures.
        """
        predicted, true = self._chosen(level)
        rest, variance = (predicted - true).square().mean(0), true.var(0, correction=0)
        return _share(rest, variance).tolist()

    def _chosen(self, level: str | None) -> tuple[Tensor, Tensor]:
        chosen = [i for i, name in enumerate(self._levels) if level in (None, name)]
        if not chosen:
            raise ValueError(f"level: expected one with known vectors, got {level!r}")
        return (
            torch.stack([self._predicted[i] for i in chosen]),
            torch.stack([self._true[i] for i in chosen]),
        )

    def as_json(self) -> dict[str, object]:
        """Return all of it, for a file."""
        levels = list(dict.fromkeys(self._levels))
        return {
            "entries": list(LAYOUT),
            "pictures": len(self),
            "all": self.result(),
            "explained": self.explained(),
            "levels": {level: self.result(level) for level in levels},
        }

    def markdown(self) -> str:
        """Return the table over all pictures, one row for each entry and one of means.

        Absolute errors, and the share of the variance that P explains.
        """
        errors = self.result()
        lines = [
            f"| error of v | {' | '.join(COLUMNS)} | explained |",
            f"| --- |{' --- |' * len(COLUMNS)} --- |",
        ]
        explained = self.explained()
        for index, entry in enumerate(LAYOUT):
            values = [errors[name][index] for name in COLUMNS]
            lines.append(_row(f"{index} {entry}", values, explained[index]))
        means = [sum(errors[name]) / NUM_LABELS for name in COLUMNS]
        predicted, true = self._chosen(None)
        rest, variance = (predicted - true).square().mean(), true.var(0, correction=0).mean()
        lines.append(_row("mean", means, _share(rest, variance).item()))
        return "\n".join(lines) + "\n"

    def summary(self) -> str:
        """Return one line: where P is better than any constant."""
        errors = self.result()
        pairs = zip(errors["P"], errors["best constant"], strict=True)
        better = sum(p < constant for p, constant in pairs)
        squared = sum(share > 0 for share in self.explained())
        return (
            f"P is better than any constant for {better} of {NUM_LABELS} entries of v in absolute, "
            f"for {squared} in squared error"
        )


def _share(rest: Tensor, variance: Tensor) -> Tensor:
    return torch.where(variance > _UNCHANGING, 1 - rest / variance, math.nan)


def _row(name: str, values: Sequence[float], explained: float) -> str:
    share = "-" if math.isnan(explained) else f"{100 * explained:.0f} %"
    return f"| {name} | {' | '.join(f'{value:.4f}' for value in values)} | {share} |"
