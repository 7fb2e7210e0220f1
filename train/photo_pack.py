"""Detailed patches of photographs in one small folder that `--data.train` takes.

From each picture come squares that do not overlap, those with the most detail first; pictures take
turns, so that a limit of bytes cuts all of them alike. The same pictures give the same patches, and
the same files where Pillow and its libraries are the same.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from dasr_ops.models.files import TEMPORARY_PREFIX

LIST = "patches.json"
LOSSLESS = 100
_STEPS = 8  # places tried along the side of a patch
_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


class Source(Protocol):
    """What is to be known of a picture; `photos.Photo` is one."""

    name: str
    author: str
    licence: str
    package: str
    sha256: str


@dataclass(frozen=True)
class Patch:
    """A square of a picture.

    Attributes:
        top, left: corner in pixels.
        detail: mean absolute difference of neighbouring pixels, in 8-bit steps.
    """

    top: int
    left: int
    detail: float


@dataclass
class PackSummary:
    """What was packed.

    Attributes:
        patches, pictures: how many patches, and of how many pictures.
        bytes: of all files together.
        offered: patches with enough detail that there were.
        left_out: names of pictures without a patch: too small, or too little detail.
    """

    patches: int = 0
    pictures: int = 0
    bytes: int = 0
    offered: int = 0
    left_out: list[str] = field(default_factory=list)


def parse_bytes(text: str) -> int:
    """Read a number of bytes such as "30MB", "28.6 MiB" or "500000".

    Raises:
        ValueError: something else, or nothing positive.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?i?)b?\s*", text.lower())
    amount = int(float(found[1]) * _UNITS[found[2]]) if found and found[2] in _UNITS else 0
    if amount < 1:
        raise ValueError(f"expected a number of bytes such as 30MB or 28MiB, got {text!r}")
    return amount


def choose_patches(picture: np.ndarray, size: int, min_detail: float) -> list[Patch]:
    """Choose squares of a picture that do not overlap, the most detailed first.

    Args:
        picture: uint8 [H, W, 3].
        size: side of a square, 2 or more pixels; places are an eighth of it apart.
        min_detail: least detail, as `train.data.detail` measures it.

    Returns:
        The patches in the order of their detail; none where the picture is smaller than a patch.
    """
    height, width = picture.shape[:2]
    if min(height, width) < size:
        return []
    step = max(1, size // _STEPS)
    # Integers: the choice does not depend on how a machine rounds.
    grey = picture.astype(np.int64).sum(axis=2)
    tops, lefts = np.arange(0, height - size + 1, step), np.arange(0, width - size + 1, step)
    down = _box_sums(np.abs(np.diff(grey, axis=0)), tops, lefts, size - 1, size)
    right = _box_sums(np.abs(np.diff(grey, axis=1)), tops, lefts, size, size - 1)
    amounts = down + right
    unit = 2 * 3 * size * (size - 1)  # two directions, three colours, so many differences
    patches: list[Patch] = []
    for place in np.argsort(-amounts, axis=None, kind="stable"):
        row, column = divmod(int(place), len(lefts))
        top, left = int(tops[row]), int(lefts[column])
        detail = float(amounts[row, column] / unit)
        if detail < min_detail:
            break
        if all(abs(top - p.top) >= size or abs(left - p.left) >= size for p in patches):
            patches.append(Patch(top, left, detail))
    return patches


def pack(
    root: Path,
    dest: Path,
    sources: Sequence[Source],
    *,
    size: int = 256,
    limit: int = 30_000_000,
    quality: int = LOSSLESS,
    min_detail: float = 1.0,
    attribution: str = "",
) -> PackSummary:
    """Write patches of ROOT/NAME.png to a folder, and `patches.json`, which tells their origin.

    The folder appears, or takes the place of an older pack, when it is complete.

    Args:
        root: where the pictures are.
        dest: the folder to make.
        sources: the pictures; each needs its file.
        size: side of a patch in pixels, 16 or more.
        limit: most bytes of all files together.
        quality: 100 for lossless WebP, 1 to 99 for JPEG without chroma subsampling.
        min_detail: squares with less (see `choose_patches`) are left out.
        attribution: text of ATTRIBUTION.md.

    Raises:
        ValueError: a number out of range, `dest` is something else than a pack, or not one patch
            can be packed.
        OSError: a picture cannot be read, or the folder not written.
    """
    if size < 16:
        raise ValueError(f"size: expected 16 pixels or more, got {size}")
    if not 1 <= quality <= LOSSLESS:
        raise ValueError(f"quality: expected 1..100, got {quality}")
    if not 0 <= min_detail < float("inf"):
        raise ValueError(f"min_detail: expected 0 or more, got {min_detail}")
    _restore(dest)
    if dest.exists() and not (dest / LIST).is_file() and not _is_empty_folder(dest):
        raise ValueError(f"dest: expected a new folder or an older pack, got {dest}")
    summary = PackSummary()
    chosen = []
    for source in sources:
        patches = choose_patches(_read(root, source), size, min_detail)
        chosen.append(patches)
        summary.offered += len(patches)
        if not patches:
            summary.left_out.append(source.name)
    notes: dict = {"size": size, "quality": quality, "min_detail": min_detail}
    notes["pictures"] = {
        source.name: {key: getattr(source, key) for key in ("author", "licence", "package")}
        | {"sha256": source.sha256}
        for source, patches in zip(sources, chosen, strict=True)
        if patches
    }
    notes["patches"] = {}
    text = _json(notes)
    used = len(text.encode()) + len(attribution.encode())
    final, work = dest, dest.with_name(f"{TEMPORARY_PREFIX}{dest.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)  # what a killed run left
    work.mkdir(parents=True)
    try:
        packed = set()
        for source, patch, pixels in _in_turns(root, sources, chosen, size):
            data, suffix = _encode(pixels, quality)
            name = f"{source.name}-{patch.top:04d}-{patch.left:04d}{suffix}"
            entry = {
                "picture": source.name,
                "top": patch.top,
                "left": patch.left,
                "detail": round(patch.detail, 3),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
            # In the list an entry takes its own text and at most a few separators.
            used += len(data) + len(json.dumps({name: entry}).encode()) + 4
            if used > limit:
                break
            (work / name).write_bytes(data)
            notes["patches"][name] = entry
            packed.add(source.name)
        if not packed:
            raise ValueError(
                f"not one patch of {size} pixels with detail {min_detail:g} or more fits "
                f"{limit} bytes ({summary.offered} offered by {len(sources)} pictures)"
            )
        (work / LIST).write_text(_json(notes), encoding="utf-8")
        if attribution:
            (work / "ATTRIBUTION.md").write_text(attribution, encoding="utf-8")
        summary.patches, summary.pictures = len(notes["patches"]), len(packed)
        summary.bytes = sum(file.stat().st_size for file in work.iterdir())
        _take_place(work, final)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return summary


def _box_sums(
    values: np.ndarray, tops: np.ndarray, lefts: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Sums of `values` over boxes: [len(tops), len(lefts)]."""
    table = np.zeros((values.shape[0] + 1, values.shape[1] + 1), np.int64)
    table[1:, 1:] = values.cumsum(axis=0).cumsum(axis=1)
    top, left = tops[:, None], lefts[None, :]
    bottom, right = top + height, left + width
    return table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]


def _in_turns(
    root: Path, sources: Sequence[Source], chosen: list[list[Patch]], size: int
) -> Iterator[tuple[Source, Patch, np.ndarray]]:
    for turn in range(max(map(len, chosen), default=0)):
        for source, patches in zip(sources, chosen, strict=True):
            if turn < len(patches):
                patch = patches[turn]
                picture = _read(root, source)  # again: together they may not fit memory
                square = picture[patch.top : patch.top + size, patch.left : patch.left + size]
                yield source, patch, square


def _read(root: Path, source: Source) -> np.ndarray:
    with Image.open(root / f"{source.name}.png") as picture:
        return np.asarray(picture.convert("RGB"))


def _encode(pixels: np.ndarray, quality: int) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels)
    if quality == LOSSLESS:
        picture.save(buffer, format="WEBP", lossless=True, quality=50, method=4, exact=True)
        return buffer.getvalue(), ".webp"
    picture.save(buffer, format="JPEG", quality=quality, subsampling=0, optimize=True)
    return buffer.getvalue(), ".jpg"


def _json(notes: dict) -> str:
    """One line for each picture and each patch."""
    head = {key: value for key, value in notes.items() if not isinstance(value, dict)}
    parts = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for key in ("pictures", "patches"):
        lines = [f"  {json.dumps(name)}: {json.dumps(e)}" for name, e in notes[key].items()]
        parts.append(f' "{key}": {{\n' + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _old(final: Path) -> Path:
    return final.with_name(f"{TEMPORARY_PREFIX}{final.name}.old")


def _restore(final: Path) -> None:
    """Put back what a run moved aside that was killed before its own folder was in place."""
    if _old(final).is_dir() and not final.exists():
        os.replace(_old(final), final)


def _take_place(work: Path, final: Path) -> None:
    if not final.exists():
        os.replace(work, final)
        return
    old = _old(final)
    shutil.rmtree(old, ignore_errors=True)
    os.replace(final, old)
    try:
        os.replace(work, final)
    except BaseException:
        with suppress(OSError):
            os.replace(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)
