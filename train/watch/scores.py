"""Scoring one restored picture, and averaging scores."""

from __future__ import annotations

import torch
from torch import Tensor

from ..metrics import psnr_y, ssim_y
from ..perceptual_distance import LEAST_SIDE, PerceptualDistance

LEAST_INSIDE = 11
"""Pixels a side that must be left between the borders: SSIM's window."""

METRICS = {"psnr": "PSNR-Y [dB]", "ssim": "SSIM-Y", "perceptual": "ST-LPIPS"}
"""Metrics by key, and how they are written."""

DECIMALS = {"psnr": 2, "ssim": 4, "perceptual": 4}
"""Decimals of each metric in tables."""


class Scores:
    """PSNR and SSIM on Y, and optionally the perceptual distance, of pictures rounded to 8 bits.

    Args:
        border: pixels cut from each side for PSNR and SSIM; the perceptual distance is one of
            whole pictures.
        perceptual: also compute that.
        device: where to compute; float64 must work there, so Apple's MPS becomes the CPU.

    Raises:
        ValueError: a negative border.
        MissingWeightsError: the weights of the perceptual distance are not installed.
    """

    def __init__(
        self, border: int, *, perceptual: bool = False, device: torch.device | str = "cpu"
    ) -> None:
        if border < 0:
            raise ValueError(f"border: expected 0 or more, got {border}")
        self.border = border
        device = torch.device(device)
        self.device = device if device.type in ("cpu", "cuda") else torch.device("cpu")
        self.distance = PerceptualDistance().to(self.device) if perceptual else None
        self._last_target: tuple[Tensor, list[Tensor]] | None = None

    @property
    def least_side(self) -> int:
        """Pixels a side that a picture must have."""
        inside = 2 * self.border + LEAST_INSIDE
        return inside if self.distance is None else max(inside, LEAST_SIDE)

    @torch.no_grad()
    def __call__(self, sr: Tensor, gt: Tensor) -> dict[str, float]:
        """Compare a picture with its ground truth.

        Args:
            sr: float [1, 3, H, W], clamped to 0..1 and rounded to 8 bits first; or uint8.
            gt: uint8 [1, 3, H, W].

        Returns:
            Metric -> value; nan where ``sr`` is not finite.

        Raises:
            TypeError, ValueError: shapes differ, or the picture is below `least_side`.
        """
        pred, target = self._unit(sr), self._unit(gt)
        values = {
            "psnr": psnr_y(pred, target, self.border).item(),
            "ssim": ssim_y(pred, target, self.border).item(),
        }
        if self.distance is not None:
            features = self.distance.features(pred.float())
            values["perceptual"] = self.distance.between(features, self._features(gt)).item()
        return values

    def forget(self) -> None:
        """Free what is remembered of the last ground truth: 170 bytes for each of its pixels."""
        self._last_target = None

    def _features(self, gt: Tensor) -> list[Tensor]:
        """Return those of the ground truth, with which many results in turn are compared."""
        if self._last_target is None or not torch.equal(self._last_target[0], gt):
            self.forget()  # not two at a time
            self._last_target = gt, self.distance.features(self._unit(gt).float())
        return self._last_target[1]

    def _unit(self, picture: Tensor) -> Tensor:
        picture = picture.to(self.device)
        if picture.dtype == torch.uint8:
            return picture.double() / 255
        return (picture.double().clamp(0, 1) * 255).round() / 255


class Means:
    """Means of scores by group."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, float]] = {}
        self._counts: dict[str, dict[str, int]] = {}

    def add(self, group: str, scores: dict[str, float]) -> None:
        """Take in the scores of one picture."""
        sums, counts = self._sums.setdefault(group, {}), self._counts.setdefault(group, {})
        for name, value in scores.items():
            sums[name] = sums.get(name, 0.0) + value
            counts[name] = counts.get(name, 0) + 1

    def result(self) -> dict[str, dict[str, float]]:
        """Return group -> metric -> mean, groups in the order in which they came."""
        return {
            group: {name: total / self._counts[group][name] for name, total in sums.items()}
            for group, sums in self._sums.items()
        }


def format_score(metric: str, value: float) -> str:
    """Write a score with the decimals of its metric."""
    return f"{value:.{DECIMALS.get(metric, 4)}f}"
