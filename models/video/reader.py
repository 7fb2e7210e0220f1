"""Decoding: frame after frame with time stamps that an encoder accepts."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .errors import VideoError, check_disk, reason
from .frames import read_planes
from .probe import Source, open_input, seconds
from .timeline import Restart, RestartFinder, demux, is_flush, is_stray

Warn = Callable[[str], None]
Beat = Callable[[], None]

BEAT = 50
"""Packets or frames between two signs of life, by which a caller can end the work."""


class SourceFrame(NamedTuple):
    """One decoded frame, not yet upright."""

    number: int
    """From 0."""
    planes: list[np.ndarray]
    pts: int
    """Time stamp, in units of the time base of the source; they increase strictly."""
    duration: int
    """In the same units; 0 if unknown."""


class Survey(NamedTuple):
    """What is known only once a file was read."""

    frames: int
    """How many there are; 0 if unknown."""
    restarts: tuple[Restart, ...]
    """Where the clock starts anew."""


def survey(source: Source, warn: Warn, beat: Beat = lambda: None) -> Survey:
    """Read the file, without decoding it, where it does not say how many frames it holds.

    Files that say how long they are, but not how many frames they hold, end early if cut off;
    that is said by ``warn``.

    Args:
        source: the stream.
        warn: called with what is wrong with the file.
        beat: called every `BEAT` packets; what it raises ends the work.
    """
    import av

    if source.declared_frames and not source.restarting:
        return Survey(source.declared_frames, ())
    count, end = 0, 0.0
    finder = RestartFinder(source)
    with open_input(source.path) as container:
        start = (container.start_time or 0) / 1_000_000
        wanted = [stream for stream in container.streams if stream.type in ("video", "audio")]
        try:
            for number, packet in enumerate(container.demux(wanted), 1):
                if number % BEAT == 0:
                    beat()
                finder.add(packet)
                if packet.size == 0:
                    continue
                if packet.stream_index == source.index:
                    count += not packet.is_discard
                if packet.pts is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        except (av.error.FFmpegError, OSError) as error:
            check_disk(error, source.path)  # of anything else decoding will say it
        whole = seconds(container)
    restarts = tuple(finder.restarts)
    if not restarts and end - start < 0.98 * whole - 0.5:
        warn(
            f"the file should last {whole:.1f} s and ends after {end - start:.1f} s: it is cut off"
        )
    return Survey(source.declared_frames or count, restarts)


def read_frames(
    source: Source, first: int, limit: int | None, warn: Warn
) -> Iterator[SourceFrame | None]:
    """Decode the video.

    To go on in the middle all frames before are decoded too, and dropped: a seek would have to
    trust key frames and time stamps to find exactly the same frame again, and decoding takes
    little beside the network.

    Args:
        source: the stream.
        first: number of the first frame wanted.
        limit: where to stop, exclusive; None for the end.
        warn: called with what is wrong with the file.

    Yields:
        The frames; before, None for every `BEAT` frames dropped.

    Raises:
        VideoError: the file cannot be read.
    """
    decoder = _Decoder(source)
    number = 0
    clock = _Clock(source)
    scaled, interlaced = False, source.interlaced
    for frame, pts in clock.stamped(decoder):
        if limit is not None and number >= limit:
            return
        if number >= first:
            if frame.interlaced_frame and not interlaced:
                interlaced = True
                warn(f"the video is interlaced from frame {number} on: better deinterlace it first")
            size = (frame.width, frame.height)
            if size != source.stored_size and not scaled:
                scaled = True
                warn(
                    f"frame {number} is {size[0]}x{size[1]}: it and others are scaled to the "
                    f"{source.stored_size[0]}x{source.stored_size[1]} of the first"
                )
            planes = read_planes(frame, source.layout, source.stored_size)
            yield SourceFrame(number, planes, pts, int(frame.duration or 0))
        elif number % BEAT == 0:
            yield None
        number += 1
    if decoder.failures:
        warn(
            f"{decoder.failures} parts of the file are broken and left out: {decoder.reason}; "
            f"{number} frames could be decoded"
        )
    elif number < 0.98 * (source.declared_frames - decoder.discarded) - 2:  # AVI miscounts
        warn(
            f"the file should have {source.declared_frames} frames, {number} could be decoded: "
            "it is cut off"
        )
    damaged = max(decoder.damaged_packets, decoder.damaged_frames)
    if damaged:
        warn(f"{damaged} of {number} frames are damaged in the source: the result shows it")
    if clock.mended:
        warn(f"{clock.mended} frames have no time stamp, or one out of order: mended")


_MOST_REORDERED = 16  # by H.264 and H.265


class _Decoder:
    """All frames that can be decoded, and how many times something could not."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.failures = 0
        self.discarded = 0
        self.damaged_packets = 0
        self.damaged_frames = 0
        self.reason = ""
        self._packets = 0
        # AVI knows no order of frames but that of its packets. FFmpeg's guesses are out of order.
        unordered = source.format == "avi" and source.codec in ("h264", "hevc")
        self._ticks: list[int] | None = [] if unordered else None

    def __iter__(self) -> Iterator[Any]:
        import av

        with open_input(self.source.path) as container:
            stream = container.streams[self.source.index]
            stream.thread_type = "AUTO"
            packets = demux(container, self.source, [stream])
            while True:
                try:
                    packet = next(packets, None)
                except (av.error.FFmpegError, OSError) as error:
                    check_disk(error, self.source.path)
                    self._note(error)
                    packet = None
                if packet is not None and packet.size == 0:
                    if is_flush(packet):
                        packet = None  # the end
                    else:
                        continue  # a dropped frame
                if packet is not None:
                    self._look_at(packet)
                try:
                    frames = stream.decode(packet)
                except av.error.EOFError:
                    frames = []
                except av.error.FFmpegError as error:
                    self._note(error)
                    frames = []
                    if self._ticks and packet is not None and packet.dts in self._ticks:
                        self._ticks.remove(packet.dts)
                        heapq.heapify(self._ticks)
                for frame in frames:
                    self.damaged_frames += frame.is_corrupt
                    self._order(frame)
                    yield frame
                if packet is None:
                    return

    def _look_at(self, packet: Any) -> None:
        self.discarded += packet.is_discard
        # Where files were put one behind the other, counters of packets start anew as well.
        seam = any(abs(restart.packet - self._packets) < 4 for restart in self.source.restarts)
        self.damaged_packets += packet.is_corrupt and not seam
        self._packets += 1
        if self._ticks is not None and packet.dts is not None:
            heapq.heappush(self._ticks, packet.dts)

    def _order(self, frame: Any) -> None:
        ticks = self._ticks
        if not ticks:
            return
        if frame.pts is not None:  # packets that gave no frame
            while len(ticks) > 1 and ticks[0] < frame.pts - 1 - _MOST_REORDERED:
                heapq.heappop(ticks)
        frame.pts = heapq.heappop(ticks)

    def _note(self, error: BaseException) -> None:
        self.failures += 1
        self.reason = self.reason or reason(error)


class _Clock:
    """Time stamps as they are, mended where they are missing, stray or do not increase."""

    def __init__(self, source: Source) -> None:
        rate = source.rate or 25
        self.usual = max(round(1 / (rate * source.time_base)), 1)
        self.far = round(1 / source.time_base)
        self.last: int | None = None
        self.mended = 0

    def stamped(self, frames: Iterable[Any]) -> Iterator[tuple[Any, int]]:
        """Yield each frame with its time stamp, once the one behind it is known."""
        held = None
        for frame in frames:
            if held is not None:
                yield held, self._stamp(held.pts, frame.pts)
            held = frame
        if held is not None:
            yield held, self._stamp(held.pts, None)

    def _stamp(self, pts: int | None, following: int | None) -> int:
        last, given = self.last, pts
        if is_stray(pts, last, following, self.far):
            pts = following - self.usual if last is None else min(last + self.usual, following - 1)
        if pts is None or (last is not None and pts <= last):
            step = self.usual if pts is None else 1
            pts = 0 if last is None else last + step
        self.mended += pts != given
        self.last = pts
        return pts


def check_source(source: Source, warn: Warn) -> None:
    """Say what is special about a source.

    Raises:
        VideoError: it cannot be enlarged.
    """
    from .color import HLG, PQ

    if source.hidden_alpha:
        warn("opacity is left out: it is kept beside the pictures, where it cannot be decoded")
    if min(source.stored_size) < 1:
        raise VideoError(f"{source.path} has pictures of no size")
    if source.interlaced:
        warn(
            "the video is interlaced: fields are enlarged as if they were whole frames; better "
            "deinterlace it first"
        )
    if source.transfer in (PQ, HLG):
        name = "PQ" if source.transfer == PQ else "HLG"
        warn(
            f"the video is HDR ({name}): the network knows SDR only; tags are kept, mastering "
            "metadata is not"
        )
    if source.layout.model == "yuv" and not source.colors.known:
        warn(f"colour matrix {source.colors.matrix} is treated like Rec. 709")
    if not source.exact_orientation:
        warn("the video is turned by an angle that is no quarter turn: turned to the nearest")
