"""Reports: a selection measured case by case, written after each, so that nothing is lost."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from . import machine, tables
from .cases import Case, Selection, cases
from .measure import Settings, measure_all
from .results import Samples, rows

FORMAT = 1
"""Version of the layout of reports."""

Report = dict[str, Any]


def new_report(
    device: torch.device, selection: str, *, commit: str | None = None, roofs: bool = True
) -> Report:
    """Return a report without cases.

    Args:
        device: what is measured.
        selection: name of the selection, for the record.
        commit: of the sources; by default asked of git.
        roofs: whether the roofline is measured, which takes a few seconds.
    """
    return {
        "format": FORMAT,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "selection": selection,
        "seconds": 0.0,
        "machine": machine.describe(device, commit),
        "roofline": machine.roofline(device) if roofs else None,
        "left_out": [],
        "cases": [],
    }


def add(report: Report, case: Case, samples: dict[str, Samples]) -> list[dict[str, Any]]:
    """Add a measured case to a report, or replace it, and return its rows, one for each pass."""
    added = rows(case, samples, report["roofline"])
    position = {row["id"]: i for i, row in enumerate(report["cases"])}
    for row in added:
        if row["id"] in position:
            report["cases"][position[row["id"]]] = row
        else:
            report["cases"].append(row)
    return added


def run(
    selection: Selection = "default",
    *,
    device: str | torch.device | None = None,
    settings: Settings | None = None,
    budget: float | None = None,
    only: str = "",
    json: Path | None = None,
    markdown: Path | None = None,
    plot: Path | None = None,
    commit: str | None = None,
    progress: Callable[[str], None] | None = print,
) -> Report:
    """Measure a selection of cases.

    Args:
        selection: ``"quick"``, ``"default"`` or ``"full"``, see `dasr_ops.bench.cases`.
        device: a CPU or CUDA device; by default a CUDA device if there is one.
        settings: how long to measure each case.
        budget: seconds after which no further case starts, and none is visited again; what is left
            out is listed.
        only: measure cases whose name contains this.
        json: file for the report, rewritten after each case.
        markdown: file for its tables.
        plot: stem of the files for its plots, see `dasr_ops.bench.plot`; with the suffix ``.svg``
            they are SVG, else PNG.
        commit: of the sources; by default asked of git where the package lies in a checkout.
        progress: called with a line for each measured row; None for silence.

    Returns:
        The report, as it is in the JSON file.

    Raises:
        ValueError: there is no such selection, device, or case.
        RuntimeError: a plot is asked for, and matplotlib is missing.
    """
    place = chosen_device(device)
    if plot is not None:
        from .plot import require

        require()
    chosen = [case for case in cases(selection, place.type) if only in case.label]
    if not chosen:
        raise ValueError(f"only: no case of selection {selection!r} has {only!r} in its name")
    settings = settings or Settings()
    start = time.monotonic()
    report = new_report(place, selection, commit=commit)
    say = progress or (lambda line: None)
    say(tables.machine_line(report))
    started: list[Case] = []

    def within_budget() -> Iterator[Case]:
        for case in chosen:
            if budget is not None and time.monotonic() - start > budget:
                return
            started.append(case)
            yield case

    until = math.inf if budget is None else start + budget
    for case, samples, final in measure_all(within_budget(), place, settings, until):
        added = add(report, case, samples)
        mark = "" if final else ", first of several visits"
        for row in added:
            say(f"[{len(started)}/{len(chosen)}{mark}] {describe(row)}")
        report["seconds"] = round(time.monotonic() - start, 1)
        if json is not None:
            write_json(report, json)
    report["left_out"] = [
        {"case": case.label, "reason": f"the budget of {budget:g} s was used up"}
        for case in chosen[len(started) :]
    ]
    if json is not None:
        write_json(report, json)
    pictures = _plot(report, plot) if plot is not None else []
    if markdown is not None:
        folder = markdown.absolute().parent
        links = [Path(os.path.relpath(picture, folder)).as_posix() for picture in pictures]
        _write(markdown, tables.markdown(report, links))
    return report


def describe(row: dict[str, Any]) -> str:
    """Return a measured row in one line."""
    cells = []
    for result in row["results"]:
        if "failed" in result:
            cells.append(f"{result['peer']} FAILED: {result['failed']}")
        elif result.get("ratio") is not None and result["ratio"] != 1.0:
            cells.append(f"{result['peer']} {result['ratio']:.2f}")
    return f"{row['id']}: {', '.join(cells)}"


def write_json(report: Report, path: Path) -> None:
    """Write a report; numbers keep 5 digits, more than they are worth."""
    _write(path, json.dumps(rounded(report), indent=1, allow_nan=False) + "\n")


def chosen_device(device: str | torch.device | None) -> torch.device:
    """Return the device to measure: by default a CUDA device if there is one.

    Raises:
        ValueError: it is neither a CPU nor a CUDA device, or torch does not find it.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: {error}") from None
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected a CPU or a CUDA device, got {found}")
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device: {found} was asked for, but torch finds no CUDA device")
        torch.cuda.set_device(found)
    return found


def _plot(report: Report, plot: Path) -> list[Path]:
    from .plot import SUFFIXES
    from .plot import plot as draw

    if plot.suffix in SUFFIXES:
        return draw(report, plot.with_suffix(""), plot.suffix)
    return draw(report, plot)


def rounded(value: Any) -> Any:
    """Return a report with numbers of 5 digits, and None for what is not finite."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    if isinstance(value, float):
        # JSON has no infinity.
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def _write(path: Path, text: str) -> None:
    from dasr_ops.models.files import atomic_path

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
