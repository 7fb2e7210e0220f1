"""Reports as tables in Markdown, aligned so that they read well in a terminal too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from .formulations import OFFICIAL, OURS, STATIC

Report = dict[str, Any]
Row = dict[str, Any]


def markdown(report: Report, pictures: Iterable[str] = ()) -> str:
    """Return a whole report: machine, ratios, memory and errors, what was left out.

    Args:
        report: what was measured.
        pictures: plots to show, as the page's readers find them.
    """
    parts = ["# Benchmark", machine_line(report), _EXPLANATION]
    parts += [f"![{PurePath(picture).stem}]({picture})" for picture in pictures]
    for level, title in (("op", "One operator"), ("network", "Whole networks")):
        rows = [row for row in report["cases"] if row["level"] == level]
        if rows:
            parts += [f"## {title}", table(rows), f"### {title}: memory and exactness"]
            parts.append(_details(rows))
    parts += _remarks(report)
    return "\n\n".join(parts) + "\n"


def summary(report: Report) -> str:
    """Return the ratios of our operator and of a static convolution, a row for each layer."""
    passes = ("forward", "forward+backward")
    dtypes = {row["dtype"] for row in report["cases"]}
    lines: dict[str, dict[str, Row]] = {}
    for row in report["cases"]:
        if row["pass"] in passes:
            label = f"{_label(row)}, {row['memory_format']}"
            label += f", {row['dtype']}" if len(dtypes) > 1 else ""
            lines.setdefault(label, {})[row["pass"]] = row
    cells = [
        [label, *(_short(line.get(timed, {}), peer) for timed in passes for peer in (OURS, STATIC))]
        for label, line in lines.items()
    ]
    header = ["", "forward", STATIC, "forward + backward", STATIC]
    types = f", {dtypes.pop()}" if len(dtypes) == 1 else ""
    caption = f"{machine_line(report)}{types}. Times faster than the official formulation:"
    return f"{caption}\n\n{_grid(header, cells)}\n"


def ratios(report: Report) -> str:
    """Return the tables of ratios alone, operators before networks."""
    levels = ([r for r in report["cases"] if r["level"] == level] for level in ("op", "network"))
    return "\n\n".join(table(rows) for rows in levels if rows)


def table(rows: Sequence[Row]) -> str:
    """Return the table of ratios to the official formulation, a row for each case and pass."""
    names = dict.fromkeys(r["peer"] for row in rows for r in row["results"] if "median" in r)
    peers = [name for name in names if name != OFFICIAL]
    header = ["", "pass", "official, ms", *peers, "limit"]
    cells = []
    for row in rows:
        official = _result(row, OFFICIAL)
        median = official.get("median")
        limit = median / row["floor"] if median and row["floor"] else None
        cells.append(
            [
                _variant(row),
                row["pass"],
                _time(official),
                *(_ratio(_result(row, peer)) for peer in peers),
                "" if limit is None else f"{limit:.1f}",
            ]
        )
    return _grid(header, cells)


def machine_line(report: Report) -> str:
    """Return machine, versions, commit and date in one line."""
    machine = report["machine"]
    parts = [machine["name"]]
    if machine["device"] == "cpu":
        parts.append(f"{machine['threads']} threads")
        parts.append(machine.get("isa") or "")
    if machine.get("driver"):
        parts.append(f"driver {machine['driver']}")
    parts.append(f"torch {machine['torch']}")
    parts.append(f"dasr-ops {machine['dasr_ops']}")
    if machine.get("commit"):
        parts.append(f"commit {machine['commit']}")
    parts.append(report["created"][:10])
    return ", ".join(filter(None, parts))


_EXPLANATION = """\
Times faster than the official formulation (`torch.mm` of the experts, then `conv2d` with
`groups=batch`, in the memory format of the input), ± half of the 95 % confidence interval; times
are medians ± half of the interquartile range. All formulations of a row are timed in turn, on a CPU
in several visits, minutes apart, of which the fastest of each counts. `static` is an ordinary
convolution (network) with one kernel for all images: not the same function, but what one would pay
without experts. `limit` is the ratio that the roofline allows: direct convolution at the measured
rate of matrix arithmetic, each tensor moved once at the measured copy bandwidth; Winograd's
algorithm can pass it. Every formulation was first compared with float64. On a CPU the process keeps
freed memory, as with jemalloc: times are without the page faults that glibc's defaults add at
random."""


def failures(report: Report) -> list[str]:
    """Return what went wrong: formulations that are not exact, and ours where it does not run."""
    return [
        f"{row['id']}: {result['peer']}: {result['failed']}"
        for row in report["cases"]
        for result in row["results"]
        if "failed" in result
    ]


def _details(rows: Iterable[Row]) -> str:
    header = ["", "pass", "peak MB: ours", OFFICIAL, STATIC, "error: ours", OFFICIAL, "bound"]
    cells = []
    for row in rows:
        if row["pass"] == "backward":  # measured with the forward pass
            continue
        found = [_result(row, peer) for peer in (OURS, OFFICIAL, STATIC)]
        cells.append(
            [
                _variant(row),
                row["pass"],
                *(_megabytes(result.get("peak_memory")) for result in found),
                *(_scientific(result.get("error")) for result in found[:2]),
                _scientific(found[0].get("bar")),
            ]
        )
    return _grid(header, cells)


def _remarks(report: Report) -> list[str]:
    skipped: dict[tuple[str, str], list[str]] = {}
    for row in report["cases"]:
        for result in row["results"]:
            if "skipped" in result:
                skipped.setdefault((result["peer"], result["skipped"]), []).append(row["id"])
    absent = [
        f"{peer}: {reason} ({'all' if len(ids) == len(report['cases']) else len(ids)} rows)"
        for (peer, reason), ids in skipped.items()
    ]
    left_out = [f"{entry['case']}: {entry['reason']}" for entry in report["left_out"]]
    parts = []
    for title, lines in (("Failed", failures(report)), ("Not run", absent), ("Left out", left_out)):
        if lines:
            parts += [f"## {title}", "\n".join(f"- {line}" for line in lines)]
    return parts


def _result(row: Row, peer: str) -> dict[str, Any]:
    return next((result for result in row["results"] if result["peer"] == peer), {})


def _label(row: Row) -> str:
    return f"{row['group']}, {row['name']}: {row['batch']} x {row['shape']}, K = {row['experts']}"


def _variant(row: Row) -> str:
    return f"{_label(row)}, {row['dtype']}, {row['memory_format']}"


def _short(row: Row, peer: str) -> str:
    ratio = _result(row, peer).get("ratio") if row else None
    return "" if ratio is None else f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2f}"


def _time(result: dict[str, Any]) -> str:
    if "median" not in result:
        return ""
    spread = (result["q3"] - result["q1"]) / 2
    return f"{1e3 * result['median']:.3g} ± {1e3 * spread:.2g}"


def _ratio(result: dict[str, Any]) -> str:
    if "failed" in result:
        return "failed"
    if result.get("ratio") is None:
        return ""
    half = (result["ratio_high"] - result["ratio_low"]) / 2
    return f"{result['ratio']:.2f} ± {half:.2f}"


def _megabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e6:.1f}"


def _scientific(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, *rows]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    padded = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    padded.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(padded)
