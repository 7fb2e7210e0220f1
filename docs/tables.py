"""``python docs/tables.py``: copies tables that scripts made into README.md and model cards.

A line ``<!-- table: PATH -->`` is followed by the content of that file, relative to the root, and
by ``<!-- end of table -->``. PATH may be a pattern: the last of the files in the order of their
names counts, the newest where names begin with a date. Of a benchmark's report (.json) the page
gets the summary and a link to the whole.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from dasr_ops.bench import tables

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "csrc/README.md", "models/weights/README.md", "docs/results.md")
_BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def filled(page: str) -> str:
    """Return the page with every table as its file has it now.

    Raises:
        FileNotFoundError: a table's file does not exist.
    """
    folder = (ROOT / page).parent
    return _BLOCK.sub(
        lambda match: match[1] + _content(match[2], folder) + "\n" + match[3],
        (ROOT / page).read_text(),
    )


def _content(pattern: str, folder: Path) -> str:
    found = sorted(ROOT.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{pattern}: no such file below {ROOT}")
    text = found[-1].read_text()
    if found[-1].suffix != ".json":
        return text.strip()
    page = Path(os.path.relpath(found[-1].with_suffix(".md"), folder)).as_posix()
    return f"{tables.summary(json.loads(text)).strip()}\n\n[All figures]({page})"


if __name__ == "__main__":
    for name in PAGES:
        (ROOT / name).write_text(filled(name))
