"""Other people's networks, to be compared with: Real-ESRGAN, with weights in ncnn's format."""

from __future__ import annotations

from .ncnn import NcnnError
from .realesrgan import ANIMEVIDEO, MODELS, X4PLUS, X4PLUS_ANIME, RRDBNet, SRVGGNetCompact, load

__all__ = [
    "ANIMEVIDEO",
    "MODELS",
    "X4PLUS",
    "X4PLUS_ANIME",
    "NcnnError",
    "RRDBNet",
    "SRVGGNetCompact",
    "load",
]
