"""What the page says, as text and HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from .engine import LARGEST_FILE, TooLargeError

if TYPE_CHECKING:
    from dasr_ops.train.degradations.readable import Readable


def explain(error: BaseException) -> str:
    """Return one readable sentence about what went wrong."""
    from dasr_ops.models.pictures import PictureError
    from dasr_ops.models.upscale import NonFiniteError

    if isinstance(error, TooLargeError):
        return str(error)
    if isinstance(error, PictureError):
        return f"This file cannot be used: {error}"
    if isinstance(error, NonFiniteError):
        return f"No result: {error}"
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return _MEMORY
    line = " ".join(str(error).split())[:300]
    if "alloc" in line and "memory" in line:
        return _MEMORY
    if isinstance(error, OSError):
        return f"A file cannot be written: {error.strerror or line}"
    return f"Something went wrong: {type(error).__name__}: {line}"


_MEMORY = (
    "Not enough memory for this picture. A smaller magnification, or starting the page with a "
    "smaller --tile, needs less."
)


def note(text: str) -> str:
    """Return a line about the state of things."""
    return f'<p class="note">{html.escape(text)}</p>'


def failure(text: str) -> str:
    """Return a line about something that went wrong."""
    return f'<p class="note failure" role="alert">{html.escape(text)}</p>'


def progress(text: str, done: int = 0, total: int = 0) -> str:
    """Return a bar and a line; the bar shows no amount while ``total`` is 0."""
    if total:
        share = 100 * done / total
        bar = (
            f'<div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" '
            f'aria-valuemax="100" aria-valuenow="{share:.0f}">'
            f'<span style="width:{share:.1f}%"></span></div>'
        )
    else:
        bar = '<div class="bar busy" role="progressbar" aria-label="Progress"><span></span></div>'
    return f'<p class="note">{html.escape(text)}</p>{bar}'


def finished(size: tuple[int, int], seconds: float, device: str) -> str:
    """Return what there is to know about a result."""
    return note(f"{size[0]} × {size[1]} pixels in {duration(seconds)} on {device}")


def left(seconds: float) -> str:
    """Return how much longer it takes."""
    return "a moment left" if seconds < 1.5 else f"{duration(round(seconds))} left"


def duration(seconds: float) -> str:
    """Return a duration: 0.4 s, 12 s, 3 min 20 s."""
    if seconds < 10:
        text = f"{seconds:.1f}".removesuffix(".0")
        return f"{text} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def amount(size: int) -> str:
    """Return a number of bytes: 640 kB, 12.3 MB."""
    return f"{max(1, round(size / 1e3))} kB" if size < 1e6 else f"{size / 1e6:.1f} MB"


def reading(readable: Readable) -> str:
    """Return the predicted degradation as a list of names and values."""
    summary = (("Blur", readable.blur), ("Noise", readable.noise), ("JPEG", readable.jpeg))
    steps = _list(readable.details, "steps")
    return (
        '<section class="reading" aria-label="Measured degradation">'
        f"<h2>Measured in this picture</h2>{_list(summary, 'summary')}"
        f"<details><summary>Step by step</summary>{steps}</details></section>"
    )


def _list(rows: Iterable[tuple[str, str | None]], kind: str) -> str:
    content = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(text or 'none')}</dd></div>"
        for name, text in rows
    )
    return f'<dl class="{kind}">{content}</dl>'


FILE_TOO_LARGE = f"This file is larger than {LARGEST_FILE // 2**20} MB."
NOT_UPLOADED = "This file is not here, or no longer: drop it again."
LEFT_ALONE = "This tab was idle for too long: drop the picture again."
