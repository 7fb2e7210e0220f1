"""The roofline: speed over arithmetic intensity, beside what the machine can do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from .plot_page import (
    COLOURS,
    GREY,
    OFFICIAL,
    OURS,
    add_axes,
    engineering,
    number,
    page,
    rank,
    require,
    type_name,
    unwrap,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

NAMED = 12
"""Cases that a panel names, at most."""
_MANY = 60
_TYPES = ("float32", "tfloat32", "bfloat16", "float16")
_NOTE = (
    "FLOP are those of direct convolution: Winograd's algorithm needs fewer and can pass the "
    "compute roof. Bytes count every tensor once: what stays in a cache can pass the memory roof. "
    "A grey line joins the two times of a case. Dashed: the roofs of other types."
)


class _Point(NamedTuple):
    case: dict
    peer: str
    x: float
    y: float


def roofline(report: dict) -> Figure:
    """Draw speed over arithmetic intensity, a panel for each type, ours and the official one.

    Args:
        report: a report, or a file of pytest-benchmark that carries one as ``"dasr_ops"``.

    Raises:
        ValueError: ``report`` is not a report of format 1.
        RuntimeError: matplotlib is not installed.
    """
    require()
    report = unwrap(report)
    points = _points(report)
    bandwidth, rates = _roofs(report)
    types = {type_name(point.case) for point in points} or set(rates) or {_TYPES[0]}
    shown = sorted(types, key=lambda name: (*_TYPES, name).index(name))
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    side, tall = (5.8, 4.2) if columns == 1 else (5.0, 3.9)
    pitch, row = side + 1.75, tall + 0.9
    size = 0.1 + columns * pitch, rows * row
    figure = page(*size, report, "Roofline", _NOTE, _handles(points) if points else [])
    bounds = _bounds(points, bandwidth, rates)
    for index, name in enumerate(shown):
        x, y = 0.75 + index % columns * pitch, 0.5 + (rows - 1 - index // columns) * row
        axes = add_axes(figure, x, y, side, tall)
        axes.set(xscale="log", yscale="log", xlim=bounds[0], ylim=bounds[1])
        axes.grid(which="major", color="#E4E4E4", linewidth=0.6)
        axes.set_axisbelow(True)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter("")  # short ranges would get labels between the decades
        axes.tick_params(labelsize=8, colors="#444444")
        axes.set_xlabel("arithmetic intensity, FLOP/byte", fontsize=8)
        axes.set_ylabel("FLOP/s", fontsize=8)
        title = _title(name, bandwidth, rates)
        axes.set_title(title, fontsize=9.5, fontweight="bold", loc="left")
        _draw_roofs(axes, name, bandwidth, rates, tall)
        _draw_points(axes, [point for point in points if type_name(point.case) == name])
    return figure


def _points(report: dict) -> list[_Point]:
    found = []
    for case in report["cases"]:
        flops, moved = number(case, "flops"), number(case, "bytes")
        for result in case["results"]:
            time = number(result, "median")
            if flops and moved and time and result["peer"] in (OURS, OFFICIAL):
                found.append(_Point(case, result["peer"], flops / moved, flops / time))
    return found


def _roofs(report: dict) -> tuple[float | None, dict[str, float]]:
    measured = report.get("roofline") or {}
    rates = measured.get("rates") or {}
    found = {name: number(rates, name) for name in rates}
    return number(measured, "bandwidth"), {name: rate for name, rate in found.items() if rate}


def _bounds(
    points: list[_Point], bandwidth: float | None, rates: dict[str, float]
) -> tuple[tuple[float, float], tuple[float, float]]:
    xs = [point.x for point in points] or [1.0]
    if bandwidth:
        xs += [rate / bandwidth for rate in rates.values()]
    ys = [*(point.y for point in points), *rates.values()] or [1.0]
    return (_decade(min(xs) / 1.3), max(xs) * 2.5), (_decade(min(ys) / 1.3), max(ys) * 2)


def _decade(value: float) -> float:
    return 10.0 ** math.floor(math.log10(value))


def _title(name: str, bandwidth: float | None, rates: dict[str, float]) -> str:
    parts = [f"{engineering(rates[name])}FLOP/s"] if name in rates else []
    parts += [f"{engineering(bandwidth)}B/s"] if bandwidth else []
    return f"{name}: measured roof {', '.join(parts)}" if parts else f"{name}: no roof measured"


def _draw_roofs(
    axes: Axes, name: str, bandwidth: float | None, rates: dict[str, float], inches: float
) -> None:
    low, high = axes.get_xlim()
    bottom, top = (math.log10(y) for y in axes.get_ylim())
    below = -math.inf
    for roof, rate in sorted(rates.items(), key=lambda pair: pair[1]):
        own = roof == name
        xs = [low, rate / bandwidth, high] if bandwidth else [low, high]
        ys = [min(rate, x * bandwidth) if bandwidth else rate for x in xs]
        line = {"linewidth": 1.6, "zorder": 2.2} if own else {"linewidth": 1.0, "linestyle": "--"}
        axes.plot(xs, ys, color="black" if own else "#BBBBBB", **line)
        # Names of roofs that are nearly equal move apart.
        below = max((math.log10(rate) - bottom) / (top - bottom) * inches, below + 0.17)
        style = {"fontweight": "bold"} if own else {"color": GREY}
        place = {"transform": axes.transAxes, "va": "center"}
        axes.text(1.012, below / inches, roof, fontsize=8, **place, **style)


def _marker(case: dict) -> tuple[str, str]:
    if case["level"] != "op":
        return "s", "network"
    return ("o", "layer, forward") if case["pass"] == "forward" else ("^", "layer, with backward")


def _draw_points(axes: Axes, points: list[_Point]) -> None:
    joined: dict[int, list[tuple[float, float]]] = {}
    scale = 1.0 if len(points) < 2 * _MANY else 0.5
    for case, peer, x, y in points:
        joined.setdefault(id(case), []).append((x, y))
        style = {"facecolor": COLOURS[peer], "edgecolor": "black", "linewidth": 0.6}
        if peer == OFFICIAL:
            style |= {"facecolor": "white", "edgecolor": COLOURS[peer]}
        size, order = (34, 5) if peer == OURS else (24, 4)
        axes.scatter(x, y, size * scale, marker=_marker(case)[0], zorder=order, **style)
    for ends in joined.values():
        axes.plot(*zip(*ends, strict=True), color="#999999", linewidth=0.7, zorder=3)
    if len(joined) <= NAMED:
        _name_points(axes, points)


def _name_points(axes: Axes, points: list[_Point]) -> None:
    """Write the names beside our points; one that finds no free place is left out."""
    from matplotlib.transforms import Bbox

    renderer = axes.get_figure().canvas.get_renderer()
    half = 5 / 72 * axes.get_figure().dpi
    centres = [axes.transData.transform((point.x, point.y)) for point in points]
    taken = [Bbox([(x - half, y - half), (x + half, y + half)]) for x, y in centres]
    for case, peer, *place in points:
        if peer != OURS:
            continue
        for dx, dy in ((7, 0), (-7, 0), (7, 7), (-7, 7), (7, -7), (-7, -7)):
            side = {"ha": "left" if dx > 0 else "right", "va": "center"}
            offset = {"xytext": (dx, dy), "textcoords": "offset points"}
            style = {"fontsize": 6.5, "color": "#444444", "zorder": 6}
            text = axes.annotate(case["name"], place, **offset, **side, **style)
            box = text.get_window_extent(renderer)
            inside = axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1)
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


def _handles(points: list[_Point]) -> list[Line2D]:
    from matplotlib.lines import Line2D

    plain: dict[str, Any] = {"linestyle": "", "markersize": 6}
    handles = []
    for peer in sorted({point.peer for point in points}, key=rank):
        face = "white" if peer == OFFICIAL else COLOURS[peer]
        edge = {"markeredgecolor": "black"}
        handles.append(Line2D([], [], marker="o", label=peer, color=face, **edge, **plain))
    for marker, label in sorted({_marker(point.case) for point in points}, key=lambda m: m[1]):
        handles.append(Line2D([], [], marker=marker, label=label, color="#BBBBBB", **plain))
    return handles
