"""`RunLog`: everything that a run says about itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TextIO

from PIL import Image
from torch import Tensor

from dasr_ops.models.files import atomic_path

from ..config import LogConfig
from .csv_log import CsvLog
from .grid import grid
from .guard import Guard
from .progress import Progress
from .scores import METRICS, format_score
from .tensorboard import Board

RATES = ("images_per_second", "wait_share")
"""The last columns of log.csv."""


class RunLog:
    """Progress line, CSV files, TensorBoard and pictures of one run; used by one process of it.

    Files in the folder of the run:

    - ``log.csv``: a row for each entry, see `step`. Columns: time (UTC), step, each value as its
      mean since the row before, images_per_second, wait_share (of the time, waiting for data).
    - ``validation.csv``: time, step, level, and each metric.
    - ``train.log``: messages, with their time.
    - ``pictures/step_00000000.png``: grids of LR, SR and ground truth.
    - ``tensorboard/``: scalars and the same grids, if that package is installed.

    When a run goes on at ``start``, rows of later steps are removed from the CSV files, since the
    log of a killed run may be ahead of its checkpoint. A step's number is that of the steps done,
    the step itself included: 1 for the first.

    Errors of writing never reach the caller: each kind of file is complained about once, and tried
    again with the next entry.

    Args:
        run: folder of the run; made if need be.
        config: what to write.
        start: steps done before; the first call of `step` has ``start + 1``.
        total: steps in all.
        stream: where progress and messages go; default: standard error.
        clock: seconds, for the tests.

    Raises:
        ValueError: ``start`` is not in 0..total.
        OSError: the folder cannot be made.
    """

    def __init__(
        self,
        run: Path,
        config: LogConfig,
        *,
        start: int,
        total: int,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 <= start <= total:
            raise ValueError(f"start: expected 0..{total}, got {start}")
        self.run, self.config = Path(run), config
        self.run.mkdir(parents=True, exist_ok=True)
        self._clock = clock
        self._progress = Progress(start, total, stream=stream, clock=clock)
        self._guard = Guard(self._say)
        self._csv = CsvLog(self.run / "log.csv", start=start, last=RATES)
        self._scores = CsvLog(self.run / "validation.csv", start=start, keys=("level",))
        for log in (self._csv, self._scores):
            with self._guard(log.path.name):
                log.trim()
        self._board = (
            Board(self.run / "tensorboard", start, self._guard, self.message, clock)
            if config.tensorboard
            else None
        )
        self._step, self._total, self._closed = start, total, False
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._reset()

    def step(self, step: int, values: Mapping[str, float], *, pictures: int, wait: float) -> None:
        """Take in a step; every `config.every` steps, and at the last, make an entry.

        Args:
            step: number of steps done.
            values: plain numbers by name, "lr" among them. Names may appear later; what is not
                finite is written as nan or inf.
            pictures: pictures processed in the step, by all processes.
            wait: seconds waited for data.
        """
        values = {name: float(value) for name, value in values.items()}
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        self._pictures += pictures
        self._wait += wait
        self._step = step
        self._progress.step(step, values)
        if step % self.config.every == 0 or step >= self._total:
            self._entry()

    def wants_pictures(self, step: int) -> bool:
        """Whether a grid of pictures is due after this step."""
        return self.config.images_every > 0 and step % self.config.images_every == 0

    def pictures(self, step: int, lr: Tensor, sr: Tensor, gt: Tensor) -> None:
        """Save what the network does to a batch.

        Args:
            step: number of steps done.
            lr: [B, 3, h, w], uint8, or floating in 0..1; any device.
            sr: [B, 3, H, W].
            gt: [B, 3, H, W].

        Raises:
            ValueError: the shapes do not fit.
        """
        picture = grid(lr, sr, gt)
        with self.paused(), self._guard("pictures"):
            path = self.run / "pictures" / f"step_{step:08}.png"
            path.parent.mkdir(exist_ok=True)
            with atomic_path(path) as temporary:
                Image.fromarray(picture).save(temporary, format="PNG")
        if self._board is not None:
            self._board.picture(step, "lr_sr_gt", picture)

    def validation(self, step: int, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Log the scores of a validation: level -> metric -> value."""
        for level, values in scores.items():
            named = {name: float(value) for name, value in values.items()}
            text = ", ".join(f"{METRICS.get(n, n)} {format_score(n, v)}" for n, v in named.items())
            self.message(f"validation at step {step}, {level}: {text}")
            with self._guard("validation.csv"):
                self._scores.write(step, {"level": level, **named})
            if self._board is not None:
                tags = {f"validation/{level}/{name}": value for name, value in named.items()}
                self._board.scalars(step, tags)

    def validated(self, step: int) -> bool:
        """Return whether the log has scores of this step, of any level; True if unreadable."""
        with self._guard("validation.csv"):
            return self._scores.has(step)
        return True

    def message(self, text: str) -> None:
        """Print text without breaking the progress line, and append it to train.log."""
        self._say(text)
        with self._guard("train.log"):
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            with open(self.run / "train.log", "a", encoding="utf-8", errors="replace") as file:
                file.write("".join(f"{now} {line}\n" for line in text.splitlines() or [""]))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens meanwhile (validation, saving) out of images/s and wait share."""
        began = self._clock()
        try:
            yield
        finally:
            self._since += self._clock() - began

    def close(self) -> None:
        """Write what is left since the last entry, and close all files. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._counts:
            self._entry()
        self._progress.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _entry(self) -> None:
        seconds = max(self._clock() - self._since, 1e-9)
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        images, share = self._pictures / seconds, min(self._wait / seconds, 1.0)
        rates = dict(zip(RATES, (images, share), strict=True))
        self._progress.rate(images, share)
        self._progress.entry()
        with self._guard("log.csv"):
            self._csv.write(self._step, means | rates)
        if self._board is not None:
            tags = {f"train/{name}": value for name, value in means.items()}
            self._board.scalars(self._step, tags | {f"speed/{n}": v for n, v in rates.items()})
        self._reset()

    def _reset(self) -> None:
        self._sums.clear()
        self._counts.clear()
        self._pictures, self._wait = 0, 0.0
        self._since = self._clock()

    def _say(self, text: str) -> None:
        self._progress.write(text)
