"""Decoding ahead and encoding behind, in threads with bounded queues."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_WAIT = 0.1
_END = object()


def prefetch(items: Iterable[T], size: int) -> Iterator[T]:
    """Yield ``items``, of which a thread takes up to ``size`` ahead.

    What ``items`` raises is raised here. Closing the generator stops the thread and waits for it.
    """
    ready: queue.Queue[Any] = queue.Queue(size)
    stop = threading.Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=_WAIT)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not put((item, None)):
                    break
            else:
                put((_END, None))
        except BaseException as error:
            put((_END, error))
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=work, name="dasr-decode", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item, error = ready.get(timeout=_WAIT)
            except queue.Empty:  # on Windows nothing interrupts a wait without end
                continue
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stop.set()
        thread.join()


class Behind(Generic[T]):
    """Hands items to ``work`` in a thread; at most ``size`` wait.

    As a context manager it waits for all items at the end of the block, or, if that raises, drops
    those that wait. What ``work`` raises is raised by the next `put`, or at the end.
    """

    def __init__(self, work: Callable[[T], None], size: int) -> None:
        self._work = work
        self._waiting: queue.Queue[Any] = queue.Queue(size)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="dasr-encode", daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                item = self._waiting.get(timeout=_WAIT)
            except queue.Empty:
                continue
            if item is _END:
                return
            try:
                self._work(item)
            except BaseException as error:
                self._error = error
                return

    def put(self, item: T) -> None:
        """Hand over ``item``, waiting for room."""
        while True:
            if self._error is not None:
                raise self._error
            try:
                self._waiting.put(item, timeout=_WAIT)
                return
            except queue.Full:
                continue

    def __enter__(self) -> Behind[T]:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            try:
                self.put(_END)  # type: ignore[arg-type]
            except BaseException:
                self._stop.set()
                self._thread.join()
                raise
        else:
            self._stop.set()
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error
