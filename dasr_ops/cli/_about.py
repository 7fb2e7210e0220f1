"""The help of an option."""

from __future__ import annotations

from typing import Any

import tyro


def about(text: str) -> Any:
    """Return the annotation that gives an option its help."""
    return tyro.conf.arg(help=text)
