"""``python -m dasr_ops`` is the command ``dasr``."""

from __future__ import annotations

from .cli import program

if __name__ == "__main__":
    program()
