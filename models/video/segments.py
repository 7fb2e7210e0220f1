"""Encoding segment by segment."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..files import atomic_path
from .errors import VideoError, import_av, reason
from .frames import make_frame
from .packets import MAGIC, StoredPacket, write_packet
from .plan import VideoPlan, open_encoder
from .work import Segment, WorkFolder


class EncodedFrame(NamedTuple):
    """An enlarged frame on its way to the encoder."""

    planes: list[np.ndarray]
    pts: int
    duration: int


class EndOfSegment(NamedTuple):
    """Behind the last frame of a segment."""

    state: dict[str, Any]
    """Of the `DegradationTrack`, to go on from."""


class SegmentEncoder:
    """Encodes frames into the segments of a work folder, each with a fresh encoder.

    So the first frame of a segment is a key frame that nothing refers across, and a segment is the
    same whether those before it were made by this process or by one that was killed.
    """

    def __init__(self, work: WorkFolder, plan: VideoPlan, number: int) -> None:
        self.work = work
        self.plan = plan
        self.number = number
        self._encoder: Any = None
        self._file: BinaryIO | None = None
        self._part: Path | None = None
        self._pts: list[int] = []
        self._durations: list[int] = []
        self._order: list[int] = []

    def __call__(self, item: EncodedFrame | EndOfSegment) -> None:
        """Encode a frame, or finish the segment.

        Raises:
            VideoError: the encoder fails, or the disk is full.
        """
        av = import_av()
        try:
            if isinstance(item, EncodedFrame):
                self._encode(item)
            elif self._encoder is not None:
                self._finish(item)
        except av.error.FFmpegError as error:
            raise VideoError(f"{self.plan.encoder.name} fails: {reason(error)}") from None
        except OSError as error:
            raise VideoError(
                f"{self.work.path} cannot be written: {reason(error)}; the finished segments are "
                "kept, and the same command goes on from there"
            ) from None

    def abandon(self) -> None:
        """Drop the unfinished segment."""
        self._encoder = None
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        if self._part is not None:
            with suppress(OSError):
                self._part.unlink()

    def _encode(self, item: EncodedFrame) -> None:
        plan = self.plan
        if self._encoder is None:
            self._encoder = open_encoder(plan)
            self._part = self.work.packets_path(self.number).with_suffix(".part")
            self._file = open(self._part, "wb")  # noqa: SIM115
            self._file.write(MAGIC)
        frame = make_frame(item.planes, plan.encoder.layout, plan.encoder.pixel_format)
        frame.pts, frame.time_base = item.pts, plan.time_base
        frame.duration = item.duration
        frame.colorspace, frame.color_range = plan.matrix_tag, plan.range_tag
        for name, tag in (("color_primaries", plan.primaries), ("color_trc", plan.transfer)):
            if hasattr(frame, name):  # PyAV 16 knows them of streams only
                setattr(frame, name, tag)
        self._pts.append(item.pts)
        self._durations.append(item.duration)
        self._store(self._encoder.encode(frame))

    def _store(self, packets: list[Any]) -> None:
        assert self._file is not None
        for packet in packets:
            if packet.size:
                pts = int(packet.pts)
                self._order.append(pts)
                write_packet(self._file, StoredPacket(pts, packet.is_keyframe, bytes(packet)))

    def _finish(self, item: EndOfSegment) -> None:
        assert self._file is not None and self._part is not None
        self._store(self._encoder.encode(None))
        self._file.close()
        if sorted(self._order) != self._pts:
            raise VideoError(
                f"{self.plan.encoder.name} returned {len(self._order)} frames of "
                f"{len(self._pts)}, or other ones"
            )
        extradata = bytes(self._encoder.extradata or b"").hex()
        segment = Segment(self._pts, self._durations, self._order, extradata, item.state)
        with atomic_path(self.work.facts_path(self.number)) as temporary:
            temporary.write_text(json.dumps(asdict(segment)), "utf-8")
        with atomic_path(self.work.packets_path(self.number)) as temporary:
            self._part.replace(temporary)
        self.number += 1
        self._encoder = self._file = self._part = None
        self._pts, self._durations, self._order = [], [], []
