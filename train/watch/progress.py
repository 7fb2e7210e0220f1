"""The progress of a run in one line: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from tqdm import tqdm

from .guard import Stream

_SMOOTHING = 0.98
_LINE_SECONDS = 30.0
_COLUMNS = 120
_IN_BAR = 3  # values shown on a terminal beside the learning rate


class Smoothed:
    """Exponential mean of the values of the last 50 steps or so, unbiased at the start."""

    def __init__(self, decay: float = _SMOOTHING) -> None:
        self._decay = decay
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._broken: dict[str, float] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Take in the values of a step. What is not finite is shown until a finite one comes."""
        for name, value in values.items():
            if not math.isfinite(value):
                self._broken[name] = value
                continue
            self._broken.pop(name, None)
            self._sums[name] = self._decay * self._sums.get(name, 0.0) + (1 - self._decay) * value
            self._weights[name] = self._decay * self._weights.get(name, 0.0) + 1 - self._decay

    def result(self) -> dict[str, float]:
        """Return the means by name."""
        means = {name: total / self._weights[name] for name, total in self._sums.items()}
        return means | self._broken


class Progress:
    """One line about the run.

    On a terminal a bar that is redrawn; elsewhere (a file, a pipe) whole lines, one when values
    come first and then at most one in 30 seconds, and the last.

    Args:
        start: steps done before.
        total: steps in all.
        stream: where to write; default: standard error.
        clock: seconds, for the tests.
    """

    def __init__(
        self,
        start: int,
        total: int,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = Stream(stream)
        self._clock = clock
        self._start, self._step, self._total = start, start, total
        self._began = clock()
        self._last_line = -math.inf
        self._pending = ""
        self._smoothed = Smoothed()
        self._lr: float | None = None
        self._rate = ""
        self._bar: tqdm | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total,
                initial=start,
                unit="step",
                file=self._stream,  # type: ignore[arg-type]
                **_width(self._stream),
                mininterval=0.5,
                smoothing=0.05,
            )

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Take in the values of a step; "lr" is shown as it is, the others smoothed."""
        self._lr = values.get("lr", self._lr)
        self._smoothed.add({name: value for name, value in values.items() if name != "lr"})
        if self._bar is not None:
            self._bar.set_postfix_str(self._text(_IN_BAR), refresh=False)
            self._bar.update(step - self._step)
        self._step = step

    def rate(self, images: float, wait: float) -> None:
        """Take in pictures per second and the share of time spent waiting for data."""
        self._rate = f"{_short(images)} images/s, waiting {wait:.0%}"

    def entry(self) -> None:
        """Note that an entry was logged: elsewhere than on a terminal it may become a line."""
        if self._bar is not None:
            return
        eta = ", ETA " + _duration(self._remaining()) if self._step < self._total else ""
        self._pending = f"step {self._step}/{self._total}: {self._text()}{eta}"
        if self._clock() - self._last_line >= _LINE_SECONDS or self._step >= self._total:
            self._flush()

    def write(self, text: str) -> None:
        """Print lines without breaking the bar."""
        if self._bar is None:
            self._stream.write(f"{text}\n")
            self._stream.flush()
        else:
            tqdm.write(text, file=self._stream)  # type: ignore[arg-type]

    def close(self) -> None:
        """Leave the last state behind."""
        if self._bar is not None:
            self._bar.set_postfix_str(self._text(_IN_BAR), refresh=False)
            self._bar.close()
            self._bar = None
        else:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self.write(self._pending)
            self._last_line, self._pending = self._clock(), ""

    def _text(self, most: int | None = None) -> str:
        values = self._smoothed.result()
        names = sorted(values, key=lambda name: name != "loss")[:most]  # the sum of losses first
        parts = [f"{name} {_short(values[name])}" for name in names]
        if self._lr is not None:
            parts.append(f"lr {self._lr:.3g}")
        return ", ".join([*parts, self._rate] if self._rate else parts)

    def _remaining(self) -> float:
        done = self._step - self._start
        if done <= 0:
            return math.inf
        return (self._clock() - self._began) / done * (self._total - self._step)


def _width(stream: Stream) -> dict[str, int | bool]:
    """Return tqdm's arguments; terminals of containers and serial lines may claim to have 0."""
    try:
        known = os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError, AttributeError):
        known = False
    return {"dynamic_ncols": True} if known else {"ncols": _COLUMNS}


def _short(value: float) -> str:
    return f"{value:.4g}"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    text = f"{hours}:{minutes:02}:{rest:02}"
    return f"{days}d {text}" if days else text
