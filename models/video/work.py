"""The folder beside the target in which finished segments survive a kill."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import atomic_path
from .errors import VideoError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MANIFEST = "manifest.json"
_LOCK = ".lock"
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

    def begin(self, settings: dict[str, Any], warn: Callable[[str], None]) -> None:
        """Keep the segments of earlier work with the same settings, remove all others."""
        manifest = self.path / MANIFEST
        settings = json.loads(json.dumps(settings))
        try:
            earlier = json.loads(manifest.read_text("utf-8"))
        except (OSError, ValueError):
            earlier = None
        if earlier != settings:
            if isinstance(earlier, dict) and self.packets_path(0).exists():
                names = sorted(
                    name
                    for name in {*earlier, *settings}
                    if earlier.get(name) != settings.get(name)
                )
                warn(
                    "unfinished work cannot be used, since other than then is: "
                    f"{', '.join(names)}; starting anew"
                )
            self._clear(keep=0)
            with atomic_path(manifest) as temporary:
                temporary.write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
        else:
            self._clear(keep=len(self.segments()))

    def _clear(self, keep: int) -> None:
        """Remove all but the first ``keep`` segments, the manifest and the lock."""
        kept = {MANIFEST, _LOCK}
        for number in range(keep):
            kept |= {self.packets_path(number).name, self.facts_path(number).name}
        for file in self.path.iterdir():
            if file.name not in kept and file.is_file():
                file.unlink()

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


def work_path(target: Path) -> Path:
    """Return the name of the folder of ``target``."""
    return target.parent / f".{target.name}.dasr-video"


@contextmanager
def open_work(target: Path) -> Iterator[WorkFolder]:
    """Make the folder of ``target`` and hold it within the block.

    Raises:
        VideoError: another process holds it.
        OSError: it cannot be written to.
    """
    path = work_path(target)
    path.mkdir(parents=True, exist_ok=True)
    with open(path / _LOCK, "a") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise VideoError(f"{target} is being written by another process") from None
            except OSError:  # some network shares cannot lock
                pass
        work = WorkFolder(path)
        try:
            yield work
        finally:
            # Nothing to go on from: leave no trace.
            if path.is_dir() and not work.packets_path(0).exists():
                with suppress(OSError):
                    work.remove()


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
