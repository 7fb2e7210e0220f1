"""The result of an evaluation as a table, and as files."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dasr_ops.models.files import atomic_path

from ..watch.scores import METRICS, format_score
from .run import Evaluation

SUFFIXES = (".md", ".csv", ".json")
"""Of the files that a report is written to."""


class Report:
    """Tables of an evaluation.

    Args:
        evaluation: with at least one record.
        settings: what to remember about it; anything that JSON holds.
        time: put the seconds that a picture takes into the table.

    Raises:
        ValueError: there is no record.
    """

    def __init__(
        self, evaluation: Evaluation, settings: Mapping[str, Any], *, time: bool = False
    ) -> None:
        if not evaluation.records:
            raise ValueError("evaluation: expected scored pictures, got none")
        self.evaluation, self.settings, self.time = evaluation, dict(settings), time
        self._levels = list(dict.fromkeys(record.level for record in evaluation.records))
        self._metrics = list(evaluation.records[0].scores)

    def heading(self) -> str:
        """Return what the numbers in the cells are."""
        pictures = len({record.name for record in self.evaluation.records})
        names = " / ".join(METRICS[name] for name in self._metrics)
        return f"{names}, means over {pictures} picture{'s' if pictures != 1 else ''}"

    def markdown(self) -> str:
        """Return the table of means: a row for each method, a column for each level.

        With ``time`` another column holds the median of the seconds that a picture takes.
        """
        columns = [*self._levels, *(["seconds"] if self.time else [])]
        lines = [f"| | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
        for method, by_level in self.evaluation.means().items():
            cells = [self._cell(by_level.get(level)) for level in self._levels]
            if self.time:
                cells.append(f"{self._seconds(method):.2g}")
            lines.append(f"| {method} | {' | '.join(cells)} |")
        text = "\n".join(lines) + "\n"
        if self.evaluation.vector is not None and len(self.evaluation.vector):
            text += "\n" + self.evaluation.vector.markdown()
        return text

    def _seconds(self, method: str) -> float:
        seconds = [r.seconds for r in self.evaluation.records if r.method == method]
        return statistics.median(seconds)

    def _cell(self, scores: Mapping[str, float] | None) -> str:
        if scores is None:  # every picture failed
            return "-"
        return " / ".join(format_score(name, scores[name]) for name in self._metrics)

    def csv(self) -> str:
        """Return a row for each picture, level, draw and method."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["method", "level", "picture", "draw", *self._metrics, "seconds"])
        for record in self.evaluation.records:
            scores = [f"{record.scores[name]:.7g}" for name in self._metrics]
            where = [record.method, record.level, record.name, record.draw]
            writer.writerow([*where, *scores, f"{record.seconds:.4g}"])
        return text.getvalue()

    def json(self) -> str:
        """Return settings, means, failures and errors of the vector; `csv` has the pictures.

        Numbers that are not finite become the texts inf, -inf and nan.
        """
        vector = self.evaluation.vector
        content = {
            "settings": self.settings,
            "means": self.evaluation.means(),
            "failed": self.evaluation.failed,
            "vector": vector.as_json() if vector is not None and len(vector) else None,
        }
        return json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"

    def write(self, output: Path) -> list[Path]:
        """Write OUTPUT.md, OUTPUT.csv and OUTPUT.json, each at once.

        Args:
            output: name of the files; one of their suffixes is ignored, folders are made.

        Returns:
            The files.

        Raises:
            OSError: they cannot be written.
        """
        output = plain_name(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        paths = [output.with_name(output.name + suffix) for suffix in SUFFIXES]
        for path, text in zip(paths, (self.markdown(), self.csv(), self.json()), strict=True):
            with atomic_path(path) as temporary:
                temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
        return paths


def plain_name(output: Path) -> Path:
    """Return the name of a report without the suffix of one of its files."""
    return output.with_suffix("") if output.suffix in SUFFIXES else output


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
