"""Clocks that start anew within a file, as in transport streams put one behind the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from .probe import Source

_BACK = 1
_FORWARD = 10
"""Seconds; steps larger than these are those of another clock. FFmpeg's threshold is 10 as well."""


class Restart(NamedTuple):
    """Where the clock starts anew."""

    packet: int
    """Number of the first packet of the enlarged stream with the new clock."""
    offset: Fraction
    """Seconds to add from there on."""


def is_flush(packet: Any) -> bool:
    """Return whether a packet is no data but the end of a stream."""
    return packet.size == 0 and packet.pts is None and packet.dts is None


def decoded_at(packet: Any) -> int | None:
    """Return when a packet is decoded or, if it does not say that, shown."""
    return packet.pts if packet.dts is None else packet.dts


def is_stray(time: Any, last: Any, following: Any, far: Any) -> bool:
    """Return whether a time lies far ahead of those around it, which go on as if it were not there.

    To keep it would leave those behind it no room.

    Args:
        time: what is looked at; this and the others are in one unit, and None if unknown.
        last: the one before it.
        following: the one behind it.
        far: the least distance.
    """
    if time is None or following is None or time - following < far:
        return False
    return last is None or -far < following - last < time - following


class RestartFinder:
    """Watches the times at which frames are decoded, which increase as long as a clock runs.

    One stray time is none: the next packet must go on from it.
    """

    def __init__(self, source: Source) -> None:
        self.restarts: list[Restart] = []
        self._source = source
        self._usual = 1 / (source.rate or Fraction(25))
        self._count = 0
        self._offset = Fraction(0)
        self._last: Fraction | None = None
        self._stray: tuple[int, Fraction] | None = None
        # Of a gap they come before its first frame, which ends only where the next begins.
        self._others: deque[Fraction] = deque(maxlen=2000)

    def add(self, packet: Any) -> None:
        """Take the next packet of the file, of any stream."""
        if not self._source.restarting or is_flush(packet):
            return
        stamp = decoded_at(packet)
        time = None if stamp is None else stamp * Fraction(packet.time_base)
        if packet.stream_index != self._source.index:
            if time is not None:
                self._others.append(time)
            return
        if time is not None:
            self._step(time)
        self._count += 1

    def _step(self, time: Fraction) -> None:
        last = self._last
        if last is None:
            self._last = time
            return
        if self._stray is not None:
            number, first = self._stray
            self._stray = None
            if abs(time - first) < abs(time - last):
                self._offset += last + self._usual - first
                self.restarts.append(Restart(number, self._offset))
                self._last = time
                self._others.clear()
                return
        if time < last - _BACK or (time > last + _FORWARD and self._jumps(last, time)):
            self._stray = (self._count, time)
            return
        self._last = time

    def _jumps(self, last: Fraction, time: Fraction) -> bool:
        """Return whether the other streams jump too; else nothing was shown for a while."""
        if not self._source.format.startswith("mpeg"):
            return False  # of others stills are usual
        return not any(last + _BACK < other < time - _BACK for other in self._others)


class _Timeline:
    """Moves packets to the clock of the beginning of the file."""

    def __init__(self, source: Source) -> None:
        self._index = source.index
        self._starts = [restart.packet for restart in source.restarts]
        self._offsets = [Fraction(0), *(restart.offset for restart in source.restarts)]
        self._count = self._part = 0
        self._now: Fraction | None = None

    def move(self, packet: Any) -> None:
        if is_flush(packet):
            return
        time_base = Fraction(packet.time_base)
        stamp = decoded_at(packet)
        offset = self._offsets[self._part]
        if packet.stream_index == self._index:
            if self._part < len(self._starts) and self._count == self._starts[self._part]:
                self._part += 1
                offset = self._offsets[self._part]
            self._count += 1
            if stamp is not None:
                self._now = stamp * time_base + offset
        elif stamp is not None and self._now is not None:
            # Other streams come to the new clock a little before or after.
            time, now = stamp * time_base, self._now
            near = self._offsets[max(self._part - 1, 0) : self._part + 2]
            offset = min(near, key=lambda value: abs(time + value - now))
        ticks = round(offset / time_base)
        if packet.pts is not None:
            packet.pts += ticks
        if packet.dts is not None:
            packet.dts += ticks


def demux(container: Any, source: Source, streams: Sequence[Any]) -> Iterator[Any]:
    """Yield the packets of ``streams`` of an open source, all on one clock."""
    if not source.restarts:
        yield from container.demux(list(streams))
        return
    wanted = {stream.index for stream in streams}
    watched = [stream for stream in container.streams if stream.index in {*wanted, source.index}]
    timeline = _Timeline(source)
    for packet in container.demux(watched):
        timeline.move(packet)
        if packet.stream_index in wanted:
            yield packet
