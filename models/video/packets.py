"""Files of encoded packets: what an encoder returned, byte for byte, with exact time stamps.

A segment is kept in such a file rather than in a container, since each container changes something:
time bases, the order of time stamps, headers. Layout, little endian: the magic; for each packet its
time stamp (int64), its size (uint32), 1 for a key frame (uint8), its bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .errors import VideoError

MAGIC = b"DASRPKT1"
_HEAD = struct.Struct("<qIB")


class StoredPacket(NamedTuple):
    """One packet."""

    pts: int
    key: bool
    data: bytes


def write_packet(file: BinaryIO, packet: StoredPacket) -> None:
    """Append ``packet`` to ``file``, which begins with `MAGIC`."""
    file.write(_HEAD.pack(packet.pts, len(packet.data), packet.key))
    file.write(packet.data)


def read_packets(path: Path) -> Iterator[StoredPacket]:
    """Yield the packets of a file.

    Raises:
        VideoError: it is no such file, or cut off.
    """
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise VideoError(f"{path} is no segment")
        while head := file.read(_HEAD.size):
            if len(head) < _HEAD.size:
                raise VideoError(f"{path} is cut off")
            pts, size, key = _HEAD.unpack(head)
            data = file.read(size)
            if len(data) < size:
                raise VideoError(f"{path} is cut off")
            yield StoredPacket(pts, bool(key), data)
