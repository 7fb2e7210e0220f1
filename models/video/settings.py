"""What the frames of a result depend on, as a record that later runs are compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from .._digests import network_digest, tensor_bytes
from .errors import import_av
from .options import VideoOptions
from .plan import VideoPlan
from .probe import Source
from .work import source_identity

VERSION = 3
"""Of the segments; another one makes older segments useless."""


def describe_settings(
    source: Source,
    plan: VideoPlan,
    upscaler: Any,
    degradation: Tensor | Callable[[Tensor], Tensor] | None,
    options: VideoOptions,
    container: str,
) -> dict[str, Any]:
    """Return the record, as JSON has it."""
    encoder = asdict(plan.encoder)
    encoder["layout"] = plan.encoder.layout.name
    return {
        "version": VERSION,
        "source": source_identity(source.path),
        "size": list(plan.size),
        "weights": _weights(upscaler),
        "network": {
            name: str(getattr(upscaler, name, None))
            for name in ("scale", "tile", "overlap", "dtype")
        },
        "degradation": _degradation(degradation, upscaler),
        "encoder": encoder,
        "container": container,
        "segment_frames": options.segment_frames,
        "smoothing": options.smoothing,
        "predict_every": options.predict_every,
        "max_frames": options.max_frames,
        "PyAV": import_av().__version__,
    }


def _weights(upscaler: Any) -> str:
    model = getattr(upscaler, "model", None)
    if not isinstance(model, torch.nn.Module):
        return type(upscaler).__qualname__
    return network_digest(model)


def _degradation(
    degradation: Tensor | Callable[[Tensor], Tensor] | None, upscaler: Any
) -> str | None:
    """Tell degradations apart by what they are, and functions by what they return."""
    if degradation is None:
        return None
    if isinstance(degradation, Tensor):
        return hashlib.sha256(tensor_bytes(degradation)).hexdigest()
    model = getattr(upscaler, "model", None)
    size = model.net_p.config["num_params"] if isinstance(model, torch.nn.Module) else 33
    ramp = torch.linspace(0, 1, size)
    digest = hashlib.sha256()
    for probe in (torch.zeros(size), torch.full((size,), 0.5), torch.ones(size), ramp):
        digest.update(tensor_bytes(degradation(probe[None].clone())))
    return digest.hexdigest()
