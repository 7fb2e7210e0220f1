"""What reading and writing a picture says by the way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def said() -> Iterator[list[str]]:
    """Collect what pictures that are read or written within say could not be kept.

    Yields:
        A list, complete at the end, without repetitions.
    """
    from dasr_ops.models.pictures import said_to

    notes: list[str] = []
    with said_to(notes.append):
        yield notes
    notes[:] = dict.fromkeys(notes)
