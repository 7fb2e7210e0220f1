"""A CSV file that grows by a row now and then, and survives kills, resumes and full disks."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from dasr_ops.models.files import atomic_path

Row = dict[str, str]


class CsvLog:
    """Rows of numbers with a header, each with wall-clock time and step.

    Columns may appear later: the file is then rewritten with a wider header, and the rows before
    have empty cells there. Every row is written at once, and is on its way to the disk when `write`
    returns. If that fails nothing of the row stays behind.

    Args:
        path: the file; it may exist. What cannot be understood in it (a half-written last line, a
            file of another kind) is dropped, or set aside as NAME.old if nothing can be.
        start: rows of later steps are removed: a run that was killed may have logged more than it
            had saved.
        keys: columns of text behind "time" and "step".
        last: columns that stand at the end.
    """

    def __init__(
        self, path: Path, *, start: int, keys: Sequence[str] = (), last: Sequence[str] = ()
    ) -> None:
        self.path = path
        self._start = start
        self._first, self._last = ["time", "step", *keys], list(last)
        self._columns: list[str] = []
        self._ready = False

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Append a row.

        Args:
            step: number of the step.
            values: column -> number, or text for the ``keys``.

        Raises:
            ValueError: a name that a CSV header cannot hold, or that of a column of our own.
            OSError: the file cannot be written; the row is lost.
        """
        for name in values:
            if name in ("time", "step") or not name or any(c in name for c in ',"\r\n'):
                raise ValueError(f"values: expected names fit for a CSV header, got {name!r}")
        if not self._ready:
            self._trim()
        if any(name not in self._columns for name in values):
            columns = [*self._columns, *values]
            self._rewrite(columns, self._load())
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        row: Row = {"time": now, "step": str(step)}
        row |= {name: _cell(value) for name, value in values.items()}
        self._append(_line([row.get(name, "") for name in self._columns]))

    def has(self, step: int) -> bool:
        """Return whether there is a row of this step.

        Raises:
            OSError: the file cannot be read.
        """
        return any(int(row["step"]) == step for row in self._load())

    def trim(self) -> None:
        """Remove what is beyond the start now; otherwise the first `write` does it.

        Raises:
            OSError: the file cannot be written; the first `write` tries again.
        """
        if self.path.exists():
            self._trim()

    def _trim(self) -> None:
        rows = [row for row in self._load() if int(row["step"]) <= self._start]
        self._rewrite(self._columns, rows)
        self._ready = True

    def _load(self) -> list[Row]:
        """Return the whole rows of the file; `_columns` becomes its header, empty if it has none.

        A file without our header is set aside.
        """
        self._columns = []
        try:
            text = self.path.read_bytes().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return []
        lines = text.split("\n")[:-1]  # behind the last newline: nothing, or half a line
        cells = [next(csv.reader([line.rstrip("\r")]), []) for line in lines if "\0" not in line]
        if not cells or cells[0][: len(self._first)] != self._first:
            if text.strip("\0") and not _line(self._first).startswith(text.rstrip("\n")):
                os.replace(self.path, self.path.with_name(f"{self.path.name}.old"))
            return []
        self._columns = cells[0]
        rows = [dict(zip(cells[0], row, strict=True)) for row in cells if len(row) == len(cells[0])]
        return [row for row in rows if row["step"].isdecimal()]

    def _rewrite(self, columns: Sequence[str], rows: list[Row]) -> None:
        """Write the file anew, in the order of columns that it is to have."""
        middle = [n for n in dict.fromkeys(columns) if n not in (*self._first, *self._last)]
        new = [*self._first, *middle, *self._last]
        lines = [_line(new), *(_line([row.get(name, "") for name in new]) for row in rows)]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8", newline="")
        self._columns = new

    def _append(self, line: str) -> None:
        data = line.encode()
        with open(self.path, "ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size == 0:  # somebody removed the file
                data = _line(self._columns).encode() + data
            try:
                if file.write(data) != len(data):
                    raise OSError("the disk is full")
            except OSError:
                with suppress(OSError):
                    file.truncate(size)
                raise


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.7g}"


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
