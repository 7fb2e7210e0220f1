"""Degradation synthesis: draw (`sample`), degrade (`apply`), label (`labels`), read (`decode`)."""

from .describe import describe
from .labels import LAYOUT, NUM_LABELS, SCHEMES, Decoded, DecodedStage, decode, labels
from .levels import LEVELS, NO_JPEG, TRAINING_MIX, Level, Sinc, Stage
from .mix import mix_vectors
from .params import DegradationParams, StageParams
from .pipeline import apply, degrade
from .readable import Readable, describe_prediction
from .resize import RESIZE_MODES
from .sampler import sample, sample_seeds
from .sharpen import usm_sharpen

__all__ = [
    "LAYOUT",
    "LEVELS",
    "NO_JPEG",
    "NUM_LABELS",
    "RESIZE_MODES",
    "SCHEMES",
    "TRAINING_MIX",
    "Decoded",
    "DecodedStage",
    "DegradationParams",
    "Level",
    "Readable",
    "Sinc",
    "Stage",
    "StageParams",
    "apply",
    "decode",
    "degrade",
    "describe",
    "describe_prediction",
    "labels",
    "mix_vectors",
    "sample",
    "sample_seeds",
    "usm_sharpen",
]
