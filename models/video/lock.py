"""Locks of folders, which end with the process that holds them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, TextIO

from .errors import VideoError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:
    msvcrt: Any = None  # type: ignore[no-redef]

LOCK = ".lock"
MUST_CLOSE = fcntl is None
"""Whether a lock must be closed before its file can be removed."""

_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_TRIES = 5


def lock_folder(path: Path, held: str) -> TextIO:
    """Make a folder and lock it, until the file that is returned is closed.

    Raises:
        VideoError: another process holds it; ``held`` is the message.
        OSError: the folder cannot be made.
    """
    for left in reversed(range(_TRIES)):
        path.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path / LOCK, "a")  # noqa: SIM115
        except FileNotFoundError:  # its last holder has just removed it
            continue
        try:
            _lock(file.fileno(), held)
            # Some shares number their files anew at each look.
            if not left or os.path.samestat(os.fstat(file.fileno()), os.stat(path / LOCK)):
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()
    raise VideoError(held)


def _lock(descriptor: int, held: str) -> None:
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:  # some network shares cannot lock
        if error.errno in _HELD:
            raise VideoError(held) from None
