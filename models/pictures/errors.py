"""What goes wrong with pictures, and what could not be kept."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class PictureError(ValueError):
    """A picture that cannot be read or written; the message is one line."""


class PictureWarning(UserWarning):
    """Something about a picture that could not be kept."""


class UnsupportedError(Exception):
    """A reader of deep pictures cannot keep this one; Pillow may read it with 8 bits."""


_thread = threading.local()
# One entry of `warnings.filters`; no user has the same, since its expression is not needed so.
_DECODERS = re.compile(r"(?:PIL|pillow_heif|tifffile|imagecodecs)(?:\.|\Z)")
_ENTRY = ("ignore", None, Warning, _DECODERS, 0)
_lock = threading.Lock()
_quiet_threads = 0
_filters: list[list] = []  # the lists that have the entry


@contextmanager
def said_to(say: Callable[[str], None]) -> Iterator[None]:
    """Have ``say`` called, in this thread, with the text of what would be a `PictureWarning`.

    Python's filters of warnings belong to the process: threads that change them for a while undo
    each other's changes. Within this context this package neither warns nor touches them.
    """
    before = getattr(_thread, "say", None)
    _thread.say = say
    try:
        yield
    finally:
        _thread.say = before


def warn(text: str) -> None:
    """Warn the caller of the package's caller, or tell what `said_to` names."""
    say = getattr(_thread, "say", None)
    if say is None:
        warnings.warn(text, PictureWarning, stacklevel=3)
    else:
        say(text)


def note(notes: list[str] | None, text: str) -> None:
    """Append to ``notes``, or warn where there are none."""
    if notes is None:
        warn(text)
    else:
        notes.append(text)


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Silence what decoders warn of odd but readable files; other warnings stay as they are.

    `warnings.catch_warnings` would put the filters back to what they were for one thread, in the
    midst of another. Here the first thread in adds one entry, and the last one out removes it.
    """
    if getattr(_thread, "say", None) is not None:
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _quiet_threads
    with _lock:
        _quiet_threads += 1
        current = warnings.filters
        # Somebody's catch_warnings may have put another list in place meanwhile.
        if not any(known is current for known in _filters):
            if _ENTRY not in current:
                current.insert(0, _ENTRY)
            _filters.append(current)


def _leave() -> None:
    global _quiet_threads
    with _lock:
        _quiet_threads -= 1
        if _quiet_threads:
            return
        # The current list may be a copy, made by catch_warnings, of one that had the entry.
        for known in (*_filters, warnings.filters):
            while _ENTRY in known:
                known.remove(_ENTRY)
        _filters.clear()
