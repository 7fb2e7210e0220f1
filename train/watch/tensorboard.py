"""Scalars and pictures for TensorBoard, where that package is installed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .guard import Guard

_WHAT = "TensorBoard's file"
_FLUSH_SECONDS = 30
_RETRY_SECONDS = 600.0


class Board:
    """A SummaryWriter that may be absent or fail.

    What a killed run wrote beyond ``start`` is hidden by TensorBoard when the run goes on. After an
    error the writer is given up, and a new one tried ten minutes later.

    Args:
        folder: where the event files go.
        start: steps done before.
        guard: for the errors; they come from a thread of the writer and may be of any kind.
        message: told once if the package is missing.
        clock: seconds, for the tests.
    """

    def __init__(
        self,
        folder: Path,
        start: int,
        guard: Guard,
        message: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._start, self._opened = folder, start, False
        self._guard, self._clock = guard, clock
        self._writer: Any = None
        self._next_try = clock()
        self._class = _summary_writer(message)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers; those that are not finite too."""
        self._do(lambda writer: [writer.add_scalar(n, v, step) for n, v in values.items()])

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Write a picture, uint8 [H, W, 3]."""
        self._do(lambda writer: writer.add_image(name, picture, step, dataformats="HWC"))

    def close(self) -> None:
        """Write what is still in memory."""
        writer, self._writer, self._class = self._writer, None, None
        if writer is not None:
            with self._guard(_WHAT, (Exception,)):
                writer.close()

    def _do(self, write: Callable[[Any], object]) -> None:
        if self._class is None or self._clock() < self._next_try:
            return
        failed = True
        with self._guard(_WHAT, (Exception,)):
            if self._writer is None:
                self._writer = self._open()
            write(self._writer)
            failed = False
        if failed:
            broken, self._writer = self._writer, None
            self._next_try = self._clock() + _RETRY_SECONDS
            with suppress(Exception):
                if broken is not None:
                    broken.close()

    def _open(self) -> Any:
        before = self._start > 0 or any(self._folder.glob("events.out.tfevents.*"))
        hide = before and not self._opened  # not what this process itself has written
        writer = self._class(
            str(self._folder),
            purge_step=self._start + 1 if hide else None,
            flush_secs=_FLUSH_SECONDS,
        )
        self._opened = True
        return writer


def _summary_writer(message: Callable[[str], None]) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except Exception as error:  # the package is missing, or does not fit to NumPy or protobuf
        missing = isinstance(error, ImportError)
        reason = "is not installed" if missing else f"cannot be used ({type(error).__name__})"
        message(
            f"no TensorBoard files: the package tensorboard {reason}; "
            "pip install 'dasr-ops[train]' brings it, --log.tensorboard False asks for none"
        )
        return None
    return SummaryWriter
