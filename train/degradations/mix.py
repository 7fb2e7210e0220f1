"""The degradation vectors of a mix of levels."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .labels import labels
from .sampler import sample


def mix_vectors(
    mix: Mapping[str, float], scheme: str = "unified", samples: int = 4096, seed: int = 0
) -> torch.Tensor:
    """Draw degradation vectors, float32 [samples, 33], from a mix of levels (name -> weight).

    Raises:
        ValueError: as `sample` and `labels`.
    """
    generator = torch.Generator().manual_seed(seed)
    return labels(sample(generator, samples, dict(mix)), scheme)
