"""Uploaded files: which are read, how many may wait for that, and when they are removed."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .engine import LARGEST_FILE

MOST_BYTES = 5 * LARGEST_FILE
"""Bytes of all uploads that were not read yet."""

MOST_FILES = 100
"""Uploads that were not read yet, from which on no more are accepted."""

LONGEST_WAIT = 600.0
"""Seconds after which an upload is removed that nobody has read."""

_HASH = re.compile(r"[0-9a-f]{64}")


class Uploads:
    """The folder into which Gradio puts uploads: each in a folder named by the file's hash.

    Args:
        folder: is made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self._lock = threading.Lock()
        self._arriving = 0

    def find(self, upload: Any) -> tuple[Path, str] | None:
        """Return an upload's file and the name that it had on the user's computer.

        Args:
            upload: what the browser says, which may be anything.

        Returns:
            None if that is not a file that was uploaded.
        """
        known = upload if isinstance(upload, dict) else getattr(upload, "__dict__", {})
        path, name = known.get("path"), known.get("orig_name")
        if not isinstance(path, str):
            return None
        try:
            file = Path(path).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            return None
        if file.parent.parent != self.folder or not _HASH.fullmatch(file.parent.name):
            return None
        if not file.is_file():
            return None
        return file, name if isinstance(name, str) and name else file.name

    def remove(self, file: Path) -> None:
        """Remove an upload and its folder."""
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
            file.parent.rmdir()

    @contextlib.contextmanager
    def arriving(self, size: int) -> Iterator[bool]:
        """Make room for an upload of ``size`` bytes while it arrives; tell whether there is any."""
        with self._lock:
            waiting = self._waiting()
            room = len(waiting) < MOST_FILES and sum(waiting) + self._arriving + size <= MOST_BYTES
            taken = size if room else 0
            self._arriving += taken
        try:
            yield room
        finally:
            with self._lock:
                self._arriving -= taken

    def sweep(self, age: float = LONGEST_WAIT) -> None:
        """Remove what was uploaded ``age`` seconds ago or earlier, and empty folders as old."""
        latest = time.time() - age
        for path in self.folder.iterdir():
            # Gone, or in use: then the next time.
            with contextlib.suppress(OSError):
                if not path.is_dir():
                    _remove_old(path, latest)
                    continue
                if path.stat().st_mtime > latest:
                    continue
                for file in path.iterdir():
                    _remove_old(file, latest)
                path.rmdir()

    @contextlib.contextmanager
    def swept(self, every: float = 60.0) -> Iterator[None]:
        """Sweep every so many seconds, in a thread."""
        end = threading.Event()

        def run() -> None:
            while not end.wait(every):
                with contextlib.suppress(OSError):
                    self.sweep()

        thread = threading.Thread(target=run, name="dasr-demo-sweep", daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def _waiting(self) -> list[int]:
        """Return the sizes of the files."""
        sizes = []
        for path in self.folder.rglob("*"):
            with contextlib.suppress(OSError):
                if path.is_file():
                    sizes.append(path.stat().st_size)
        return sizes


def _remove_old(file: Path, latest: float) -> None:
    if file.stat().st_mtime <= latest:
        file.unlink()
