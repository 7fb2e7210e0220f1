"""Enlarging video, with PyAV (``pip install 'dasr-ops[video]'``), imported on first use."""

from __future__ import annotations

from .codecs import CONTAINERS, encoders, target_suffix
from .errors import VideoError, VideoWarning
from .options import VideoOptions
from .probe import VIDEO_SUFFIXES, VideoProbe, probe
from .upscale import VideoSummary, upscale_video
from .work import work_paths

__all__ = [
    "CONTAINERS",
    "VIDEO_SUFFIXES",
    "VideoError",
    "VideoOptions",
    "VideoProbe",
    "VideoSummary",
    "VideoWarning",
    "encoders",
    "probe",
    "target_suffix",
    "upscale_video",
    "work_paths",
]
