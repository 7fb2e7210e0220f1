"""The folder beside the target in which finished segments survive a kill."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import atomic_path
from .lock import LOCK, MUST_CLOSE, lock_folder

Warn = Callable[[str], None]
Tiles = tuple[int, int]

MANIFEST = "manifest.json"
_SEAL = "finished.json"
_SUFFIX = ".dasr-video"
_DIGITS = 8
_NAME_BYTES = 255 - len(_SUFFIX) - _DIGITS - 2
_HEAD_BYTES = 1 << 20


@dataclass(frozen=True)
class Segment:
    """A finished segment: what is in it besides its packets."""

    pts: list[int]
    """Time stamps of its frames, as shown."""
    durations: list[int]
    """Of its frames; 0 if unknown."""
    order: list[int]
    """Time stamps of its packets, as encoded."""
    extradata: str
    """The encoder's global header, in hexadecimal."""
    state: dict[str, Any]
    """Of the `DegradationTrack` behind the last frame."""


class WorkFolder:
    """Segments of one target made with one set of settings.

    A segment consists of two files, each renamed into place when complete; the packets come last,
    so that a segment whose packets are there is whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.target = ""
        self.removed = False

    def packets_path(self, number: int) -> Path:
        """Return the name of the packets of segment ``number``."""
        return self.path / f"{number:06d}.packets"

    def facts_path(self, number: int) -> Path:
        """Return the name of the rest of segment ``number``."""
        return self.path / f"{number:06d}.json"

    def segments(self) -> list[Segment]:
        """Return the finished segments, without gap from the first on."""
        found: list[Segment] = []
        while self.packets_path(len(found)).is_file():
            try:
                facts = json.loads(self.facts_path(len(found)).read_text("utf-8"))
                segment = Segment(**facts)
            except (OSError, ValueError, TypeError):
                break
            found.append(segment)
        return found

    def begin(
        self,
        settings: dict[str, Any],
        warn: Warn,
        choose_tiles: Callable[[], Tiles | None] = lambda: None,
    ) -> Tiles | None:
        """Keep the segments of earlier work with the same settings, remove all others.

        Args:
            settings: what the frames depend on.
            warn: called with why earlier work cannot be used.
            choose_tiles: called for new work; what it returns is kept for later runs.

        Returns:
            The tiles of this work, as ``choose_tiles`` returned them when it was begun.
        """
        manifest = self.path / MANIFEST
        settings = json.loads(json.dumps(settings))
        earlier = _read_manifest(self.path)
        if earlier is not None and earlier["settings"] == settings:
            self._clear(keep=len(self.segments()))
            tiles = earlier.get("tiles")
            return None if tiles is None else (int(tiles[0]), int(tiles[1]))
        if earlier is not None and self.has_segments():
            names = _differences(earlier["settings"], settings)
            warn(
                f"unfinished work cannot be used, since other than then is: {names}; starting anew"
            )
        self._clear(keep=0)
        tiles = choose_tiles()
        facts = {"target": self.target, "settings": settings, "tiles": tiles}
        with atomic_path(manifest) as temporary:
            temporary.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
        return tiles

    def has_segments(self) -> bool:
        """Return whether there is finished work."""
        return self.packets_path(0).exists()

    def _clear(self, keep: int) -> None:
        """Remove all but the first ``keep`` segments, the manifest and the lock."""
        kept = {MANIFEST, LOCK}
        for number in range(keep):
            kept |= {self.packets_path(number).name, self.facts_path(number).name}
        for file in self.path.iterdir():
            if file.name not in kept and file.is_file():
                file.unlink()

    def seal(self, result: Path) -> None:
        """Note that ``result`` is about to become the target: then this folder is not needed."""
        with atomic_path(self.path / _SEAL) as temporary:
            temporary.write_text(json.dumps(_seal_of(result)), "utf-8")

    def remove(self) -> None:
        """Have the folder removed when `open_work` ends."""
        self.removed = True


def _seal_of(file: Path) -> dict[str, int]:
    state = file.stat()
    return {"size": state.st_size, "time": state.st_mtime_ns}


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(manifest, dict) and isinstance(manifest.get("settings"), dict)
    return manifest if whole else None


def _differences(one: dict[str, Any], other: dict[str, Any]) -> str:
    return ", ".join(sorted(name for name in {*one, *other} if one.get(name) != other.get(name)))


def _prefix(target: Path) -> str:
    name = os.fsencode(target.name)
    if len(name) > _NAME_BYTES:
        return f".{name[:_NAME_BYTES].decode('utf-8', 'ignore')}."
    return f".{target.name}."


def work_path(target: Path, settings: dict[str, Any]) -> Path:
    """Return the name of the folder for ``target`` made with ``settings``.

    Its 8 hexadecimal digits tell settings apart, so that a trial with others leaves the work of
    hours alone. A source that was changed since is no other setting.
    """
    source = settings.get("source")
    told = {**settings, "source": source.get("name") if isinstance(source, dict) else None}
    # 18 is 18.0, as when manifests are compared.
    told = json.loads(json.dumps(told), parse_float=_plain)
    text = json.dumps([os.fsencode(target.name).hex(), told], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
    return target.parent / f"{_prefix(target)}{digest}{_SUFFIX}"


def _plain(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() else value


def work_paths(target: Path) -> list[Path]:
    """Return the folders of unfinished work on ``target``, with whatever settings."""
    pattern = re.compile(re.escape(_prefix(target)) + f"[0-9a-f]{{{_DIGITS}}}" + re.escape(_SUFFIX))
    try:
        found = sorted(path for path in target.parent.iterdir() if pattern.fullmatch(path.name))
    except OSError:
        return []
    if len(os.fsencode(target.name)) <= _NAME_BYTES:
        return found
    manifests = {path: _read_manifest(path) or {} for path in found}
    return [path for path in found if manifests[path].get("target") == target.name]


@contextmanager
def open_work(target: Path, settings: dict[str, Any], warn: Warn) -> Iterator[WorkFolder]:
    """Make the folder of ``target`` and ``settings`` and hold it within the block.

    Args:
        target: the file to be.
        settings: see `work_path`.
        warn: called with the names of folders of unfinished work with other settings.

    Raises:
        VideoError: another process holds it.
        OSError: it cannot be written to.
    """
    path = work_path(target, settings)
    with hold(path, f"{target} is being written by another process") as work:
        work.target = target.name
        for other in work_paths(target):
            earlier = _read_manifest(other)
            if other != path and earlier is not None and WorkFolder(other).has_segments():
                names = _differences(earlier["settings"], json.loads(json.dumps(settings)))
                warn(
                    f"unfinished work with other settings ({names}) stays in {other}: remove that "
                    "folder if it is not wanted"
                )
        try:
            yield work
        finally:
            # Nothing to go on from: leave no trace.
            if not work.has_segments():
                work.remove()


def remove_finished(target: Path) -> None:
    """Remove what a process left that was killed between finishing ``target`` and cleaning up."""
    for path in work_paths(target):
        with suppress(OSError, ValueError):
            if json.loads((path / _SEAL).read_text("utf-8")) == _seal_of(target):
                with hold(path, "held") as work:
                    work.remove()


@contextmanager
def hold(path: Path, held: str) -> Iterator[WorkFolder]:
    """Make a folder, lock it within the block, and remove it behind if that is asked for.

    Raises:
        VideoError: another process holds it; ``held`` is the message.
        OSError: it cannot be made.
    """
    work = WorkFolder(path)
    lock = lock_folder(path, held)
    try:
        yield work
    finally:
        if work.removed:
            _empty(path)
        if work.removed and not MUST_CLOSE:
            shutil.rmtree(path, ignore_errors=True)
        lock.close()
        if work.removed and MUST_CLOSE:
            shutil.rmtree(path, ignore_errors=True)


def _empty(path: Path) -> None:
    """Remove what is in a folder; what tells that it can go is removed last."""
    with suppress(OSError):
        for file in path.iterdir():
            if file.name not in (LOCK, _SEAL):
                with suppress(OSError):
                    file.unlink()


def source_identity(path: Path) -> dict[str, Any]:
    """Return what tells whether a file is the one of before."""
    state = path.stat()
    with open(path, "rb") as file:
        head = hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()
    return {
        "name": os.fspath(path.name),
        "size": state.st_size,
        "time": state.st_mtime_ns,
        "head": head,
    }
