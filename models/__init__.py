"""The networks of DASR, their checkpoints, and inference on pictures."""

from __future__ import annotations

from .blend import blend
from .checkpoint import (
    CheckpointError,
    convert,
    label_scheme_of,
    load_dasr,
    load_srresnet,
    read_metadata,
    read_state_dict,
    save_dasr,
)
from .controls import Controls, DegradationError, describe_prediction, load_degradation
from .dasr import DASR
from .discriminator import UNetDiscriminatorSN
from .generator import MSRResNetDynamic, SRResNet
from .predictor import Degradation_Predictor, Prediction
from .upscale import Upscaler

__all__ = [
    "DASR",
    "CheckpointError",
    "Controls",
    "DegradationError",
    "Degradation_Predictor",
    "MSRResNetDynamic",
    "Prediction",
    "SRResNet",
    "UNetDiscriminatorSN",
    "Upscaler",
    "blend",
    "convert",
    "describe_prediction",
    "label_scheme_of",
    "load_dasr",
    "load_degradation",
    "load_srresnet",
    "read_metadata",
    "read_state_dict",
    "save_dasr",
]
