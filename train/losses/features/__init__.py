"""Feature networks of the perceptual loss, and their weights.

``python -m dasr_ops.train.losses.features fetch`` fetches the freely licensed ones.
"""

from __future__ import annotations

from .networks import ARCHITECTURES, Architecture, FeatureNetwork, check_layers
from .weights import cache_folder, find_weights, load_weights

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "FeatureNetwork",
    "cache_folder",
    "check_layers",
    "find_weights",
    "load_weights",
]
