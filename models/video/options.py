"""What may be chosen about an enlarged video."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class VideoOptions:
    """How a video is enlarged and encoded.

    Raises:
        TypeError: a value is of the wrong type.
        ValueError: a value is out of range.
    """

    codec: str = "auto"
    """Encoder by its name in FFmpeg (``libx264``, ``libx265``, ``libsvtav1``, ``libvpx-vp9``,
    ``prores_ks``, ``ffv1``...) or the name of a format (``h264``, ``hevc``, ``av1``, ``vp9``,
    ``prores``). ``auto``: ``libx264``; for ``.webm`` ``libvpx-vp9``."""
    crf: float | None = None
    """Constant quality, in the encoder's own scale, less is better; None for a good one."""
    preset: str | None = None
    """The encoder's trade of speed for size: ``ultrafast`` to ``placebo`` for x264 and x265, a
    number for AV1 and VP9; None for the encoder's middle."""
    pixel_format: str = "auto"
    """Pixel format by its name in FFmpeg, such as ``yuv420p10le``. ``auto`` keeps the bit depth and
    the chroma of the source as far as the encoder has them."""
    encoder_options: Mapping[str, str] = field(default_factory=dict)
    """More private options of the encoder, by their names in FFmpeg, as they are."""
    threads: int = 0
    """Threads of the encoder; 0 lets it choose."""
    segment_frames: int = 120
    """Frames of a segment, the unit in which work is kept after a kill. Each begins with a key
    frame, so that fewer cost a larger file."""
    smoothing: float = 1.0
    """Time constant in seconds of the averaging of the predicted degradation within a shot; 0
    takes the prediction of each frame as it is."""
    predict_every: int = 1
    """Predict the degradation on each N-th frame of a shot only."""
    max_frames: int | None = None
    """Stop after so many frames, for a trial; None for all. Audio ends there too."""

    def __post_init__(self) -> None:
        for name in ("codec", "pixel_format"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise TypeError(f"VideoOptions: {name}: expected a name, got {value!r}")
        if self.preset is not None and not isinstance(self.preset, (str, int)):
            raise TypeError(f"VideoOptions: preset: expected a name or None, got {self.preset!r}")
        for name in ("crf", "smoothing"):
            value = getattr(self, name)
            if value is None and name == "crf":
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise TypeError(f"VideoOptions: {name}: expected a number, got {value!r}")
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"VideoOptions: {name}: expected at least 0, got {value}")
        for name, least in (
            ("threads", 0),
            ("segment_frames", 1),
            ("predict_every", 1),
            ("max_frames", 1),
        ):
            value = getattr(self, name)
            if value is None and name == "max_frames":
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"VideoOptions: {name}: expected an int, got {value!r}")
            if value < least:
                raise ValueError(f"VideoOptions: {name}: expected at least {least}, got {value}")
        if not isinstance(self.encoder_options, Mapping):
            raise TypeError(
                "VideoOptions: encoder_options: expected a mapping of names to values, "
                f"got {self.encoder_options!r}"
            )
