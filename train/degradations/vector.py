"""The degradation vector's layout, what can be read out of it, and helpers of the schemes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .resize import RESIZE_MODES

LAYOUT: tuple[str, ...] = (
    *(f"kernel{s}_{name}" for s in (1, 2) for name in ("size", "sigma_x", "sigma_y", "rotation")),
    *("sinc_size", "sinc_omega"),
    *(f"resize{s}_{name}" for s in (1, 2) for name in ("scale", *RESIZE_MODES)),
    *(f"noise{s}_{name}" for s in (1, 2) for name in ("level", "grey", "gaussian", "poisson")),
    *("jpeg1_quality", "jpeg2_quality", "sinc_then_jpeg", "jpeg_then_sinc"),
    *(f"final_{mode}" for mode in RESIZE_MODES),
)
NUM_LABELS = len(LAYOUT)


@dataclass(frozen=True)
class DecodedStage:
    """One round in readable units; `mode` / `noise` / `jpeg_quality` None where it is absent."""

    kernel_size: int
    sigma_x: float
    sigma_y: float
    rotation: float
    scale: float
    mode: str | None
    noise: str | None
    noise_level: float
    noise_grey: bool
    jpeg_quality: int | None


@dataclass(frozen=True)
class Decoded:
    """One label vector in readable units.

    `order` is "sinc_then_jpeg", "jpeg_then_sinc" or None; `sinc_size` is None without the filter
    (omega at its upper end). `sinc_omega` is None where the vector does not hold it (scheme
    "official" with a second blur).
    """

    stage1: DecodedStage
    stage2: DecodedStage
    sinc_size: int | None
    sinc_omega: float | None
    order: str | None
    final_mode: str


_SECOND = ("kernel2_size", "kernel2_sigma_x", "kernel2_sigma_y", "noise2_level", "jpeg2_quality")
_ABSENT = {"unified": (0.0, 0.0, 0.0, 0.0, 1.0), "official": (0.0,) * 5}
_ORDER = ("sinc_then_jpeg", "jpeg_then_sinc")


def second_stage_belief(v: torch.Tensor, scheme: str = "unified") -> torch.Tensor:
    """Return how sure vectors are that there was a second stage, 0..1, a continuous function.

    In true labels the entries "sinc then JPEG" and "JPEG then sinc" sum to 1 or 0, which is the
    result. A predictor trained by L1 says the median of each, 0 for both where it cannot tell them
    apart. So other entries of that stage count as well: 2.5 times the mean distance of kernel size,
    sigmas, noise level and quality from their values without a second stage, if that is more.

    Args:
        v: float [B, 33].
        scheme: "unified" or "official".

    Returns:
        [B], of the type and device of `v`.
    """
    order = v[:, [LAYOUT.index(name) for name in _ORDER]].clamp(0, 1).sum(1)
    entries = v[:, [LAYOUT.index(name) for name in _SECOND]].clamp(0, 1)
    distance = (entries - entries.new_tensor(_ABSENT[scheme])).abs().mean(1)
    return torch.maximum(order, 2.5 * distance).clamp(max=1)


Ends = tuple[float, float]


def to_unit(
    value: torch.Tensor, low: float | torch.Tensor, high: float | torch.Tensor
) -> torch.Tensor:
    """Map low..high to 0..1, in float64."""
    return (value.double() - low) / (high - low)


def from_unit(value: float, ends: Ends) -> float:
    """Map 0..1 to a range; what lies outside counts as the nearest end."""
    return ends[0] + min(max(value, 0.0), 1.0) * (ends[1] - ends[0])


def odd_size(value: float, ends: Ends) -> int:
    """Map 0..1 to the nearest odd number of a range."""
    return 2 * round((from_unit(value, ends) - 1) / 2) + 1


def one_hot(index: torch.Tensor, count: int) -> torch.Tensor:
    """float64 [B, count]; a negative index gives zeros."""
    return (index[:, None] == torch.arange(count)).double()


def argmax(values: list[float]) -> int:
    """Return the first position of the largest value."""
    return max(range(len(values)), key=values.__getitem__)


def _present(flags: list[float]) -> bool:
    # A prediction may be sure that one of them holds and unsure which.
    return sum(min(max(flag, 0.0), 1.0) for flag in flags) >= 0.5


def decode_order(values: list[float]) -> str | None:
    """Read entries 28 and 29; None: no second stage."""
    if not _present(values):
        return None
    return ("sinc_then_jpeg", "jpeg_then_sinc")[argmax(values)]


def decode_noise_kind(values: list[float]) -> str | None:
    """Read is-gaussian and is-poisson."""
    return ("gaussian", "poisson")[argmax(values)] if _present(values) else None


def decode_mode(values: list[float]) -> str | None:
    """Read the one-hot of a resize; None: nothing resized."""
    return None if sum(values) < 0.5 else RESIZE_MODES[argmax(values)]
