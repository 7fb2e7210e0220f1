"""The degradation vector v: parameters -> float32 [B, 33] and back to readable quantities.

`LAYOUT` names the 33 entries in DASR's order. What their numbers mean is up to the scheme:
"unified" (`unified`, the default) or "official" (`official`, that of the released weights).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from . import official, unified
from .params import DegradationParams
from .vector import LAYOUT, NUM_LABELS, Decoded, DecodedStage

__all__ = ["LAYOUT", "NUM_LABELS", "SCHEMES", "Decoded", "DecodedStage", "decode", "labels"]


@dataclass(frozen=True)
class LabelScheme:
    """How quantities become numbers, and back.

    Attributes:
        encode: parameters -> float32 [B, 33].
        decode: one row of 33 numbers, and the name of its level -> `Decoded`.
        needs_level: whether a row can be read with its level only.
    """

    encode: Callable[[DegradationParams], torch.Tensor]
    decode: Callable[[list[float], str | None], Decoded]
    needs_level: bool = False


SCHEMES: dict[str, LabelScheme] = {
    "unified": LabelScheme(unified.encode, unified.decode),
    "official": LabelScheme(official.encode, official.decode, needs_level=True),
}


def _scheme(name: str) -> LabelScheme:
    if name not in SCHEMES:
        raise ValueError(f"scheme: expected one of {sorted(SCHEMES)}, got {name!r}")
    return SCHEMES[name]


def labels(params: DegradationParams, scheme: str = "unified") -> torch.Tensor:
    """Encode parameters as the degradation vector of DASR.

    Returns:
        float32 [B, 33] on the CPU. "unified": every entry in 0..1 for parameters within the levels'
        limits. "official": also -0.5 where a severe sample has no sinc filter.

    Raises:
        ValueError: unknown scheme, or a sample of a level for which the scheme has no ranges.
    """
    return _scheme(scheme).encode(params)


def decode(
    v: torch.Tensor, scheme: str = "unified", level: str | Sequence[str] | None = None
) -> list[Decoded]:
    """Turn label vectors, true or predicted, into readable quantities.

    Predictions are clamped to the ranges; sizes go to the nearest odd number, quality to the
    nearest whole one, flags are decided at 0.5. A kind (of noise, of order) is the larger of its
    two entries where these sum to 0.5 or more, a mode the largest of its entries.

    Args:
        v: float [B, 33].
        scheme: the scheme that made it.
        level: "official" only, and necessary there, since each level has ranges of its own: the
            level whose ranges are taken, one name for all rows or one for each. For predictions
            nobody knows it; choose the one that you want the numbers to be read in.

    Returns:
        One `Decoded` per row.

    Raises:
        TypeError, ValueError: not a floating tensor [B, 33], entries that are not finite, unknown
            scheme or level, no level where the scheme needs it.
    """
    if not isinstance(v, torch.Tensor) or not v.is_floating_point():
        raise TypeError(f"v: expected a floating tensor, got {getattr(v, 'dtype', type(v))}")
    if v.dim() != 2 or v.shape[1] != NUM_LABELS:
        raise ValueError(f"v: expected shape [B, {NUM_LABELS}], got {list(v.shape)}")
    if not bool(torch.isfinite(v).all()):
        raise ValueError("v: expected finite numbers, got inf or nan")
    found = _scheme(scheme)
    names = [level] * len(v) if level is None or isinstance(level, str) else list(level)
    if len(names) != len(v):
        raise ValueError(f"level: expected {len(v)} names, one for each row, got {len(names)}")
    if found.needs_level and None in names:
        raise ValueError(f"level: expected the level whose ranges scheme {scheme!r} used, got None")
    rows = v.detach().double().cpu().tolist()
    return [found.decode(row, name) for row, name in zip(rows, names, strict=True)]
