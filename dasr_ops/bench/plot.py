"""Pictures of a report: ratios to the official formulation, and the roofline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..models.files import atomic_path
from .plot_page import (
    COLOURS,
    DPI,
    GREY,
    MARGIN,
    OFFICIAL,
    OURS,
    add_axes,
    colours,
    fit,
    number,
    page,
    rank,
    require,
    type_name,
    unwrap,
)
from .plot_roofline import roofline

__all__ = ["Panel", "panels", "plot", "ratios", "require", "roofline"]

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
CLUSTERS = 25
"""Cases in a panel of the ratios, at most."""

_PASSES = {
    "forward": "forward",
    "backward": "backward",
    "forward+backward": "forward + backward",
}
# Inches. The y axis of the ratios is in inches as well, so that nothing can overlap.
_LABELS, _BARS, _NUMBERS, _GAP = 3.4, 3.3, 0.55, 0.3
_BAR, _PEER_BAR, _LEAST_CLUSTER, _PADDING, _HEADING = 0.15, 0.1, 0.28, 0.06, 0.28
_ABOVE, _BELOW = 0.5, 0.5  # title and axis of a panel
_COLUMN = 9.0  # shorter panels share one
_TALL = 8.0  # has its axis above as well


class Panel(NamedTuple):
    """Cases that are drawn above each other, and how many there were to choose from."""

    title: str
    cases: list[dict]
    of: int


def plot(report: dict, stem: Path, suffix: str = ".png") -> list[Path]:
    """Draw a report: ``<stem>-ratios<suffix>`` and ``<stem>-roofline<suffix>``.

    The ratios have a panel for the forward pass of the layers, one for forward and backward
    together and one for whole networks. Backward passes alone are left out where the report has
    forward and backward together. Of more than 25 cases a panel shows the first variant (type,
    layout, experts) of the first layer of each group, then of each group's second layer and so on,
    then the second variants, until there are 25. The roofline has a panel for each type, with all
    cases.

    Args:
        report: a report, or a file of pytest-benchmark that carries one as ``"dasr_ops"``.
        stem: the names without what is appended; a suffix of its own wins over ``suffix``. The
            folder is made if it is missing.
        suffix: ``".png"`` or ``".svg"``.

    Returns:
        The files written.

    Raises:
        ValueError: ``suffix`` is another, or ``report`` is not a report of format 1.
        RuntimeError: matplotlib is not installed.
        OSError: the folder cannot be written to.
    """
    if stem.suffix in SUFFIXES:
        stem, suffix = stem.with_suffix(""), stem.suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"suffix: expected one of {SUFFIXES}, got {suffix!r}")
    figures = {"ratios": ratios(report), "roofline": roofline(report)}
    # A date would make equal pictures differ.
    metadata = {"Date": None} if suffix == ".svg" else None
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        path = stem.with_name(f"{stem.name}-{name}{suffix}")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=suffix[1:], dpi=DPI, metadata=metadata)
        written.append(path)
    return written


def panels(report: dict) -> list[Panel]:
    """Choose what the ratios show, by the rule that `plot` states.

    A case without any measured ratio counts nowhere.

    Raises:
        ValueError: ``report`` is not a report of format 1.
    """
    cases = [case for case in unwrap(report)["cases"] if _bars(case)]
    both = {case["level"] for case in cases if case["pass"] == "forward+backward"}
    cases = [case for case in cases if case["pass"] != "backward" or case["level"] not in both]
    layers = [case for case in cases if case["level"] == "op"]
    found = [
        (f"Layers, {title}", [case for case in layers if case["pass"] == name])
        for name, title in _PASSES.items()
    ]
    found.append(("Whole networks", [case for case in cases if case["level"] != "op"]))
    return [Panel(title, _select(chosen), len(chosen)) for title, chosen in found if chosen]


def _select(cases: list[dict]) -> list[dict]:
    groups: dict[str, dict[tuple, list[dict]]] = {}
    for case in cases:
        layer = (case["name"], case.get("batch"), case.get("shape"))
        groups.setdefault(case["group"], {}).setdefault(layer, []).append(case)
    ranked = [
        ((variant, layer, group), case)
        for group, layers in enumerate(groups.values())
        for layer, variants in enumerate(layers.values())
        for variant, case in enumerate(variants)
    ]
    chosen = sorted(ranked, key=lambda pair: pair[0])[:CLUSTERS]
    return [case for _, case in sorted(chosen, key=lambda pair: pair[0][::-1])]


def ratios(report: dict) -> Figure:
    """Draw the ratios to the official formulation; see `plot` for arguments and errors."""
    require()
    report, shown = unwrap(report), panels(report)
    cases = [case for panel in shown for case in panel.cases]
    colour = colours(result["peer"] for case in cases for result in _bars(case))
    note = "Bars: time of the official formulation over that of each implementation, median of "
    note += "paired rounds. Whiskers: its 95 % confidence interval. Black marks: the ratio at the "
    note += "roofline limit (an arrow where that is off the scale). Numbers: dasr_ops."
    if len(cases) < (of := sum(panel.of for panel in shown)):
        note += f" {len(cases)} of {of} cases are shown."
    columns = _columns(shown)
    height = max((sum(map(_height, column)) for column in columns), default=0.5)
    pitch = _LABELS + _BARS + _NUMBERS + _GAP
    width = 2 * MARGIN + pitch * max(len(columns), 1) - _GAP
    title = "Speed relative to the official formulation"
    figure = page(width, height, report, title, note, _handles(colour) if colour else [])
    if not shown:
        figure.text(0.5, 0.2, "No case has a measured ratio.", ha="center", color=GREY)
    bounds = _limits(cases)
    for index, column in enumerate(columns):
        left, top = MARGIN + index * pitch, height
        for panel in column:
            inches = _height(panel) - _ABOVE - _BELOW
            top -= _height(panel)
            axes = add_axes(figure, left + _LABELS, top + _BELOW, _BARS, inches)
            axes.set(xscale="log", xlim=bounds, ylim=(inches, 0))
            _style(axes, *bounds, tall=inches > _TALL)
            cases_shown = "1 case" if panel.of == 1 else f"{panel.of} cases"
            if len(panel.cases) < panel.of:
                cases_shown = f"{len(panel.cases)} of {panel.of} cases"
            title = f"{panel.title} ({cases_shown})"
            place = {"xycoords": "axes fraction", "textcoords": "offset points"}
            style = {"fontsize": 10, "fontweight": "bold"}
            above = 17 if inches > _TALL else 5
            axes.annotate(title, (-_LABELS / _BARS, 1), (0, above), **place, **style)
            _draw_clusters(axes, panel.cases, colour)
    return figure


def _columns(shown: list[Panel]) -> list[list[Panel]]:
    """Put short panels below each other."""
    room = max([_COLUMN, *map(_height, shown)])
    columns: list[list[Panel]] = []
    for panel in shown:
        if columns and sum(map(_height, [*columns[-1], panel])) <= room:
            columns[-1].append(panel)
        else:
            columns.append([panel])
    return columns


def _height(panel: Panel) -> float:
    groups = len({case["group"] for case in panel.cases})
    return sum(map(_cluster, panel.cases)) + groups * _HEADING + _ABOVE + _BELOW


def _cluster(case: dict) -> float:
    return max(sum(map(_thickness, _bars(case))), _LEAST_CLUSTER) + 2 * _PADDING


def _thickness(result: dict) -> float:
    return _BAR if result["peer"] == OURS else _PEER_BAR


def _bars(case: dict) -> list[dict]:
    # The official formulation is the line at 1.
    measured = [result for result in case["results"] if number(result, "ratio")]
    rivals = [result for result in measured if result["peer"] != OFFICIAL]
    return sorted(rivals, key=lambda result: rank(result["peer"]))


def _limits(cases: list[dict]) -> tuple[float, float]:
    keys = ("ratio", "ratio_low", "ratio_high")
    found = [number(result, key) for case in cases for result in _bars(case) for key in keys]
    values = [1.0, *(value for value in found if value)]
    # A limit far from all bars would squeeze them; it is drawn at the edge then.
    near = min(values) / 2, 4 * max(values)
    limits = [limit for limit in map(_limit, cases) if limit and near[0] < limit < near[1]]
    low, high = min(values + limits), max(values + limits)
    return min(low / 1.15, 0.75), max(high * 1.15, 1.5)


def _limit(case: dict) -> float | None:
    official = next((r for r in case["results"] if r["peer"] == OFFICIAL), {})
    time, floor = number(official, "median"), number(case, "floor")
    return time / floor if time and floor else None


def _style(axes: Axes, low: float, high: float, tall: bool) -> None:
    axes.set_xscale("log", base=2)
    exponents = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    step = 1 + (len(exponents) - 1) // 9
    ticks = [exponent for exponent in exponents if exponent % step == 0]
    names = [f"{2**e}×" if e >= 0 else f"1/{2**-e}×" for e in ticks]
    axes.set_xticks([2.0**e for e in ticks], names)
    axes.minorticks_off()
    axes.set_yticks([])
    axes.tick_params(labelsize=7, length=2, colors=GREY, labeltop=tall, top=tall, pad=2)
    axes.set_facecolor("none")
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set_color("#AAAAAA")
    axes.axvline(1, color=COLOURS[OFFICIAL], linewidth=1.2)
    axes.set_xlabel("times as fast as the official formulation", fontsize=7.5, color=GREY)


def _draw_clusters(axes: Axes, cases: list[dict], colour: dict[str, str]) -> None:
    y, group = 0.0, None
    for index, case in enumerate(cases):
        if case["group"] != group:
            group = case["group"]
            y += _HEADING
            style = {"fontsize": 8, "fontweight": "bold", "va": "bottom"}
            _write(axes, 0.05, y - 0.05, group, _LABELS - 0.1, **style)
        size = _cluster(case)
        if index % 2 == 0:
            _draw_band(axes, y, size)
        _draw_cluster(axes, case, y, size, colour)
        y += size


def _draw_cluster(axes: Axes, case: dict, y: float, size: float, colour: dict[str, str]) -> None:
    bars, middle = _bars(case), y + size / 2
    first, second = _label(case)
    _write(axes, 0.05, middle - 0.07, first, _LABELS - 0.12, fontsize=7)
    _write(axes, 0.05, middle + 0.07, second, _LABELS - 0.12, fontsize=6.3, color=GREY)
    # Fewer bars than the least height holds stand in its middle.
    top = middle - sum(map(_thickness, bars)) / 2
    for result in bars:
        height = _thickness(result)
        _draw_bar(axes, top + height / 2, height, result, colour[result["peer"]])
        top += height
    ours = next((result for result in bars if result["peer"] == OURS), None)
    text = f"{number(ours, 'ratio'):#.3g}".rstrip(".") + "×" if ours else _why_not(case)
    style = {"fontsize": 8, "fontweight": "bold", "color": "#A34700"}
    place = _LABELS + _BARS + _NUMBERS - 0.05
    _write(axes, place, middle, text, _NUMBERS, ha="right", **(style if ours else {"fontsize": 7}))
    if limit := _limit(case):
        low, high = axes.get_xlim()
        if not low <= limit <= high:
            x, arrow = (high, ">") if limit > high else (low, "<")
            axes.plot(x, middle, arrow, color="black", markersize=4, clip_on=False)
        else:
            span = [y + _PADDING / 2, y + size - _PADDING / 2]
            axes.plot([limit] * 2, span, color="black", linewidth=1.6, zorder=4)


def _why_not(case: dict) -> str:
    ours = next((result for result in case["results"] if result["peer"] == OURS), {})
    return next((word for word in ("failed", "skipped") if word in ours), "—")


def _draw_bar(axes: Axes, y: float, height: float, result: dict, colour: str) -> None:
    ours = result["peer"] == OURS
    edge = {"edgecolor": "black", "linewidth": 0.5} if ours else {"linewidth": 0}
    width = number(result, "ratio") - 1
    axes.barh(y, width, height * 0.9, left=1, color=colour, zorder=3, **edge)
    ends = number(result, "ratio_low"), number(result, "ratio_high")
    if None not in ends:
        axes.plot(ends, [y, y], color="black", linewidth=1.1 if ours else 0.7, zorder=5)


def _draw_band(axes: Axes, y: float, size: float) -> None:
    from matplotlib.patches import Rectangle

    corner = (-_LABELS / _BARS, y)
    style = {"facecolor": "#F4F4F4", "transform": axes.get_yaxis_transform(), "zorder": 0}
    width = (_LABELS + _BARS + _NUMBERS) / _BARS
    axes.add_patch(Rectangle(corner, width, size, clip_on=False, **style))


def _write(axes: Axes, x: float, y: float, text: str, width: float, **style: Any) -> None:
    """Write a text of limited width; inches, from the left of the labels."""
    place = ((x - _LABELS) / _BARS, y)
    transform = axes.get_yaxis_transform()
    fit(axes.text(*place, text, transform=transform, **{"va": "center", **style}), width)


def _label(case: dict) -> tuple[str, str]:
    first = case["name"]
    if case["level"] != "op":
        first += f", {_PASSES.get(case['pass'], case['pass'])}"
    facts = [f"batch {case['batch']}" if case.get("batch") else None, case.get("shape")]
    facts.append(f"K={case['experts']}" if case.get("experts") else None)
    facts += [type_name(case), case.get("memory_format")]
    return first, " · ".join(fact.replace("->", "→") for fact in facts if fact)


def _handles(colour: dict[str, str]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for peer, face in colour.items():
        edge = "black" if peer == OURS else "none"
        handles.append(Patch(facecolor=face, edgecolor=edge, linewidth=0.5, label=peer))
    line = {"color": COLOURS[OFFICIAL], "linewidth": 1.2}
    handles.append(Line2D([], [], label="official (= 1×)", **line))
    mark = {"marker": "|", "markersize": 9, "markeredgewidth": 1.6, "linestyle": ""}
    return [*handles, Line2D([], [], color="black", label="roofline limit", **mark)]
