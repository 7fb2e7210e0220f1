"""Keeping trouble with the log away from the training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class Stream:
    """A text stream whose failures are swallowed: a terminal that is gone, a full disk.

    Args:
        stream: what is written to; default: ``sys.stderr`` as it is at each call.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._given = stream

    @property
    def _stream(self) -> TextIO | None:
        return sys.stderr if self._given is None else self._given

    def write(self, text: str) -> int:
        """Write text, or do nothing."""
        if self._stream is not None:
            with suppress(OSError, ValueError):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or do nothing."""
        if self._stream is not None:
            with suppress(OSError, ValueError):
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether somebody watches on a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # closed
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)  # encoding, fileno: for the width of the terminal

    def __eq__(self, other: object) -> bool:
        return other is self or other is self._stream

    __hash__ = None  # type: ignore[assignment]


class Guard:
    """Turns errors of writing into one warning for each kind of file.

    Args:
        warn: called with one line.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._said: set[str] = set()

    @contextmanager
    def __call__(
        self, what: str, errors: tuple[type[Exception], ...] = (OSError,)
    ) -> Iterator[None]:
        """Run the block; if it raises one of ``errors``, warn unless ``what`` was named before."""
        try:
            yield
        except errors as error:
            if what not in self._said:
                self._said.add(what)
                reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
                self._warn(
                    f"warning: {what} cannot be written, training goes on: "
                    f"{reason or type(error).__name__}"
                )
