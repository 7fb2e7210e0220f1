"""How much memory there is, and how large a tile may be in it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

TILE_BYTES = {"cpu": 448 << 20}
"""The most bytes for a tile, by type of device: larger ones are not faster, about 512x512 pixels
of the official network on a CPU."""

TILE_BYTES_ELSEWHERE = 4 << 30
"""The same for other devices."""

BAND_BYTES = 256 << 20
"""The most bytes for a row of tiles, joined, in float32."""

LEAST_TILE = 128
"""The shortest side of a tile, however little memory there is."""

_SHARE = 0.25
_MAPS = 5
"""Feature maps of a tile that exist at a time, the workspace of a convolution included."""


def free_bytes(device: torch.device) -> int:
    """Return the bytes that can be had on a device without driving anything out.

    On Linux those that the control groups leave (a container's limit) where they are less. Where
    nothing can be learnt, 2 GiB are assumed.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    found = [size for size in (_meminfo(), _control_group()) if size is not None]
    return min(found) if found else _pages() or 2 << 30


def choose_tile(
    height: int,
    width: int,
    channels: int,
    scale: int,
    element_size: int,
    device: torch.device,
    batch: int = 1,
    reserved: int = 0,
) -> tuple[int, int]:
    """Choose how many LR rows and columns the network sees at a time, context included.

    Args:
        height, width: of the picture, in LR pixels.
        channels: of the network's features for one picture.
        scale: its magnification.
        element_size: bytes of a number of its features.
        device: where it runs.
        batch: pictures at a time.
        reserved: bytes of the free memory that the result is going to take.

    Returns:
        Rows and columns. A tile takes at most a quarter of the free memory, and 448 MiB on a
        CPU, 4 GiB elsewhere; a row of tiles takes at most 256 MiB. Wide pictures get wide tiles.
    """
    rgb = 3 * 4 * batch
    tile_bytes = TILE_BYTES.get(device.type, TILE_BYTES_ELSEWHERE)
    tile_bytes = min(tile_bytes, int((free_bytes(device) - reserved) * _SHARE))
    per_pixel = _MAPS * batch * channels * element_size + 2 * rgb * scale**2
    pixels = max(tile_bytes // per_pixel, LEAST_TILE**2)
    most_rows = max(BAND_BYTES // (rgb * scale**2 * width), LEAST_TILE)
    rows = min(height, most_rows, max(math.isqrt(pixels), LEAST_TILE))
    columns = min(width, max(pixels // rows, LEAST_TILE))
    rows = min(height, most_rows, max(pixels // columns, LEAST_TILE))
    return rows, columns


def _meminfo() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) << 10 if found else None


def _control_group() -> int | None:
    """Return what the limits of this process's control group and of those above it leave."""
    found = [
        room
        for folder, limit, used in _control_groups()
        if (room := _room(folder, limit, used)) is not None
    ]
    return min(found, default=None)


def _control_groups() -> Iterator[tuple[Path, str, str]]:
    """Yield folders of control groups, and the files of limit and use in them."""
    kinds = {
        "": (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
        "memory": (
            Path("/sys/fs/cgroup/memory"),
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
        ),
    }
    try:
        own = [
            line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines()
        ]
    except OSError:
        own = []
    for controllers, (root, limit, used) in kinds.items():
        below = [path for names, path in own if controllers in names.split(",")]
        parts = Path(below[-1].lstrip("/")).parts if below else ()
        for count in range(len(parts) + 1):
            yield root.joinpath(*parts[:count]), limit, used


def _room(folder: Path, limit: str, used: str) -> int | None:
    try:
        most = int((folder / limit).read_text())
        taken = int((folder / used).read_text())
        # Cached files count as used, and give way at once.
        statistics = (folder / "memory.stat").read_text()
    except (OSError, ValueError):  # absent, or "max"
        return None
    cached = re.search(r"^inactive_file (\d+)$", statistics, re.MULTILINE)
    return max(most - taken + (int(cached[1]) if cached else 0), 0)


def _pages() -> int | None:
    """Return half of the machine's memory, where the system tells it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):  # Windows has none of it
        return None
