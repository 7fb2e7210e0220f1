"""The errors and warnings of video, and the import of the optional package behind it."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

_level = threading.Lock()

_DISK = {
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "ENXIO", "ENODEV", "EHOSTDOWN", "EREMOTEIO")
    if hasattr(errno, name)
}

MINIMUM_PYAV = (16, 0)
"""Oldest PyAV that copies attachments and chapters and names the colours of frames."""


class VideoError(ValueError):
    """A video that cannot be read, enlarged or written; the message is one line."""


class VideoWarning(UserWarning):
    """Something about a video that could not be kept, or that deserves a second look."""


def reason(error: BaseException) -> str:
    """Return what an exception of PyAV says, in one line and without names of our own files."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200]


def check_disk(error: BaseException, path: Path) -> None:
    """Raise VideoError if an error of reading is that of a disk or a network.

    What is damaged or cut off in the file itself, which gives other errors or none, is passed over;
    here the rest of the file may be sound, and another try may have it.
    """
    if getattr(error, "errno", None) in _DISK:
        raise VideoError(f"{path} cannot be read: {reason(error)}") from None


@contextmanager
def messages() -> Iterator[list[str]]:
    """Collect what FFmpeg's libraries say within the block, of this thread, errors only.

    With PyAV before 18 nothing: there a change of the level disturbs other threads.
    """
    av = import_av()
    said: list[str] = []
    if _version(av) < (18, 0):
        yield said
        return
    with _level:
        before = av.logging.get_level()
        av.logging.set_level(av.logging.ERROR)
        try:
            with av.logging.Capture() as logs:
                yield said
        finally:
            av.logging.set_level(before)
            said.extend(" ".join(text.split()) for _, _, text in logs if text.strip())


def import_av() -> ModuleType:
    """Return PyAV.

    Raises:
        VideoError: it is missing, broken or too old.
    """
    try:
        import av
    except ImportError as error:
        reason = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"
        raise VideoError(f"video needs PyAV{reason}: pip install 'dasr-ops[video]'") from None
    if _version(av) < MINIMUM_PYAV:
        wanted = ".".join(map(str, MINIMUM_PYAV))
        raise VideoError(
            f"video needs PyAV {wanted} or later, got {av.__version__}: "
            "pip install --upgrade 'dasr-ops[video]'"
        )
    return av


def _version(av: ModuleType) -> tuple[int, ...]:
    return tuple(int(part) for part in av.__version__.split(".")[:2] if part.isdecimal())
