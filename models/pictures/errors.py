"""What goes wrong with pictures, and what could not be kept."""

from __future__ import annotations

import warnings


class PictureError(ValueError):
    """A picture that cannot be read or written; the message is one line."""


class PictureWarning(UserWarning):
    """Something about a picture that could not be kept."""


def warn(text: str) -> None:
    """Warn the caller of the package's caller."""
    warnings.warn(text, PictureWarning, stacklevel=3)


class UnsupportedError(Exception):
    """A reader of deep pictures cannot keep this one; Pillow may read it with 8 bits."""
