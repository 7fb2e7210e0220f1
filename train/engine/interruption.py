"""Ctrl-C and SIGTERM as a request that is honoured between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ONE_REQUEST = 1.0
"""Seconds in which further signals belong to the same request: launchers repeat them."""


class Interruption:
    """Whether the run was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._since = 0.0

    def request(self, number: int, frame: FrameType | None = None) -> None:
        """Note a signal; a second Ctrl-C, later than a second, interrupts at once."""
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), now
        elif number == signal.SIGINT and now - self._since > _ONE_REQUEST:
            raise KeyboardInterrupt

    @property
    def requested(self) -> bool:
        """Whether the run is to stop after the present step."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """The exit code that shells give a process ended by this signal."""
        return 128 + int(self.signal or signal.SIGINT)


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Turn SIGINT and SIGTERM into requests within the block; in other threads nothing changes."""
    state = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    previous = {
        number: signal.signal(number, state.request) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield state
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
