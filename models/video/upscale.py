"""`upscale_video`: a video file in, an enlarged one out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..files import atomic_path
from .codecs import container_of
from .color import from_rgb, to_plane, to_rgb, to_tensor
from .errors import VideoError, VideoWarning, import_av, reason
from .mux import check_result, write_result
from .options import VideoOptions
from .plan import VideoPlan, make_plan
from .probe import Source, read_source
from .reader import SourceFrame, check_source, read_frames, survey
from .segments import EncodedFrame, EndOfSegment, SegmentEncoder
from .settings import describe_settings
from .smoothing import DegradationTrack
from .streams import fitting_streams
from .threads import Behind, prefetch
from .work import Segment, Tiles, WorkFolder, open_work, remove_finished

AHEAD = 3
"""Frames that wait between decoder and network, and between network and encoder."""

Degradation = Tensor | Callable[[Tensor], Tensor]
Progress = Callable[[int, "int | None"], None]


@dataclass(frozen=True)
class VideoSummary:
    """What was done."""

    frames: int
    """Frames of the result, as many as of the source."""
    resumed: int
    """How many of them an earlier, interrupted run had made."""
    size: tuple[int, int]
    """Width and height of the result."""
    duration: float
    """Seconds from the first frame to the end of the last."""
    codec: str
    """FFmpeg's name of the encoder."""
    pixel_format: str
    """FFmpeg's name of the pixel format."""
    cuts: int
    """Shot cuts found; 0 if the degradation was given."""


def upscale_video(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    upscaler: Any,
    *,
    degradation: Degradation | None = None,
    options: VideoOptions | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> VideoSummary:
    """Enlarge a video.

    Every frame of the source becomes one of the result, at the same time. Audio, subtitles, fonts,
    chapters, tags and flags are copied, not encoded again. Bit depth, colour matrix, range,
    primaries, transfer and pixel aspect are kept; rotation is applied. Sides that the chroma of
    the pixel format does not divide lose their last column or row.

    Work is kept in segments in the folder ``.NAME.XXXXXXXX.dasr-video`` beside the target, one for
    each set of settings: after a kill, a power failure or a full disk the same call goes on behind
    the last whole segment, and the frames are those of an uninterrupted run. The folder goes when
    the result is complete.

    Args:
        source: any file that FFmpeg decodes.
        target: a name that ends in .mp4, .m4v, .mov, .mkv or .webm.
        upscaler: an `Upscaler`.
        degradation: v [1, 33] for all frames, or a function that turns the predicted and averaged
            v into the one to use.
        options: see `VideoOptions`.
        replace: whether an existing target is replaced.
        progress: called with the number of frames done and their total, after each frame, at the
            start if there are any, and again and again with the same numbers where work goes on
            without new frames; the total is None if not known. What it raises ends the work.

    Raises:
        VideoError: the source cannot be read, an encoder is missing or refuses, or the target
            cannot be written.
        FileExistsError: ``replace`` is False and ``target`` exists.

    Warns:
        VideoWarning: something cannot be kept, or is wrong with the source.
    """
    source, target = Path(source), Path(target)
    options = VideoOptions() if options is None else options
    import_av()
    container = container_of(target)
    if target.is_dir():
        raise VideoError(f"{target} is a folder")
    if target.exists():
        if source.exists() and target.samefile(source):
            raise VideoError(f"{target} is the source itself")
        if not replace:
            remove_finished(target)
            raise FileExistsError(f"{target} exists")
    notes = _Notes()
    try:
        facts = read_source(source)
        check_source(facts, notes.add)
        plan = make_plan(facts, upscaler.output_size(*facts.size), options, container)
        if facts.layout.alpha and not plan.encoder.layout.alpha:
            notes.add(f"opacity is left out: {plan.encoder.name} keeps none")
        settings = describe_settings(facts, plan, upscaler, degradation, options, container)
        with open_work(target, settings, notes.add) as work:
            copied = fitting_streams(facts, plan, container, work.path / "trial.part", notes.add)
            tiles = work.begin(settings, notes.add, lambda: _choose_tiles(upscaler, facts.size))
            notes.say()
            finished = work.segments()
            resumed = sum(len(segment.pts) for segment in finished)
            beat = _beat(progress, resumed, None)
            found = survey(facts, notes.add, beat)
            facts = changed(facts, restarts=found.restarts)
            total = found.frames or None
            if total is not None and options.max_frames is not None:
                total = min(total, options.max_frames)
            run = _Run(facts, plan, upscaler, degradation, options, work, notes, tiles)
            run.resume(finished)
            run.frames(resumed, total, progress)
            segments = work.segments()
            _finish(
                *(target, container, facts, plan, work, segments, copied, options, replace),
                notes.add,
                _beat(progress, sum(len(segment.pts) for segment in segments), total),
            )
            work.remove()
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise
        if isinstance(error.filename, str) and Path(error.filename) == source:
            raise VideoError(f"{source} cannot be read: {reason(error)}") from None
        raise VideoError(f"{target} cannot be written: {reason(error)}") from None
    finally:
        notes.say()
    return _summary(plan, segments, resumed, run.cuts)


def _beat(progress: Progress | None, done: int, total: int | None) -> Callable[[], None]:
    """Return what says again how far the work is, so that ``progress`` can end it."""

    def beat() -> None:
        if progress is not None:
            progress(done, total)

    return beat


def _choose_tiles(upscaler: Any, size: tuple[int, int]) -> Tiles | None:
    """Return (rows, columns) for all frames of a video, or None to leave it to the upscaler.

    Chosen for each frame anew, by the memory that is free, they would differ from run to run.
    """
    choose = getattr(upscaler, "choose_tiles", None)
    if choose is None or getattr(upscaler, "tile", "auto") != "auto":
        return None
    rows, columns = choose(size[1], size[0])
    return int(rows), int(columns)


class _Notes:
    """Warnings of all threads, said by the one that called, each once."""

    def __init__(self) -> None:
        self._waiting: list[str] = []
        self._said: set[str] = set()

    def add(self, text: str) -> None:
        self._waiting.append(text)

    def say(self) -> None:
        while self._waiting:
            text = self._waiting.pop(0)
            if text not in self._said:
                self._said.add(text)
                warnings.warn(text, VideoWarning, stacklevel=3)


class _Run:
    """From decoded frames to finished segments."""

    def __init__(
        self,
        source: Source,
        plan: VideoPlan,
        upscaler: Any,
        degradation: Degradation | None,
        options: VideoOptions,
        work: WorkFolder,
        notes: _Notes,
        tiles: Tiles | None,
    ) -> None:
        self.source, self.plan, self.options = source, plan, options
        self.upscaler, self.work, self.notes = upscaler, work, notes
        self.fixed = degradation if isinstance(degradation, Tensor) else None
        self.edit = None if isinstance(degradation, Tensor) else degradation
        self.chosen: dict[str, Any] = {} if tiles is None else {"tiles": tiles}
        self.device = getattr(upscaler, "device", "cpu")
        self.track = DegradationTrack(
            lambda rgb: upscaler.predict(rgb).v, options.smoothing, options.predict_every
        )
        self.encoder = SegmentEncoder(work, plan, 0)
        self.last: SourceFrame | None = None
        self.result: list[np.ndarray] = []

    @property
    def cuts(self) -> int:
        """Shots found after the first."""
        return self.track.cuts

    def resume(self, finished: list[Segment]) -> None:
        """Go on behind ``finished``."""
        self.encoder.number = len(finished)
        if finished and self.fixed is None:
            self.track.restore(finished[-1].state)

    def frames(self, done: int, total: int | None, progress: Progress | None) -> None:
        """Enlarge all frames from number ``done`` on."""
        if done and progress is not None:
            progress(done, total)
        decoded: Iterator[SourceFrame | None] = prefetch(
            read_frames(self.source, done, self.options.max_frames, self.notes.add), AHEAD
        )
        try:
            with closing(decoded), Behind(self.encoder, AHEAD) as encoder:  # type: ignore[type-var]
                begun = 0
                for frame in decoded:
                    if frame is None:  # dropped
                        if progress is not None:
                            progress(done, total)
                        continue
                    encoder.put(EncodedFrame(self.enlarge(frame), frame.pts, frame.duration))
                    done += 1
                    begun += 1
                    if begun == self.options.segment_frames:
                        self.end(encoder)
                        begun = 0
                    if progress is not None:
                        progress(done, total)
                if begun:
                    self.end(encoder)
        except BaseException:
            self.encoder.abandon()
            raise
        if not done:
            raise VideoError(f"{self.source.path}: not one frame of its video can be decoded")

    def end(self, encoder: Behind[Any]) -> None:
        """Finish the segment."""
        encoder.put(EndOfSegment(self.track.state()))
        # The first frame of a segment never repeats one before: after a kill there is none.
        self.last = None

    @torch.no_grad()
    def enlarge(self, frame: SourceFrame) -> list[np.ndarray]:
        """Return the samples of the enlarged frame."""
        last, self.last = self.last, frame
        if last is not None and all(
            np.array_equal(a, b) for a, b in zip(last.planes, frame.planes, strict=True)
        ):
            return self.result  # stills, and animation on twos
        source, plan = self.source, self.plan
        rgb = to_rgb(frame.planes, source.layout, source.colors, self.device)
        rgb = source.orientation.apply(rgb).contiguous()
        v = self.fixed
        if v is None:
            v = self.track.update(rgb, float(frame.pts * source.time_base))
            v = v if self.edit is None else self.edit(v)
        large = self.upscaler(rgb, degradation=v, **self.chosen)
        width, height = plan.size
        shape = [height + plan.cropped[1], width + plan.cropped[0]]
        if list(large.shape) != [1, 3, *shape]:
            raise VideoError(
                f"upscaler: expected a result [1, 3, {shape[0]}, {shape[1]}], got "
                f"{list(large.shape)}"
            )
        layout = plan.encoder.layout
        planes = from_rgb(large[:, :, :height, :width], layout, plan.colors)
        if layout.alpha:
            planes.append(self.opacity(frame, shape))
        self.result = planes
        return planes

    def opacity(self, frame: SourceFrame, shape: list[int]) -> np.ndarray:
        """Return the enlarged opacity of a frame; opaque where the source has none."""
        width, height = self.plan.size
        peak = self.plan.encoder.layout.peak
        if not self.source.layout.alpha:
            return to_plane(torch.full((height, width), float(peak)), peak)
        alpha = to_tensor(frame.planes[-1], self.device) / self.source.layout.peak
        alpha = self.source.orientation.apply(alpha)[None, None]
        alpha = interpolate(alpha, shape, mode="bicubic", antialias=True)
        return to_plane(alpha[0, 0, :height, :width] * peak, peak)


def _finish(
    target: Path,
    container: str,
    source: Source,
    plan: VideoPlan,
    work: WorkFolder,
    segments: list[Segment],
    copied: list[int],
    options: VideoOptions,
    replace: bool,
    warn: Callable[[str], None],
    beat: Callable[[], None],
) -> None:
    """Put the file together, compare its frames with the source's, and move it into place."""
    import av

    result = work.path / "result.part"
    try:
        write_result(
            *(result, container, source, plan, work, segments, copied),
            cut=options.max_frames is not None,
            beat=beat,
        )
        check_result(result, plan, source, segments, warn, beat)
        with atomic_path(target, replace=replace) as temporary:
            result.replace(temporary)
            work.seal(temporary)
    except av.error.FFmpegError as error:
        raise VideoError(
            f"{target} cannot be written: {reason(error)}; the finished segments are kept"
        ) from None
    except VideoError as error:
        raise VideoError(f"{target}: {error}; the finished segments are kept") from None
    finally:
        result.unlink(missing_ok=True)


def _summary(plan: VideoPlan, segments: list[Segment], resumed: int, cuts: int) -> VideoSummary:
    pts = [value for segment in segments for value in segment.pts]
    last = segments[-1].durations[-1] or (1 / (plan.rate * plan.time_base))
    return VideoSummary(
        frames=len(pts),
        resumed=resumed,
        size=plan.size,
        duration=float((pts[-1] - pts[0] + last) * plan.time_base),
        codec=plan.encoder.name,
        pixel_format=plan.encoder.pixel_format,
        cuts=cuts,
    )
