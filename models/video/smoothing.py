"""The predicted degradation over time: averaged within a shot, begun anew at each cut.

The degradation of a film hardly changes within a shot, but its prediction varies from frame to
frame, and the networks' textures with it: that is what flickers. So v is averaged, over the past
only: the whole memory is one vector and its weight, which can be saved with a segment, nothing has
to be decoded ahead, and since the degradation of a shot is constant, the future would add nothing
but a shorter settling. Weights fall exponentially with time and are normalised, so that the first
frame of a shot counts for itself, the second half of two, and so on until the time constant is
reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

THUMBNAIL = (18, 32)
"""Rows and columns of the luma that shots are told apart by."""

_LEAST_CHANGE = 0.03
_TIMES_USUAL = 3.0
_MOST_LIKENESS = 0.8
_MEMORY = 16


class CutDetector:
    """Finds the first frame of each shot.

    A cut changes the picture (mean absolute difference of small luma) by several times what the
    shot's motion does, and what is left does not correlate with what was: flashes and exposure
    change the first alone, motion and pans neither that much.
    """

    def __init__(self) -> None:
        self.last: Tensor | None = None
        self.usual = 0.0
        self.count = 0

    def __call__(self, rgb: Tensor) -> bool:
        """Return whether ``rgb`` [1, 3, H, W], 0..1, begins a shot; the first frame does."""
        weights = torch.tensor([0.299, 0.587, 0.114], device=rgb.device).view(1, 3, 1, 1)
        luma = (rgb * weights).sum(1, keepdim=True)
        if luma.device.type == "mps":  # pools to divisors of the size only, and has no float64
            luma = luma.cpu()
        now = adaptive_avg_pool2d(luma, THUMBNAIL).flatten().cpu().double()
        last, self.last = self.last, now
        if last is None or last.shape != now.shape:
            return True
        change = float((now - last).abs().mean())
        usual = self.usual if self.count else 0.0
        if (
            change > max(_LEAST_CHANGE, _TIMES_USUAL * usual)
            and _likeness(now, last) < _MOST_LIKENESS
        ):
            self.usual, self.count = 0.0, 0
            return True
        self.count = min(self.count + 1, _MEMORY)
        self.usual += (change - self.usual) / self.count
        return False

    def state(self) -> dict[str, Any]:
        """Return what is remembered, as JSON has it."""
        last = None if self.last is None else self.last.tolist()
        return {"last": last, "usual": self.usual, "count": self.count}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        last = state["last"]
        self.last = None if last is None else torch.tensor(last, dtype=torch.float64)
        self.usual, self.count = float(state["usual"]), int(state["count"])


def _likeness(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 1e-9 else 0.0


class DegradationTrack:
    """The degradation to enlarge each frame with.

    Args:
        predict: maps [1, 3, H, W], 0..1, to v [1, N].
        smoothing: time constant in seconds; 0 for no averaging.
        every: predict on each so many-th frame of a shot.

    Attributes:
        cuts: number of shots begun after the first.
    """

    def __init__(self, predict: Callable[[Tensor], Tensor], smoothing: float, every: int) -> None:
        self.predict = predict
        self.smoothing = smoothing
        self.every = every
        self.cuts = 0
        self._detector = CutDetector()
        self._sum: Tensor | None = None
        self._weight = 0.0
        self._time = 0.0
        self._age = 0

    def update(self, rgb: Tensor, time: float) -> Tensor:
        """Return v [1, N], float32, on the CPU, for the next frame.

        Args:
            rgb: the frame, [1, 3, H, W], 0..1.
            time: when it is shown, in seconds.
        """
        if self._detector(rgb):
            self.cuts += self._sum is not None
            self._sum = None
        if self._sum is None:
            self._age = 0
        if self._sum is None or self._age >= self.every:
            v = self.predict(rgb).detach().cpu().double()
            keep = 0.0
            if self._sum is not None and self.smoothing > 0:
                keep = math.exp(-max(time - self._time, 0.0) / self.smoothing)
            self._sum = v if self._sum is None or keep == 0 else v + keep * self._sum
            self._weight = 1 + keep * self._weight if keep else 1.0
            self._time, self._age = time, 0
        self._age += 1
        return (self._sum / self._weight).float()

    def state(self) -> dict[str, Any]:
        """Return all that later frames depend on, as JSON has it, exactly."""
        return {
            "sum": None if self._sum is None else self._sum.tolist(),
            "weight": self._weight,
            "time": self._time,
            "age": self._age,
            "cuts": self.cuts,
            "detector": self._detector.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        values = state["sum"]
        self._sum = None if values is None else torch.tensor(values, dtype=torch.float64)
        self._weight, self._time = float(state["weight"]), float(state["time"])
        self._age, self.cuts = int(state["age"]), int(state["cuts"])
        self._detector.restore(state["detector"])
