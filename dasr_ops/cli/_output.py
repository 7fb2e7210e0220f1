"""Printing for people and for the commands behind a pipe."""

from __future__ import annotations

import os
import sys

_lost = False


def print_names(text: str) -> None:
    """Print names of files, too, that the terminal has no letters for, while anybody reads.

    What cannot be printed, as on a full disk, is complained about once; see `was_lost`.
    """
    global _lost
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:  # files that were asked for are written still
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # as behind `| head`
            _lost = True
            print(f"error: standard output: {error.strerror or error}", file=sys.stderr)


def was_lost() -> bool:
    """Return whether something that was printed got lost since the last call."""
    global _lost
    lost, _lost = _lost, False
    return lost
