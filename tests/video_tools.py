"""Small clips, and upscalers without a network, for the tests of video."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

SIZE = (32, 24)
RATE = 25
TIME_BASE = Fraction(1, 12800)
TICK = 512  # one frame of 1/25 s


@dataclass
class Nearest:
    """Repeats pixels; remembers what it was asked."""

    scale: int = 4
    device: str = "cpu"
    delay: float = 0.0
    fail_at: int = -1
    seen: list[torch.Tensor] = field(default_factory=list)
    used: list[torch.Tensor] = field(default_factory=list)

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        return width * self.scale, height * self.scale

    def predict(self, lr: torch.Tensor) -> SimpleNamespace:
        """Degradations that change from frame to frame."""
        mean = lr.mean((2, 3))
        return SimpleNamespace(v=torch.cat([mean * factor for factor in range(1, 12)], 1))

    def __call__(self, image: torch.Tensor, *, degradation: torch.Tensor) -> torch.Tensor:
        if len(self.seen) == self.fail_at:
            raise KeyboardInterrupt
        time.sleep(self.delay)
        self.seen.append(image)
        self.used.append(degradation)
        # A trace of v in the pixels, so that frames tell which v they were made with.
        trace = 0.05 * degradation.mean()
        large = image.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)
        return (large * 0.9 + trace).clamp(0, 1)


class Plain(Nearest):
    """Repeats pixels and does nothing else."""

    def __call__(self, image: torch.Tensor, *, degradation: torch.Tensor) -> torch.Tensor:
        self.seen.append(image)
        self.used.append(degradation)
        return image.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A gradient with a square that moves: luma of frame ``number``, uint8 [H, W]."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    luma = 40 + 100 * x / width + 50 * y / height
    left = (3 * number) % max(width - 8, 1)
    luma[4:12, left : left + 8] = 220 - 2 * (number % 20)
    return luma.astype(np.uint8)


def fill(frame: Any, planes: list[np.ndarray]) -> Any:
    for plane, samples in zip(frame.planes, planes, strict=True):
        rows = np.frombuffer(plane, samples.dtype).reshape(
            -1, plane.line_size // samples.dtype.itemsize
        )
        rows[: samples.shape[0], : samples.shape[1]] = samples
    return frame


def gray_frame(number: int, size: tuple[int, int] = SIZE, pixel_format: str = "yuv420p") -> Any:
    """Frame ``number`` with coloured corners, in an 8-bit 4:2:0 or 4:4:4 format."""
    import av

    luma = picture(number, size)
    part = luma[::2, ::2] if "420" in pixel_format else luma
    chroma = [(part // 8 + 112).astype(np.uint8), (144 - part // 8).astype(np.uint8)]
    return fill(av.VideoFrame(*size, pixel_format), [luma, *chroma])


def make_clip(
    path: Path,
    frames: int = 20,
    *,
    pts: list[int] | None = None,
    size: tuple[int, int] = SIZE,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    audio: tuple[str, ...] = (),
    audio_codec: str = "aac",
    make: Any = None,
    container_options: dict[str, str] | None = None,
    prepare: Any = None,
    **stream_settings: Any,
) -> Path:
    """Write a clip with PyAV.

    Args:
        path: where to.
        frames: how many.
        pts: time stamps, in units of 1/12800 s; else 25 frames per second.
        audio: languages of audio tracks.
        make: returns frame ``number``; else `gray_frame`.
        prepare: called with the container before anything is written.
        **stream_settings: set on the video stream.
    """
    import av

    pts = [TICK * number for number in range(frames)] if pts is None else pts
    with av.open(str(path), "w", container_options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=RATE, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = TIME_BASE
        stream.time_base = TIME_BASE
        for name, value in stream_settings.items():
            setattr(stream.codec_context, name, value)
        tracks = []
        for language in audio:
            track = output.add_stream(audio_codec, rate=16000, layout="mono")
            track.metadata["language"] = language
            tracks.append(track)
        if prepare is not None:
            prepare(output)
        for number, stamp in enumerate(pts):
            frame = make(number) if make else gray_frame(number, size, pixel_format)
            for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
                if name in stream_settings and hasattr(frame, name):
                    setattr(frame, name, stream_settings[name])
            frame.pts, frame.time_base = stamp, TIME_BASE
            frame.duration = pts[number + 1] - stamp if number + 1 < len(pts) else TICK
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        seconds = float((pts[-1] + TICK) * TIME_BASE)
        for index, track in enumerate(tracks):
            _add_sound(output, track, seconds, 300 * (index + 1))
    return path


def _add_sound(output: Any, track: Any, seconds: float, frequency: int) -> None:
    import av

    count = int(16000 * seconds)
    wave = (8000 * np.sin(np.arange(count) * (2 * np.pi * frequency / 16000))).astype(np.int16)
    for first in range(0, count, 1024):
        part = av.AudioFrame.from_ndarray(wave[None, first : first + 1024], "s16", "mono")
        part.sample_rate, part.pts = 16000, first
        part.time_base = Fraction(1, 16000)
        output.mux(track.encode(part))
    output.mux(track.encode(None))


def times(path: Path) -> list[Fraction]:
    """Time of each frame of a video, by decoding it."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [Fraction(frame.pts) * frame.time_base for frame in container.decode(stream)]


def planes(path: Path) -> list[list[np.ndarray]]:
    """Samples of each frame of a video; of RGB in the order G, B, R."""
    import av

    result = []
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.video[0]):
            if frame.format.name in ("bgr0", "bgra"):
                frame = frame.reformat(format="gbrp" if frame.format.name == "bgr0" else "gbrap")
            deep = max(part.bits for part in frame.format.components) > 8
            kind = np.dtype("<u2" if deep else np.uint8)
            result.append(
                [
                    np.frombuffer(plane, kind)
                    .reshape(-1, plane.line_size // kind.itemsize)[: plane.height, : plane.width]
                    .copy()
                    for plane in frame.planes
                ]
            )
    return result


def packets(path: Path, kind: str, index: int = 0) -> list[bytes]:
    """Packets of a stream of a kind, as they lie in the file."""
    import av

    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[index]
        return [bytes(packet) for packet in container.demux(stream) if packet.size]
