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
        folder: exists and can be written to.

    Raises:
        TrainingError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    with open(folder / NAME, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(f"run: {folder} is in use by another training run") from None
        except OSError:
            pass
        yield
