"""Putting the result together: packets of segments and of the source, without encoding again."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from .color import BT601
from .errors import VideoError, check_disk, import_av
from .packets import read_packets
from .plan import VideoPlan
from .probe import Source, is_cover, main_video, open_input, read_source
from .reader import BEAT, Beat, Warn
from .streams import add_copy, add_video, container_tags, open_output, read_covers
from .timeline import decoded_at, demux, is_stray
from .work import Segment, WorkFolder

_PREROLL = 0.1  # seconds


def write_result(
    path: Path,
    container: str,
    source: Source,
    plan: VideoPlan,
    work: WorkFolder,
    segments: Sequence[Segment],
    copied: Sequence[int],
    cut: bool,
    beat: Beat = lambda: None,
) -> None:
    """Write the finished file.

    Args:
        path: where to; an existing file is overwritten.
        container: FFmpeg's name of the format.
        source: of the copied streams.
        plan: of the enlarged stream.
        work: holds the packets of ``segments``.
        segments: all of them.
        copied: indices of the streams of the source that are copied.
        cut: whether the video is only the beginning of that of the source; so are then the others.
        beat: called every `BEAT` packets; what it raises ends the work.

    Raises:
        VideoError: segments do not belong together.
        OSError: the file cannot be written.
    """
    if len({segment.extradata for segment in segments}) > 1:
        raise VideoError(f"the segments in {work.path} differ in their headers: remove it")
    pts = [value for segment in segments for value in segment.pts]
    last = segments[-1].durations[-1] or _usual(pts, plan)
    shift = _shift(source, plan, pts)
    end = (pts[-1] + last) * plan.time_base + shift if cut else None
    covers = read_covers(source.path)
    with (
        open_input(source.path) as input_,
        open_output(path, container, container_tags(input_)) as output,
    ):
        video = None
        targets: dict[int, Any] = {}
        for stream in input_.streams:
            if stream.index == source.index:
                video = add_video(output, stream, plan)
            elif stream.index in copied:
                target = add_copy(output, stream, container, covers.get(stream.index))
                if target is not None:
                    targets[stream.index] = target
        chapters = _chapters(input_, shift, end)
        if chapters:
            output.set_chapters(chapters)
        output.start_encoding()
        header = bytes(video.codec_context.extradata or b"").hex()
        if header != segments[0].extradata:
            raise VideoError(f"the segments in {work.path} are those of another encoder")
        packets = heapq.merge(
            _video_packets(video, shift, plan, work, segments, pts, last),
            _covers(targets, covers),
            _copied_packets(input_, targets, source, shift, end, container),
            key=lambda pair: pair[0],
        )
        for number, (_, packet) in enumerate(packets, 1):
            if number % BEAT == 0:
                beat()
            output.mux_one(packet)


def _shift(source: Source, plan: VideoPlan, pts: list[int]) -> Fraction:
    """Return what is added to all times: with a stray first one not what the header says."""
    return source.shift if source.restarting else max(source.shift, -pts[0] * plan.time_base)


def _usual(pts: list[int], plan: VideoPlan) -> int:
    if len(pts) > 1:
        return pts[-1] - pts[-2]
    return max(round(1 / (plan.rate * plan.time_base)), 1)


def decode_times(pts: list[int], order: list[int], step: int) -> list[int]:
    """Return time stamps to decode packets at: increasing, and never after they are shown.

    Each packet is decoded when the frame is shown that lies as many frames ahead as packets are
    reordered at most.

    Args:
        pts: time stamps of the frames, increasing.
        order: the same in the order of the packets.
        step: usual distance of frames.
    """
    rank = {value: number for number, value in enumerate(pts)}
    delay = max((number - rank[value] for number, value in enumerate(order)), default=0)
    early = [pts[0] - (delay - number) * step for number in range(min(delay, len(pts)))]
    return [*early, *pts[: len(pts) - len(early)]]


def _video_packets(
    stream: Any,
    shift: Fraction,
    plan: VideoPlan,
    work: WorkFolder,
    segments: Sequence[Segment],
    pts: list[int],
    last: int,
) -> Iterator[tuple[float, Any]]:
    av = import_av()
    order = [value for segment in segments for value in segment.order]
    step = max(round(1 / (plan.rate * plan.time_base)), 1)
    times = iter(decode_times(pts, order, step))
    durations = {a: b - a for a, b in zip(pts, [*pts[1:], pts[-1] + last], strict=True)}
    offset = round(shift / plan.time_base)
    for number in range(len(segments)):
        for stored in read_packets(work.packets_path(number)):
            packet = av.Packet(stored.data)
            packet.time_base = plan.time_base
            packet.pts = stored.pts + offset
            packet.dts = next(times) + offset
            packet.duration = durations[stored.pts]
            packet.is_keyframe = stored.key
            packet.stream = stream
            yield float(packet.dts * plan.time_base), packet


def _covers(targets: dict[int, Any], covers: dict[int, bytes]) -> Iterator[tuple[float, Any]]:
    av = import_av()
    for index, data in covers.items():
        if index in targets:
            packet = av.Packet(data)
            packet.time_base = Fraction(1, 1000)
            packet.pts = packet.dts = 0
            packet.is_keyframe = True
            packet.stream = targets[index]
            yield -math.inf, packet


def _settled(packets: Iterator[Any]) -> Iterator[Any]:
    """Yield packets; those of sound whose time is far ahead of their neighbours' are moved back.

    Such a packet waits for the next of its stream.
    """
    import av

    last: dict[int, int] = {}
    waiting: dict[int, Any] = {}
    try:
        for packet in packets:
            index, time = packet.stream_index, decoded_at(packet)
            if time is None or packet.stream.type != "audio":
                yield packet
                continue
            far = round(1 / packet.time_base)
            held = waiting.pop(index, None)
            if held is not None:
                if is_stray(decoded_at(held), last.get(index), time, far):
                    duration = held.duration or 1
                    known = last.get(index, time - 2 * duration)
                    held.pts = held.dts = min(known + duration, time - 1)
                last[index] = decoded_at(held)
                yield held
            if index in last and time - last[index] < far:
                last[index] = time
                yield packet
            else:
                waiting[index] = packet
    except (av.error.FFmpegError, OSError):
        yield from waiting.values()
        raise
    yield from waiting.values()


def _copied_packets(
    container: Any,
    targets: dict[int, Any],
    source: Source,
    shift: Fraction,
    end: Fraction | None,
    format_name: str,
) -> Iterator[tuple[float, Any]]:
    import av

    wanted = [container.streams[index] for index in targets]
    wanted = [stream for stream in wanted if stream.type != "video" or not is_cover(stream)]
    if not wanted:
        return
    strict = format_name in ("mp4", "mov")
    last: dict[int, int] = {}
    packets = _settled(demux(container, source, wanted))
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError) as error:
            check_disk(error, source.path)
            return  # the file is cut off, which the reader has said
        if packet is None:
            return
        if packet.size == 0 or decoded_at(packet) is None:
            continue
        if packet.is_discard and not strict:
            # What an edit list hides only such formats can hide again. What an audio decoder needs
            # to begin with is kept, and moves all by as little.
            shown_in = -(packet.dts if packet.pts is None else packet.pts) * packet.time_base
            if shown_in > _PREROLL:
                continue
        index, time_base = packet.stream_index, packet.time_base
        offset = round(shift / time_base)
        pts = packet.dts if packet.pts is None else packet.pts
        dts = decoded_at(packet)
        if end is not None and (pts + offset) * time_base >= end:
            continue
        dts += offset
        # Where equal times are refused, by a step that the target's time base shows.
        tick = targets[index].time_base or time_base
        step = math.ceil(Fraction(tick) / time_base) if strict else 0
        if index in last and dts < last[index] + step:
            dts = last[index] + step
        last[index] = dts
        packet.dts, packet.pts = dts, max(pts + offset, dts)
        packet.stream = targets[index]
        yield float(dts * time_base), packet


def _chapters(container: Any, shift: Fraction, end: Fraction | None) -> list[dict[str, Any]]:
    chapters = []
    for chapter in container.chapters():
        time_base = chapter["time_base"]
        offset = round(shift / time_base)
        start, stop = chapter["start"] + offset, chapter["end"] + offset
        if end is not None:
            if start * time_base >= end:
                continue
            stop = min(stop, int(end / time_base))
        if stop > 0:  # else it was before the video
            chapters.append({**chapter, "start": max(start, 0), "end": stop})
    return chapters


def check_result(
    path: Path,
    plan: VideoPlan,
    source: Source,
    segments: Sequence[Segment],
    warn: Warn,
    beat: Beat = lambda: None,
) -> None:
    """Compare the frames of a finished file with those that were decoded.

    Colours and pixel aspects that cannot be written for this encoder are said by ``warn``.

    Raises:
        VideoError: their number or their time stamps differ.
    """
    wanted = [value for segment in segments for value in segment.pts]
    with open_input(path) as container:
        stream = main_video(container)
        time_base = Fraction(stream.time_base)
        found = []
        for packet in container.demux(stream):
            if packet.size and packet.pts is not None:
                found.append(packet.pts)
                if len(found) % BEAT == 0:
                    beat()
        found.sort()
    if len(found) != len(wanted):
        raise VideoError(f"{len(found)} of {len(wanted)} frames were written")
    shift = _shift(source, plan, wanted)
    times = [value * plan.time_base + shift for value in wanted]
    # Where a format has no negative times all streams are moved by the same amount. What one frame
    # is off by rounding, and another one the other way, is no more than a tick together.
    moved = found[0] * time_base - times[0]
    for number, (value, time) in enumerate(zip(found, times, strict=True)):
        if abs(value * time_base - time - moved) > time_base:
            raise VideoError(f"frame {number} was written with the wrong time stamp")
    result = read_source(path)
    colors = [
        (BT601 if matrix == 5 else matrix, full)  # two names of one matrix
        for matrix, full, _ in (result.colors, plan.colors)
    ]
    if result.layout.model == "yuv" and colors[0] != colors[1]:
        warn(
            "a file of this format cannot say that its colours are of matrix "
            f"{plan.colors.matrix} and {'full' if plan.colors.full else 'limited'} range: players "
            "may show others"
        )
    aspect = plan.aspect or Fraction(1)
    if abs((result.aspect or 1) - aspect) > aspect / 200:
        warn(
            f"a file of this format cannot hold the pixel aspect of {aspect.numerator}:"
            f"{aspect.denominator} beside {plan.encoder.name}: it will look distorted; .mp4 and "
            ".mov can, and libx264 and libx265 in all formats"
        )
