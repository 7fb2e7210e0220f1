"""The networks of DASR, their checkpoints, and inference on pictures."""

from __future__ import annotations

from .dasr import DASR
from .discriminator import UNetDiscriminatorSN
from .generator import MSRResNetDynamic, SRResNet
from .predictor import Degradation_Predictor, Prediction

__all__ = [
    "DASR",
    "Degradation_Predictor",
    "MSRResNetDynamic",
    "Prediction",
    "SRResNet",
    "UNetDiscriminatorSN",
]
