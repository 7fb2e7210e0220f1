"""One computation at a time, which tells how far it is and can be called off."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

T = TypeVar("T")


class Cancelled(Exception):
    """The task was called off."""


class Task(Generic[T]):
    """A computation that waits for its turn, runs or is over.

    Attributes:
        done, total: how far it is; ``total`` is 0 until that is known.
        started: whether it has had its turn.
    """

    def __init__(self) -> None:
        self.done = 0
        self.total = 0
        self.started = False
        self._cancelled = threading.Event()
        self._future: Future[T] | None = None

    def cancel(self) -> None:
        """Have the computation end as soon as it looks."""
        self._cancelled.set()
        if self._future is not None:
            self._future.cancel()

    def check(self) -> None:
        """Raise `Cancelled` if the task was called off; the computation calls this often."""
        if self._cancelled.is_set():
            raise Cancelled

    def report(self, done: int, total: int) -> None:
        """Take note of the progress; the computation calls this after each tile."""
        self.done, self.total = done, total
        self.check()

    def finished(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds and return whether the computation is over."""
        assert self._future is not None
        # What was called off while it waited is over, though its turn is still to come.
        return self._future.cancelled() or bool(wait([self._future], timeout).done)

    def result(self) -> T:
        """Return the result of a finished task.

        Raises:
            Cancelled: it was called off.
            Exception: what the computation raised.
        """
        assert self._future is not None
        self.check()
        return self._future.result()


class Worker:
    """Runs tasks one after the other, all in the same thread.

    PyTorch keeps a team of threads for each thread that computes: one is enough.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="dasr-demo")
        self._current: Task | None = None

    def start(self, task: Task[T], function: Callable[[Task[T]], T]) -> Task[T]:
        """Have ``function(task)`` run when its turn comes."""

        def run() -> T:
            task.check()
            task.started = True
            self._current = task
            try:
                return function(task)
            finally:
                self._current = None

        task._future = self._pool.submit(run)
        return task

    def check(self, *_: object) -> None:
        """Raise `Cancelled` in a computation that was called off, whatever it is just doing."""
        task = self._current
        if task is not None:
            task.check()

    def close(self) -> None:
        """Call off what runs and what waits, and wait for the end of it."""
        task = self._current
        if task is not None:
            task.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)
