"""The pictures of a report show what they say they show, legibly."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from dasr_ops.bench.plot import CLUSTERS, SUFFIXES, panels, plot, ratios, roofline

PEERS = {"official": 1.0, "dasr_ops": 2.5, "loop": 0.4, "static": 4.0, "of the future": 1.3}


def case(number: int = 0, **fields) -> dict:
    results = [
        {"peer": peer, "median": 1e-3 / r, "ratio": r, "ratio_low": r * 0.9, "ratio_high": r * 1.1}
        for peer, r in PEERS.items()
    ]
    work = {"flops": 4e7 * (1 + number), "bytes": 1e6, "floor": 2e-4, "bound": "memory"}
    shape = {"shape": "64->64 3x3, 64x64", "batch": 6, "experts": 5, "memory_format": "NCHW"}
    told = {"level": "op", "group": "DASR training", "name": f"layer {number}", "pass": "forward"}
    filled = {**told, "dtype": "float32", **shape, **work, "results": results, **fields}
    return {"id": f"case {number}", **filled}


def report(cases: list[dict], **fields) -> dict:
    machine = {"name": "A CPU", "threads": 2, "torch": "2.13.0", "commit": "123cbd6"}
    roofs = {"bandwidth": 2e10, "rates": {"float32": 2e11, "bfloat16": 1.9e11}}
    told = {"format": 1, "created": "2026-11-23T10:00:00Z", "machine": machine, "roofline": roofs}
    return {**told, "cases": cases, **fields}


def many(groups: int = 3, layers: int = 5, types: tuple[str, ...] = ("bfloat16", "float32")):
    told = itertools.product(types, range(groups), range(layers), ("forward", "forward+backward"))
    found = [
        case(i, group=f"group {g}", name=f"layer {n}", dtype=dtype, **{"pass": timed})
        for i, (dtype, g, n, timed) in enumerate(told)
    ]
    return [*found, case(999, level="network", name="generator")]


def texts(figure) -> list[str]:
    return [text.get_text() for text in every_text(figure)]


def every_text(figure) -> list:
    import matplotlib.text

    drawn = figure.findobj(matplotlib.text.Text)
    return [text for text in drawn if text.get_visible() and text.get_text().strip()]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files(tmp_path: Path, suffix: str) -> None:
    written = plot(report([case(i) for i in range(3)]), tmp_path / "new" / "b.1", suffix)
    names = [f"b.1-ratios{suffix}", f"b.1-roofline{suffix}"]
    assert written == [tmp_path / "new" / name for name in names]
    assert sorted(path.name for path in written[0].parent.iterdir()) == names
    for path in written:
        if suffix == ".svg":
            assert "<svg" in path.read_text()[:1000]
            continue
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert all(400 < side < 4000 for side in image.size)
            pixels = np.asarray(image.convert("RGB"))
        assert 0.005 < (pixels != 255).any(-1).mean() < 0.9
        orange = (np.abs(pixels.astype(int) - (0xD5, 0x5E, 0x00)) < 8).all(-1)
        assert orange.sum() > 100  # ours


def test_suffix_of_the_stem_wins(tmp_path: Path) -> None:
    written = plot(report([]), tmp_path / "b.svg")
    assert [path.name for path in written] == ["b-ratios.svg", "b-roofline.svg"]


def test_pytest_benchmark_carries_a_report() -> None:
    inner = report([case()])
    assert texts(ratios({"benchmarks": [], "dasr_ops": inner})) == texts(ratios(inner))


def test_panels_keep_all_of_few_cases() -> None:
    cases = many(layers=2)
    found = panels(report(cases))
    titles = ["Layers, forward", "Layers, forward + backward", "Whole networks"]
    assert [panel.title for panel in found] == titles
    assert [len(panel.cases) for panel in found] == [panel.of for panel in found] == [12, 12, 1]
    # The variants of a layer beside each other, layers of a group too.
    assert [(c["group"], c["name"], c["dtype"]) for c in found[0].cases[:3]] == [
        ("group 0", "layer 0", "bfloat16"),
        ("group 0", "layer 0", "float32"),
        ("group 0", "layer 1", "bfloat16"),
    ]


def test_panels_choose_first_variants_of_all_groups() -> None:
    found = panels(report(many(groups=4, layers=5)))[0]
    assert (len(found.cases), found.of) == (CLUSTERS, 40)
    first = [c for c in found.cases if c["dtype"] == "bfloat16"]
    assert len(first) == 20  # each layer
    second = [(c["group"], c["name"]) for c in found.cases if c["dtype"] == "float32"]
    assert second == [
        ("group 0", "layer 0"),
        ("group 0", "layer 1"),
        *((f"group {g}", "layer 0") for g in range(1, 4)),
    ]


def test_one_large_group_leaves_room_for_the_others() -> None:
    cases = [case(i, name=f"layer {i}") for i in range(60)] + [case(99, group="small")]
    found = panels(report(cases))[0]
    assert [c["group"] for c in found.cases].count("small") == 1
    assert "25 of 61 cases" in " ".join(texts(ratios(report(cases))))


def test_backward_alone_is_shown_where_nothing_else_is() -> None:
    alone = case(0, **{"pass": "backward"})
    both = case(1, **{"pass": "forward+backward"})
    assert [panel.cases for panel in panels(report([alone, both]))] == [[both]]
    assert [panel.cases for panel in panels(report([alone]))] == [[alone]]


def test_caption_tells_machine_and_how_to_read() -> None:
    for figure in (ratios(report([case()])), roofline(report([case()]))):
        told = " ".join(texts(figure))
        for fact in ("A CPU", "2 threads", "torch 2.13.0", "commit 123cbd6", "2026-11-23"):
            assert fact in told
    assert "Winograd" in told


def test_ratios_are_drawn_as_measured() -> None:
    figure = ratios(report([case()]))
    (axes,) = figure.axes
    ends = [bar.get_x() + bar.get_width() for bar in axes.containers for bar in bar]
    assert ends == pytest.approx([2.5, 0.4, 4.0, 1.3])
    assert axes.get_xscale() == "log"
    # One line at 1, one mark at official / floor.
    upright = {line.get_xdata()[0] for line in axes.lines if np.ptp(line.get_xdata()) == 0}
    assert upright == {1, 1e-3 / 2e-4}
    assert "2.50×" in texts(figure)


def test_roofline_is_drawn_as_measured() -> None:
    tf32 = case(1, dtype="float32", tf32=True)
    figure = roofline(report([case(), tf32]))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "float32: measured roof 200 GFLOP/s, 20 GB/s",
        "tfloat32: measured roof 20 GB/s",
    ]
    official, ours = (list(dot.get_offsets()[0]) for dot in figure.axes[0].collections)
    assert official == pytest.approx([40, 4e7 / 1e-3])
    assert ours == pytest.approx([40, 4e7 / 4e-4])
    roof = next(line for line in figure.axes[0].lines if line.get_linewidth() == 1.6)
    low, high = figure.axes[0].get_xlim()
    assert roof.get_xydata().ravel() == pytest.approx([low, 2e10 * low, 10, 2e11, high, 2e11])


def odd_reports() -> dict[str, dict]:
    skipped = {"results": [{"peer": "dasr_ops", "skipped": "why"}, *case()["results"][2:]]}
    failed = {"results": [{"peer": "dasr_ops", "failed": "why"}, case()["results"][0]]}
    nothing = {"results": [{"peer": peer, "skipped": "why"} for peer in PEERS]}
    blank = dict.fromkeys(("floor", "flops", "bytes", "batch", "experts", "memory_format"))
    wild = [{**result, "ratio_low": math.nan} for result in case()["results"]]
    return {
        "skipped": report([case(), case(1, **skipped)]),
        "failed": report([case(1, **failed), case(2, results=[case()["results"][1]])]),
        "nothing": report([case(1, **nothing)]),
        "blank": report([case(0, **blank)]),
        "not finite": report([case(0, results=wild, floor=math.inf)]),
        "no roofs": report([case()], roofline=None),
        "no rates": report([case()], roofline={"bandwidth": None, "rates": {"float32": None}}),
        "no cases": report([]),
        "no machine": report([case()], machine=None, created=None),
        "limit far away": report([case(0, floor=1e-9)]),
        "limit below": report([case(0, floor=1.0)]),
    }


@pytest.mark.parametrize("name", odd_reports())
def test_gaps_survive(name: str) -> None:
    odd = odd_reports()[name]
    figures = ratios(odd), roofline(odd)
    for figure in figures:
        figure.canvas.draw()
        assert len(texts(figure)) > 2
    told = " ".join(texts(figures[0]))
    assert ("No case has a measured ratio." in told) == (name in ("nothing", "no cases"))
    assert ("skipped" in told) == (name == "skipped")


@pytest.mark.parametrize("draw", [ratios, roofline])
@pytest.mark.parametrize("cases", [[case()], many(groups=2, layers=3)])
def test_texts_neither_overlap_nor_leave_the_figure(draw, cases) -> None:
    long = "a name of a layer that no figure of any width has enough room to write out in full"
    cases = [*cases, case(0, group=long, name=long, shape=long)]
    figure = draw(report(cases))
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    hidden = hidden_ticks(figure)
    shown = [text for text in every_text(figure) if text not in hidden]
    boxes = [(text, text.get_window_extent(renderer).extents.tolist()) for text in shown]
    assert len(boxes) > 10
    width, height = figure.bbox.size
    for text, (left, bottom, right, top) in boxes:
        assert left >= 0 and right <= width, text
        assert bottom >= 0 and top <= height, text
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        # Boxes may touch: letters do not fill theirs.
        across, up = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
        assert across <= 2 or up <= 2, (one, other)


def hidden_ticks(figure) -> set:
    """Texts of ticks outside the limits, which matplotlib keeps and does not draw."""
    found = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low <= tick.get_loc() <= high:
                    found |= {tick.label1, tick.label2}
    return found


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"suffix: expected one of .*, got '\.pdf'"):
        plot(report([case()]), tmp_path / "b", ".pdf")
    for wrong in ({}, {**report([]), "format": 2}, {"dasr_ops": []}):
        with pytest.raises(ValueError, match="expected a benchmark report of format 1"):
            plot(wrong, tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_missing_matplotlib_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RuntimeError, match=r"pip install 'dasr-ops\[plot\]'"):
        plot(report([case()]), tmp_path / "b")


def test_global_state_of_matplotlib_is_left_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    ratios(report([case()]))
    assert dict(matplotlib.rcParams) == before
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )
