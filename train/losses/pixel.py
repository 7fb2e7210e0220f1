"""Differences of pixels, and of degradation vectors.

They are computed in float32 whatever the type of the arguments, under autocast too; float64 stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import one_of, wide_pair

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Takes two tensors of one shape and returns a number."""

CHARBONNIER_EPSILON = 1e-3
"""Difference below which the Charbonnier loss is rather a square than an absolute value."""


def _charbonnier(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().add(CHARBONNIER_EPSILON**2).sqrt().mean()


CRITERIA: dict[str, Criterion] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "charbonnier": _charbonnier,
}
"""Names of the kinds of difference."""


def pixel_loss(criterion: str) -> Criterion:
    r"""Return a function that compares two batches of pictures.

    With d the difference of two values: ``l1`` is the mean of \|d\|, ``l2`` that of d²,
    ``charbonnier`` that of sqrt(d² + 1e-6) (Lai et al., "Deep Laplacian Pyramid Networks",
    CVPR 2017).

    Args:
        criterion: ``'l1'``, ``'l2'`` or ``'charbonnier'``.

    Returns:
        A function of (output, target), floating-point tensors of one shape, to a float32 number. It
        raises TypeError for other types (integer pictures are to be scaled to 0..1 first) and
        ValueError for shapes that differ or are empty.

    Raises:
        ValueError: ``criterion`` is unknown.
    """
    one_of("pixel_loss", "criterion", criterion, CRITERIA)
    difference = CRITERIA[criterion]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return difference(*wide_pair("pixel_loss", ("output", "target"), output, target))

    return loss


REGRESSION = ("l1", "l2")
"""Names of the kinds of difference of vectors."""


def regression_loss(
    predicted: Tensor, target: Tensor, entries: Sequence[float] = (), criterion: str = "l1"
) -> Tensor:
    r"""Compare predicted degradation vectors with the true ones.

    The mean of w[i] \|d[b, i]\|, or of w[i] d[b, i]², over all samples and entries, where d is
    predicted - target; weights are factors, so weights of 2 for all entries double it.

    Args:
        predicted: [B, N], floating-point; N is 33 for DASR.
        target: of the same shape.
        entries: w, a number >= 0 for each of the N entries; empty: 1 each.
        criterion: ``'l1'`` or ``'l2'``.

    Returns:
        A float32 number.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: shapes differ or are empty, ``entries`` has not N finite numbers >= 0, or
            ``criterion`` is unknown.
    """
    owner = "regression_loss"
    one_of(owner, "criterion", criterion, REGRESSION)
    predicted, target = wide_pair(owner, ("predicted", "target"), predicted, target)
    if not len(entries):
        return CRITERIA[criterion](predicted, target)
    count = predicted.shape[-1] if predicted.dim() else 1
    if len(entries) != count:
        raise ValueError(f"{owner}: entries: expected {count} weights, got {len(entries)}")
    values = [float(entry) for entry in entries]
    if not all(0 <= value < math.inf for value in values):
        raise ValueError(f"{owner}: entries: expected finite weights >= 0, got {values}")
    weights = torch.tensor(values, dtype=predicted.dtype, device=predicted.device)
    difference = predicted - target
    size = difference.abs() if criterion == "l1" else difference.square()
    return size.mul(weights).mean()
