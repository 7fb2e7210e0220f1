"""A run's folder belongs to one run at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import TrainingError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder within the block; the system releases it if the process is killed.

    Where files cannot be locked (Windows, some network shares) nothing is held.

    Args:
        folder: exists.

    Raises:
        TrainingError: another process holds it, or it cannot be written to.
    """
    if fcntl is None:
        yield
        return
    try:
        (folder / NAME).touch()
    except OSError as error:
        raise TrainingError(f"run: {error}") from error
    with open(folder / NAME) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(f"run: {folder} is in use by another training run") from None
        except OSError:
            pass
        yield
