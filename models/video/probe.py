"""What a video file holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from .color import BT709, BT2020, FULL_RANGE, UNSPECIFIED, Colors, usual_matrix
from .errors import VideoError, import_av, reason
from .frames import Orientation, orientation_of
from .layout import Layout, layout_of

VIDEO_SUFFIXES = frozenset(
    (
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts"),
        *(".mts", ".vob", ".wmv", ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".mxf"),
        *(".y4m", ".dv"),
    )
)
"""Suffixes of the names of video files, in lower case."""

_RESTARTING = 0x0200  # AVFMT_TS_DISCONT
_FASTEST = 1000
_LATE = 10  # seconds
_CENTERED_CHROMA = ("mjpeg", "mpeg1video")
_FULL_RANGE_GREY = ("png", "apng", "mjpeg", "rawvideo", "ffv1", "gif", "qtrle", "huffyuv")
_ENCRYPTED_TAGS = ("encv", "drmi")


@dataclass(frozen=True)
class VideoProbe:
    """Summary of a video file."""

    size: tuple[int, int]
    """Width and height of the upright pictures, in stored pixels."""
    frames: int | None
    """How many, or about how many where the file does not say; None if nothing is known."""
    fps: float | None
    """Frames per second, on average."""
    duration: float | None
    """Seconds."""
    codec: str
    """FFmpeg's name of the codec."""
    pixel_format: str
    """FFmpeg's name of the pixel format."""
    audio: int
    """Number of audio tracks."""
    subtitles: int
    """Number of subtitle tracks."""


@dataclass(frozen=True)
class Source:
    """The video stream that is enlarged, as its header and its first frame describe it."""

    path: Path
    index: int
    """Of the stream."""
    codec: str
    stored_size: tuple[int, int]
    """Width and height of frames before they are turned upright."""
    layout: Layout
    colors: Colors
    matrix_tag: int
    range_tag: int
    primaries: int
    transfer: int
    aspect: Fraction
    """Of an upright pixel, width by height; 0 if unknown."""
    orientation: Orientation
    exact_orientation: bool
    interlaced: bool
    time_base: Fraction
    rate: Fraction | None
    declared_frames: int
    """0 if the file does not say."""
    duration: float | None
    shift: Fraction
    """Seconds added to all time stamps of the file."""
    audio: int
    subtitles: int
    format: str = ""
    """FFmpeg's name of the container."""
    restarting: bool = False
    """Whether the clock of this kind of file may start anew."""
    hidden_alpha: bool = False
    """Whether opacity is kept beside the pictures, where no decoder looks."""
    restarts: tuple[Any, ...] = ()
    """Each a `timeline.Restart`, once `reader.survey` has found them."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of upright frames."""
        width, height = self.stored_size
        return (height, width) if self.orientation.transpose else (width, height)


def probe(path: str | os.PathLike[str]) -> VideoProbe:
    """Read what a video file holds from its header and its first frame.

    Raises:
        VideoError: it is missing, no video, broken or encrypted, or PyAV is missing.
    """
    source = read_source(Path(path))
    frames: int | None = source.declared_frames
    if not frames:
        frames = round(source.duration * source.rate) if source.duration and source.rate else None
    return VideoProbe(
        size=source.size,
        frames=frames,
        fps=float(source.rate) if source.rate else None,
        duration=source.duration,
        codec=source.codec,
        pixel_format=source.layout.name,
        audio=source.audio,
        subtitles=source.subtitles,
    )


@contextmanager
def open_input(path: Path) -> Iterator[Any]:
    """Open a file for reading, as `av.container.InputContainer`.

    Raises:
        VideoError: it cannot be opened.
    """
    av = import_av()
    if path.is_dir():
        raise VideoError(f"{path} is a folder")
    try:
        # The prefix keeps names such as "http:x" and "a:b" what they are: names of files.
        container = av.open(f"file:{path}", "r", metadata_errors="replace")
    except FileNotFoundError:
        raise VideoError(f"{path} does not exist") from None
    except PermissionError as error:
        raise VideoError(f"{path}: {reason(error)}") from None
    except (OSError, ValueError) as error:
        said = "it is empty" if _is_empty(path) else reason(error)
        raise VideoError(f"{path} is no video, or broken: {said}") from None
    try:
        yield container
    finally:
        container.close()


def seconds(container: Any) -> float:
    """Return how long a file says that it lasts, from its first frame or sound on; 0 if unknown."""
    start = container.start_time or 0
    # Matroska tells when the last frame ends, other formats the difference.
    before = max(start, 0) if container.format.name.startswith("matroska") else 0
    return max((container.duration or 0) - before, 0) / 1_000_000


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return False


def is_cover(stream: Any) -> bool:
    """Return whether a video stream is a cover picture or a row of thumbnails."""
    from av.stream import Disposition

    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))


def main_video(container: Any) -> Any:
    """Return the video stream to enlarge: the default one, or the first.

    Raises:
        VideoError: there is none.
    """
    from av.stream import Disposition

    streams = [stream for stream in container.streams.video if not is_cover(stream)]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        raise VideoError(
            f"{_name(container)} has no video, only {' and '.join(kinds) or 'nothing at all'}"
        )
    defaults = [stream for stream in streams if stream.disposition & Disposition.default]
    return (defaults or streams)[0]


def read_source(path: Path) -> Source:
    """Describe the video of a file.

    Raises:
        VideoError: as for `probe`.
    """
    with open_input(path) as container:
        stream = main_video(container)
        if stream.codec_context is None:
            raise VideoError(f"{path}: this build of PyAV has no decoder for its video")
        frame = _first_frame(container, stream)
        name = frame.format.name
        layout = layout_of(name)
        context = stream.codec_context
        matrix = int(frame.colorspace)
        # Frames of older versions do not say it.
        primaries = int(getattr(frame, "color_primaries", context.color_primaries))
        if layout.model == "yuv" and matrix in (0, UNSPECIFIED):
            matrix = usual_matrix(frame.width, frame.height)
        if layout.model != "yuv":
            matrix = BT2020 if primaries == BT2020 else BT709
        full = int(frame.color_range) == FULL_RANGE or name.startswith("yuvj")
        if layout.model == "gray" and int(frame.color_range) == 0:
            full = stream.codec_context.name in _FULL_RANGE_GREY
        orientation, exact = orientation_of(frame)
        aspect = Fraction(stream.sample_aspect_ratio or context.sample_aspect_ratio or 0)
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        if rate and not 0 < rate <= _FASTEST:  # nonsense of broken headers
            rate = None
        duration = None
        if stream.duration is not None:
            duration = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration = seconds(container)
        restarts = container.format.flags & _RESTARTING
        ticks = round(Fraction(container.start_time or 0, 1_000_000) / stream.time_base)
        start = ticks * Fraction(stream.time_base)
        # A clock that shows the time of day: the result would begin with hours of nothing.
        shift = -start if restarts or start > _LATE else Fraction(0)
        return Source(
            path=path,
            index=stream.index,
            codec=context.name,
            stored_size=(frame.width, frame.height),
            layout=layout,
            colors=Colors(matrix, full, context.name in _CENTERED_CHROMA),
            matrix_tag=matrix,
            range_tag=FULL_RANGE if full else int(frame.color_range),
            primaries=primaries,
            transfer=int(getattr(frame, "color_trc", context.color_trc)),
            aspect=1 / aspect if aspect and orientation.transpose else aspect,
            orientation=orientation,
            exact_orientation=exact,
            interlaced=bool(frame.interlaced_frame),
            time_base=Fraction(stream.time_base),
            rate=None if not rate else Fraction(rate),
            declared_frames=stream.frames,
            duration=duration,
            shift=shift,
            audio=len(container.streams.audio),
            subtitles=len(container.streams.subtitles),
            format=container.format.name,
            restarting=bool(restarts),
            hidden_alpha=_hides_alpha(stream) and not layout.alpha,
        )


def _hides_alpha(stream: Any) -> bool:
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    return tags.get("alpha_mode", "0") not in ("", "0")


def _first_frame(container: Any, stream: Any) -> Any:
    import av

    stream.thread_type = "AUTO"
    failure = ""
    packets = 0
    try:
        for packet in container.demux(stream):
            packets += packet.size > 0
            try:
                for frame in packet.decode():
                    return frame
            except av.error.InvalidDataError as error:
                failure = reason(error)
    except (av.error.FFmpegError, OSError) as error:
        failure = reason(error)
    name = _name(container)
    if stream.codec_context.codec_tag in _ENCRYPTED_TAGS:
        raise VideoError(f"{name} is encrypted")
    if not packets:
        raise VideoError(f"{name} has a video stream without a single frame")
    raise VideoError(
        f"{name}: not one frame of its video can be decoded"
        + (f": {failure}" if failure else "; it is broken or encrypted")
    )


def _name(container: Any) -> str:
    return str(container.name).removeprefix("file:")
