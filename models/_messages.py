"""What other people's exceptions say, in the form of our messages."""

from __future__ import annotations


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return what an exception says in one line of at most ``limit`` characters."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:limit] or type(error).__name__
