"""Printing for people and for the commands behind a pipe."""

from __future__ import annotations

import os
import sys


def print_names(text: str) -> None:
    """Print names of files, too, that the terminal has no letters for, while anybody reads."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:  # as behind `| head`; files that were asked for are written still
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
