"""What the pictures of a report share: the page around the panels, colours, reading a report."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import cycle
from textwrap import wrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

OURS, OFFICIAL = "dasr_ops", "official"
GREY = "#666666"
MARGIN = 0.2
"""Inches left and right of everything."""
DPI = 130

# Okabe and Ito's palette, which colour-blind readers can tell apart; ours has the warmest of it.
COLOURS = {
    OURS: "#D55E00",
    OFFICIAL: "#333333",
    "official, compiled": "#0072B2",
    "loop": "#999999",
    "vmap": "#56B4E9",
    "condconv": "#009E73",
    "timm": "#CC79A7",
    "static": "#F0E442",
}
_OTHER_COLOURS = ("#332288", "#882255", "#44AA99", "#AA4499", "#999933", "#661100")


def require() -> None:
    """Raise what `page` would raise if matplotlib is missing, before a long measurement.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise RuntimeError("drawing needs matplotlib: pip install 'dasr-ops[plot]'") from error


def page(
    width: float, body: float, report: dict, title: str, note: str, handles: list[Any]
) -> Figure:
    """Return a figure with texts and legend on top, and room for panels below; all in inches.

    Args:
        width: of the figure.
        body: height of the room for panels.
        report: says what was measured on.
        title: stands at the top.
        note: how to read the figure.
        handles: entries of the legend.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    require()
    # A canvas of its own instead of pyplot, which keeps figures and settings for the process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    inside = width - 2 * MARGIN
    lines = [line for text in (_machine(report), note) for line in wrap(text, int(inside / 0.058))]
    entries = [0.5 + 0.062 * len(handle.get_label()) for handle in handles] or [1.0]
    one_row = sum(entries) <= inside
    columns = len(entries) if one_row else max(1, int(inside / max(entries)))
    rows = -(-len(handles) // columns)
    height = body + 0.55 + 0.145 * len(lines) + 0.19 * rows
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    left, y = MARGIN / width, height - 0.32
    figure.text(left, y / height, title, fontsize=13, fontweight="bold")
    y -= 0.07
    for line in lines:
        y -= 0.145
        figure.text(left, y / height, line, fontsize=7.5, color=GREY)
    if handles:
        box = {"loc": "upper left", "bbox_to_anchor": (left, (y - 0.07) / height)}
        frame = {"frameon": False, "borderaxespad": 0, "borderpad": 0, "handlelength": 1.4}
        figure.legend(handles=handles, ncols=columns, fontsize=7.5, **box, **frame)
    return figure


def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add a panel; all in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def fit(text: Text, inches: float) -> None:
    """Shorten a text until it is no wider."""
    figure, words = text.get_figure(), text.get_text()
    renderer = figure.canvas.get_renderer()
    while words and (width := text.get_window_extent(renderer).width) > inches * figure.dpi:
        # Most of the way at once: each look at the width costs a rendering.
        keep = min(len(words) - 1, int(len(words) * inches * figure.dpi / width))
        words = words[:keep]
        text.set_text(words.rstrip(" ·,") + "…")


def _machine(report: dict) -> str:
    machine = report.get("machine") or {}
    threads = f"{machine['threads']} threads" if machine.get("threads") else None
    titles = {"torch": "torch", "cuda": "CUDA", "driver": "driver", "python": "Python"}
    titles |= {"dasr_ops": "dasr-ops", "commit": "commit", "backend": "backend"}
    versions = [f"{titles[key]} {machine[key]}" for key in titles if machine.get(key)]
    facts = [machine.get("name"), threads, *versions, str(report.get("created") or "")[:10]]
    return " · ".join(str(fact) for fact in facts if fact)


def unwrap(report: dict) -> dict:
    """Return the report, also of a file of pytest-benchmark that carries one.

    Raises:
        ValueError: it is not a report of format 1.
    """
    report = report.get("dasr_ops", report)
    if not isinstance(report, dict) or report.get("format") != 1 or "cases" not in report:
        raise ValueError("report: expected a benchmark report of format 1")
    return report


def number(values: dict, key: str) -> float | None:
    """Return a positive finite number, None where there is none."""
    value = values.get(key)
    usable = isinstance(value, (int, float)) and math.isfinite(value) and value > 0
    return float(value) if usable else None


def type_name(case: dict) -> str:
    """Return the name of the arithmetic: ``tfloat32`` is a type of its own here."""
    return "tfloat32" if case.get("tf32") and case["dtype"] == "float32" else case["dtype"]


def rank(peer: str) -> tuple[int, str]:
    """Return the place of a peer in clusters and legends, as a key to sort by."""
    known = list(COLOURS)
    return (known.index(peer) if peer in known else len(known)), peer


def colours(peers: Iterable[str]) -> dict[str, str]:
    """Give each peer its colour, in the order of the legend."""
    others = cycle(_OTHER_COLOURS)
    ordered = sorted(set(peers), key=rank)
    return {peer: COLOURS[peer] if peer in COLOURS else next(others) for peer in ordered}


def engineering(value: float) -> str:
    """Return three digits and the prefix of a unit: ``"1.2 T"``."""
    power = min(max(int(math.log10(value) // 3), 0), 5)
    return f"{value / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P')[power]}"
