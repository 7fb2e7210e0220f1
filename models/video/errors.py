"""The errors and warnings of video, and the import of the optional package behind it."""

from __future__ import annotations

from types import ModuleType

MINIMUM_PYAV = (16, 0)
"""Oldest PyAV that copies attachments and chapters and names the colours of frames."""


class VideoError(ValueError):
    """A video that cannot be read, enlarged or written; the message is one line."""


class VideoWarning(UserWarning):
    """Something about a video that could not be kept, or that deserves a second look."""


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
    version = tuple(int(part) for part in av.__version__.split(".")[:2] if part.isdecimal())
    if version < MINIMUM_PYAV:
        wanted = ".".join(map(str, MINIMUM_PYAV))
        raise VideoError(
            f"video needs PyAV {wanted} or later, got {av.__version__}: "
            "pip install --upgrade 'dasr-ops[video]'"
        )
    return av
