"""Losses: pixels, degradation vector, features of a classifier, adversary."""

from __future__ import annotations

from .gan import GanLoss
from .perceptual import PerceptualLoss
from .pixel import pixel_loss, regression_loss

__all__ = ["GanLoss", "PerceptualLoss", "pixel_loss", "regression_loss"]
