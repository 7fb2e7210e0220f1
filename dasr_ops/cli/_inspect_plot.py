"""The figure of ``dasr inspect``: pictures, the 33 entries of v, the mixing weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..bench.plot_page import DPI, GREY, MARGIN, add_axes, fit, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dasr_ops.train.degradations import Decoded, DecodedStage

    from .inspect import Found

__all__ = ["draw", "figure", "require"]

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_BLUR, _RESIZE, _NOISE, _JPEG, _OTHER = "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#777777"
_EXPERTS = "#D55E00"
_MODES = ("area", "bilinear", "bicubic")
# Inches: the picture, and in each of three columns names, bars, readings.
_PICTURE, _NAMES, _BARS, _READINGS, _GAP = 2.8, 0.95, 1.45, 0.65, 0.3
_BAR, _HEADING, _BETWEEN, _TOP, _BOTTOM = 0.165, 0.3, 0.3, 0.5, 0.4
_COLUMN = _NAMES + _BARS + _READINGS
_WIDTH = 2 * MARGIN + _PICTURE + 3 * (_GAP + _COLUMN)
_ROWS = 13  # entries of a stage


class Entry(NamedTuple):
    """One bar: its name in v, the one in the figure, and the value that has no effect."""

    key: str
    name: str
    colour: str
    none: float | None = None


def _stage(number: int) -> list[Entry]:
    return [
        Entry(f"kernel{number}_size", "kernel size", _BLUR, 0),
        Entry(f"kernel{number}_sigma_x", "sigma x", _BLUR, 0),
        Entry(f"kernel{number}_sigma_y", "sigma y", _BLUR, 0),
        Entry(f"kernel{number}_rotation", "rotation", _BLUR, 0.5),
        Entry(f"resize{number}_scale", "scale", _RESIZE, (1 - 0.15) / 1.35),
        *(Entry(f"resize{number}_{mode}", f"mode {mode}", _RESIZE, 0) for mode in _MODES),
        Entry(f"noise{number}_level", "noise level", _NOISE, 0),
        Entry(f"noise{number}_grey", "noise grey", _NOISE, 0),
        Entry(f"noise{number}_gaussian", "noise Gaussian", _NOISE, 0),
        Entry(f"noise{number}_poisson", "shot noise", _NOISE, 0),
        Entry(f"jpeg{number}_quality", "JPEG quality", _JPEG, 1),
    ]


_FINAL = [
    Entry("sinc_size", "sinc size", _BLUR, 0),
    Entry("sinc_omega", "sinc cut-off", _BLUR, 1),
    Entry("sinc_then_jpeg", "sinc, JPEG", _OTHER, 0),
    Entry("jpeg_then_sinc", "JPEG, sinc", _OTHER, 0),
    *(Entry(f"final_{mode}", f"resize {mode}", _RESIZE) for mode in _MODES),
]


def draw(found: Sequence[Found], scheme: str, path: Path, format: str) -> None:
    """Write the figure of some pictures; ``format`` is png, svg or pdf.

    Raises:
        RuntimeError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    require()
    import matplotlib

    # Dates and random names would make equal figures differ.
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(format)
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "dasr inspect"}):
        warnings.filterwarnings("ignore", message="Glyph")  # names in scripts without a font
        figure(found, scheme).savefig(path, format=format, dpi=DPI, metadata=metadata)


def figure(found: Sequence[Found], scheme: str) -> Figure:
    """Return the figure, one row for each picture.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    require()
    # A canvas of its own instead of pyplot, which keeps figures and settings for the process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    row = _HEADING + _ROWS * _BAR
    experts = max(len(entry.mixing) for entry in found)
    row = max(row, 2 * _HEADING + (len(_FINAL) + 1 + experts) * _BAR)
    height = _TOP + len(found) * (row + _BETWEEN) + _BOTTOM
    page = Figure(figsize=(_WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(page)
    title = "Predicted degradation and mixing weights"
    page.text(MARGIN / _WIDTH, 1 - 0.3 / height, title, fontsize=13, fontweight="bold")
    note = f"Bars: entries of the degradation vector, scheme {scheme}; lines at 0 and 1."
    if scheme == "unified":
        note += " Black ticks: the value without effect."
    note += " Lengths in pixels of the enlarged picture."
    page.text(MARGIN / _WIDTH, 0.18 / height, note, fontsize=7.5, color=GREY)
    top = height - _TOP
    for number, entry in enumerate(found):
        if number:
            _rule(page, top + _BETWEEN / 2)
        _row(page, entry, scheme, top)
        top -= row + _BETWEEN
    return page


def _rule(page: Figure, y: float) -> None:
    from matplotlib.lines import Line2D

    y /= page.get_figheight()
    ends = (MARGIN / _WIDTH, 1 - MARGIN / _WIDTH)
    page.add_artist(Line2D(ends, (y, y), color="#DDDDDD", linewidth=0.8))


def _row(page: Figure, found: Found, scheme: str, top: float) -> None:
    from dasr_ops.train.degradations import LAYOUT

    _picture(page, found, top)
    decoded = found.readable.decoded
    two = any(what == "last steps" for what, _ in found.readable.details)
    marks = scheme == "unified"
    v = dict(zip(LAYOUT, found.v, strict=True))
    ends = (min(-0.05, *found.v), max(1.05, *found.v))
    left = MARGIN + _PICTURE + _GAP
    for number, (stage, names) in enumerate(
        (
            (decoded.stage1, ("Degradation", "First round")),
            (decoded.stage2, ("Second round: none seen", "Second round")),
        ),
        1,
    ):
        readings = _stage_readings(number, stage) if two or number == 1 else {}
        column = _Column(names[two], _stage(number), v, ends, readings)
        _bars(page, column, marks, left, top)
        left += _COLUMN + _GAP
    readings = _final_readings(decoded) if two else {}
    _bars(page, _Column("Last steps", _FINAL, v, ends, readings), marks, left, top)
    mixing = {f"expert {i}": weight for i, weight in enumerate(found.mixing, 1)}
    entries = [Entry(name, name, _EXPERTS) for name in mixing]
    ends = (min(-0.05, *found.mixing), max(1.05, *found.mixing))
    column = _Column("Mixing weights", entries, mixing, ends, {})
    _bars(page, column, False, left, top - _HEADING - (len(_FINAL) + 1) * _BAR)


def _picture(page: Figure, found: Found, top: float) -> None:
    height, width = found.thumbnail.shape[:2]
    scale = min(_PICTURE / width, 1.45 / height)
    axes = add_axes(page, MARGIN, top - height * scale, width * scale, height * scale)
    grey = {"cmap": "gray", "vmin": 0, "vmax": 255} if found.thumbnail.ndim == 2 else {}
    axes.imshow(found.thumbnail, aspect="auto", interpolation="antialiased", **grey)
    axes.set_axis_off()
    readable = found.readable
    size = f"{found.size[0]} x {found.size[1]} pixels"
    lines = [
        (found.path.name, {"fontweight": "bold", "fontsize": 8.5}),
        (size, {"color": GREY}),
        (f"blur: {readable.blur or 'none'}", {}),
        (f"noise: {readable.noise or 'none'}", {}),
        (f"JPEG: {readable.jpeg or 'none'}", {}),
    ]
    if readable.level is not None:
        lines.append((f"read as level {readable.level}", {"color": GREY}))
    y = top - height * scale - 0.06
    for text, style in lines:
        y -= 0.155
        place = (MARGIN / _WIDTH, y / page.get_figheight())
        style = {"fontsize": 7.5, "parse_math": False, **style}
        fit(page.text(*place, text.encode("utf-8", "replace").decode(), **style), _PICTURE)


class _Column(NamedTuple):
    """Bars above each other; ``readings`` stand beside them where there is more than a number."""

    title: str
    entries: Sequence[Entry]
    values: dict[str, float]
    ends: tuple[float, float]
    readings: dict[str, str]


def _bars(page: Figure, column: _Column, marks: bool, left: float, top: float) -> None:
    entries = column.entries
    height = len(entries) * _BAR
    axes = add_axes(page, left + _NAMES, top - _HEADING - height, _BARS, height)
    numbers = [column.values[entry.key] for entry in entries]
    axes.set_xlim(*column.ends)
    axes.set_ylim(len(entries) - 0.5, -0.5)
    axes.set_axis_off()
    for x in (0, 1):
        axes.axvline(x, color="#BBBBBB", linewidth=0.7, zorder=0)
    colours = [entry.colour for entry in entries]
    axes.barh(range(len(entries)), numbers, height=0.66, color=colours, zorder=1)
    for y, (entry, number) in enumerate(zip(entries, numbers, strict=True)):
        if marks and entry.none is not None:
            axes.plot((entry.none,) * 2, (y - 0.4, y + 0.4), color="black", linewidth=1, zorder=2)
        _beside(axes, -0.07, y, entry.name, ha="right")
        text = column.readings.get(entry.key, f"{number:.2f}".replace("-0.00", "0.00"))
        _beside(axes, _BARS + 0.07, y, text, ha="left")
    place = (-_NAMES / _BARS, 1 + 0.09 / height)
    axes.text(*place, column.title, transform=axes.transAxes, fontsize=8.5, fontweight="bold")


def _beside(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    transform = axes.get_yaxis_transform()
    axes.text(x / _BARS, y, text, transform=transform, va="center", fontsize=7.5, **style)


def _stage_readings(number: int, stage: DecodedStage) -> dict[str, str]:
    noise = f"{stage.noise_level:.0f}/255"
    if stage.noise == "poisson":
        noise = f"scale {stage.noise_level:.2f}"
    quality = "none" if stage.jpeg_quality is None else f"q{stage.jpeg_quality}"
    return {
        f"kernel{number}_size": f"{stage.kernel_size} x {stage.kernel_size}",
        f"kernel{number}_sigma_x": f"{stage.sigma_x:.1f} px",
        f"kernel{number}_sigma_y": f"{stage.sigma_y:.1f} px",
        f"kernel{number}_rotation": f"{math.degrees(stage.rotation):.0f}°",
        f"resize{number}_scale": f"x {stage.scale:.2f}",
        f"noise{number}_level": noise,
        f"jpeg{number}_quality": quality,
    }


def _final_readings(decoded: Decoded) -> dict[str, str]:
    readings = {}
    if decoded.sinc_size is not None:
        readings["sinc_size"] = f"{decoded.sinc_size} x {decoded.sinc_size}"
        if decoded.sinc_omega is not None:
            readings["sinc_omega"] = f"{decoded.sinc_omega / math.pi:.2f} pi"
    return readings
