"""What reading and writing a picture says by the way."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator

_LOCK = threading.Lock()


@contextlib.contextmanager
def said() -> Iterator[list[str]]:
    """Collect what pictures that are read or written within say could not be kept.

    Yields:
        A list, complete at the end, without repetitions.
    """
    notes: list[str] = []
    with _said_to(notes.append):
        yield notes
    notes[:] = dict.fromkeys(notes)


def _said_to(say: Callable[[str], None]) -> contextlib.AbstractContextManager[object]:
    try:
        from dasr_ops.models.pictures import said_to
    except ImportError:
        return _warnings_to(say)
    return said_to(say)


@contextlib.contextmanager
def _warnings_to(say: Callable[[str], None]) -> Iterator[None]:
    # Filters of warnings belong to the process: one thread at a time.
    with _LOCK, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for entry in caught:
        say(str(entry.message))
