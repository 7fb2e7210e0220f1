"""``python docs/tables.py``: copies tables that scripts made into README.md and model cards.

A line ``<!-- table: PATH -->`` is followed by the content of that file, relative to the root, and
by ``<!-- end of table -->``.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "models/weights/README.md")
_BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def filled(page: str) -> str:
    """Return the page with every table as its file has it now."""
    return _BLOCK.sub(
        lambda match: match[1] + (ROOT / match[2]).read_text().strip() + "\n" + match[3],
        (ROOT / page).read_text(),
    )


if __name__ == "__main__":
    for name in PAGES:
        (ROOT / name).write_text(filled(name))
