"""``python benches/compare.py OLD.json NEW.json``: what a change made slower, less exact or larger.

Speed is compared as ratio to the official formulation, which both reports measured in the same
minutes as ours, so a machine that is slower today changes nothing. Something counts as

- slower (faster) if our ratio fell (rose) by more than the threshold and the 95 % confidence
  intervals of both reports lie apart;
- less exact if our error passed its bar, or grew beyond 1.5 times and exceeds a roundoff of the
  type. Inputs are random: the largest of n errors scatters by about 1 / (2 ln n), which is below
  10 % for the thousands of values of every case, a mean by less. Accumulating in a narrower type or
  one rounding more gives 2 times and beyond. Below one roundoff a result is as good as rounded;
- larger if our peak memory grew by more than noise: 1 MB, and 5 % of what an allocator counts on a
  GPU, 30 % of what is resident on a CPU, where it depends on the history of the heap;
- missing if a case is not in the new report, or ours or the official formulation is not measured.

Files of pytest-benchmark that carry a report are taken as well. Exit code: 0 nothing is worse,
1 something is worse, 2 a file cannot be used.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FORMAT = 1
OURS, OFFICIAL = "dasr_ops", "official"
# Relative changes of ratios and of memory that two runs of the same code show.
THRESHOLD = {"cpu": 0.10, "cuda": 0.05}
MEMORY_GROWTH = {"cpu": 1.30, "cuda": 1.05}
ERROR_GROWTH = 1.5
MEMORY_BYTES = 1e6
AGREEMENT = 1.10
WORST = 15
# float64 never occurs in reports; an unknown type gets the strictest limit.
ROUNDOFF = {
    "float32": 2.0**-24,
    "tfloat32": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float16": 2.0**-11,
}
MACHINE = ("device", "name", "threads", "torch", "cuda", "driver", "python", "platform", "backend")


class Unusable(Exception):
    """An input that is no report."""


class Finding(NamedTuple):
    """A difference; ``factor`` says how grave it is, above 1 for worse and for better alike."""

    what: str
    case: str
    old: str
    new: str
    factor: float
    note: str = ""


class Agreement(NamedTuple):
    """Two ratios of one formulation; ``factor`` is the larger over the smaller."""

    case: str
    peer: str
    old: float
    new: float
    factor: float


class Comparison(NamedTuple):
    """All that two reports say of each other, the gravest first."""

    worse: list[Finding]
    better: list[Finding]
    notes: list[str]
    agreements: list[Agreement]


def read(path: Path) -> dict[str, Any]:
    """Return the report in a file, or in a file of pytest-benchmark.

    Raises:
        Unusable: the file cannot be read, or is no report of this format.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise Unusable(f"{path}: not JSON: {error}") from None
    if isinstance(report, dict) and "benchmarks" in report and "dasr_ops" not in report:
        raise Unusable(f"{path}: a file of pytest-benchmark without a report of dasr-ops")
    if isinstance(report, dict):
        report = report.get("dasr_ops", report)
    if not isinstance(report, dict) or "format" not in report or "cases" not in report:
        raise Unusable(f"{path}: not a benchmark report of dasr-ops")
    if report["format"] != FORMAT:
        raise Unusable(f"{path}: format {report['format']!r}, expected {FORMAT}")
    if problem := _malformed(report):
        raise Unusable(f"{path}: {problem}")
    return report


def _malformed(report: dict[str, Any]) -> str | None:
    if not isinstance(report["cases"], list) or not isinstance(report.get("machine") or {}, dict):
        return "cases or machine are not what a report has"
    seen = set()
    for case in report["cases"]:
        if not isinstance(case, dict) or not isinstance(case.get("id"), str):
            return "a case without id"
        results = case.get("results")
        rows = results if isinstance(results, list) else [None]
        if not all(isinstance(row, dict) and isinstance(row.get("peer"), str) for row in rows):
            return f"case {case['id']} has malformed results"
        if case["id"] in seen:
            return f"case {case['id']} occurs twice"
        seen.add(case["id"])
    return None


def compare(old: dict[str, Any], new: dict[str, Any], threshold: float | None = None) -> Comparison:
    """Compare two reports.

    Args:
        old: the earlier report.
        new: the later one.
        threshold: relative change of a ratio that counts; None: by the kind of device.
    """
    device = new["machine"].get("device")
    if threshold is None:
        threshold = THRESHOLD.get(device, THRESHOLD["cpu"])
    growth = MEMORY_GROWTH.get(device, MEMORY_GROWTH["cpu"])
    before = {case["id"]: case for case in old["cases"]}
    after = {case["id"]: case for case in new["cases"]}
    notes = list(_circumstances(old, new))
    if added := [name for name in after if name not in before]:
        notes.append(f"{len(added)} cases are only in the new report")
    worse, better = [], []
    gone = [name for name in before if name not in after]
    if gone and old.get("selection") != new.get("selection"):
        notes.append(f"{len(gone)} cases are only in the old report, which is another selection")
    else:
        reasons = {name: _reason(name, new) for name in gone}
        worse += [Finding("missing", name, "", "", math.inf, reasons[name]) for name in gone]
    agreements = []
    for name in (name for name in before if name in after):
        pair = _results(before[name]), _results(after[name])
        for finding in _findings(after[name], *pair, threshold, growth):
            (worse if finding.what in _WORSE else better).append(finding)
        notes += _skipped_peers(name, *pair)
        agreements += _agreements(name, *pair)
    for findings in (worse, better):
        # What has a note is missing or wrong, which is graver than any factor.
        findings.sort(key=lambda finding: (not finding.note, -finding.factor))
    agreements.sort(key=lambda agreement: -agreement.factor)
    return Comparison(worse, better, notes, agreements)


_WORSE = ("missing", "slower", "less exact", "larger")


def _circumstances(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    machines = [report.get("machine") or {} for report in (old, new)]
    differing = [key for key in MACHINE if machines[0].get(key) != machines[1].get(key)]
    if differing:
        changes = (f"{key} {machines[0].get(key)} -> {machines[1].get(key)}" for key in differing)
        yield f"WARNING: measured under other circumstances: {', '.join(changes)}"
        yield "Ratios are compared all the same; they depend on the machine too, though less"
    if old.get("selection") != new.get("selection"):
        yield f"selection {old.get('selection')} -> {new.get('selection')}"


def _reason(name: str, report: dict[str, Any]) -> str:
    for entry in report.get("left_out") or []:
        # Left out are cases, a row of a report is one pass of a case.
        if name == entry.get("case") or name.startswith(f"{entry.get('case')}/"):
            return str(entry.get("reason") or "left out")
    return "not in the new report"


def _results(case: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {result["peer"]: result for result in case["results"]}


def _number(result: dict[str, Any], key: str) -> float | None:
    """Return a finite number, None where there is none."""
    value = result.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond all floats
        return None


def _ratio(result: dict[str, Any]) -> tuple[float, float, float] | None:
    """Return a ratio and its interval, of no width where none was measured."""
    value = _number(result, "ratio")
    if value is None or value <= 0:
        return None
    low, high = _number(result, "ratio_low"), _number(result, "ratio_high")
    return value, value if low is None else low, value if high is None else high


def _findings(
    case: dict[str, Any],
    old: dict[str, dict],
    new: dict[str, dict],
    threshold: float,
    growth: float,
) -> Iterator[Finding]:
    """Compare ours in one case."""
    name, mine, yours = case["id"], old.get(OURS, {}), new.get(OURS, {})
    was, now = _ratio(mine), _ratio(yours)
    if was and now:
        yield from _speed(name, was, now, threshold)
    elif was:
        # Without the official formulation there is nothing to compare with.
        peer = OURS if _number(yours, "median") is None else OFFICIAL
        yield Finding("missing", name, f"{was[0]:.3g}x", "", math.inf, _absence(peer, new))
    yield from _exactness(case, mine, yours, missing=bool(was and not now))
    was_bytes, now_bytes = _number(mine, "peak_memory"), _number(yours, "peak_memory")
    if was_bytes and now_bytes:
        small, large = sorted((was_bytes, now_bytes))
        if large > small * growth and large - small > MEMORY_BYTES:
            what = "larger" if now_bytes > was_bytes else "smaller"
            texts = (f"{value / 1e6:.1f} MB" for value in (was_bytes, now_bytes))
            yield Finding(what, name, *texts, large / small)


def _speed(
    name: str, was: tuple[float, float, float], now: tuple[float, float, float], threshold: float
) -> Iterator[Finding]:
    texts = f"{was[0]:.3g}x", f"{now[0]:.3g}x"
    if now[0] < was[0] * (1 - threshold) and now[2] < was[1]:
        yield Finding("slower", name, *texts, was[0] / now[0])
    if now[0] > was[0] * (1 + threshold) and now[1] > was[2]:
        yield Finding("faster", name, *texts, now[0] / was[0])


def _exactness(case: dict, old: dict, new: dict, missing: bool) -> Iterator[Finding]:
    name, was, now = case["id"], _number(old, "error"), _number(new, "error")
    if was is None or missing:
        return
    if now is None:
        # Reports write null for infinity and NaN.
        yield Finding("less exact", name, f"{was:.1e}", "none", math.inf, "no finite error")
        return
    texts = f"{was:.1e}", f"{now:.1e}"
    growth = now / was if was > 0 else math.inf
    bar, old_bar = _number(new, "bar"), _number(old, "bar")
    type_name = "tfloat32" if case.get("tf32") else case.get("dtype")
    if bar is not None and now > bar and not (old_bar is not None and was > old_bar):
        yield Finding("less exact", name, *texts, max(growth, 1.0), f"passed its bar {bar:.1e}")
    elif growth > ERROR_GROWTH and now > ROUNDOFF.get(type_name, 0.0):
        yield Finding("less exact", name, *texts, growth)
    elif now * ERROR_GROWTH < was and was > ROUNDOFF.get(type_name, 0.0):
        yield Finding("more exact", name, *texts, was / now if now > 0 else math.inf)


def _absence(peer: str, results: dict[str, dict[str, Any]]) -> str:
    result = results.get(peer, {})
    why = next(
        (f"{word}: {result[word]}" for word in ("failed", "skipped") if word in result), None
    )
    return f"{peer} {why or 'is not measured'}"


def _skipped_peers(name: str, old: dict[str, dict], new: dict[str, dict]) -> Iterator[str]:
    for peer, result in old.items():
        gone = _ratio(result) and not _ratio(new.get(peer, {}))
        if gone and peer not in (OURS, OFFICIAL):
            yield f"no longer measured: {name}: {_absence(peer, new)}"


def _agreements(name: str, old: dict[str, dict], new: dict[str, dict]) -> Iterator[Agreement]:
    for peer in old:
        was, now = _ratio(old[peer]), _ratio(new.get(peer, {}))
        if was and now and peer != OFFICIAL:
            small, large = sorted((was[0], now[0]))
            yield Agreement(name, peer, was[0], now[0], large / small)


def agreement_line(agreements: Sequence[Agreement]) -> str:
    """Say which part of the ratios two reports agree on."""
    if not agreements:
        return "No ratio is in both reports."
    # A millionth for ratios that differ by just 10 % and were rounded.
    close = sum(agreement.factor <= AGREEMENT * (1 + 1e-6) for agreement in agreements)
    percent = 100 * close / len(agreements)
    return (
        f"{percent:.1f} % of {len(agreements)} ratios agree within {100 * (AGREEMENT - 1):.0f} %."
    )


def _table(rows: Iterable[Sequence[str]]) -> str:
    """Align columns; numbers, which are all between the first and the last two, to the right."""
    rows = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if 0 < index < len(row) - 2 else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def _factor(value: float) -> str:
    return "" if math.isinf(value) else f"{value:.2f}x"


def _rows(findings: list[Finding]) -> Iterator[Sequence[str]]:
    yield "", "old", "new", "by", "case", ""
    for what, case, old, new, factor, note in findings:
        yield what, old, new, _factor(factor), case, note


def render(found: Comparison, worst: bool = False) -> str:
    """Return a comparison as text, with ``worst`` also the ratios that agree least."""
    parts = list(found.notes)
    for title, findings in (("WORSE", found.worse), ("BETTER", found.better)):
        if findings:
            parts += ["", f"{title} ({len(findings)})", _table(_rows(findings))]
    parts += ["", agreement_line(found.agreements)]
    if worst and found.agreements:
        rows = [("", "old", "new", "by", "case", "")]
        for case, peer, old, new, factor in found.agreements[:WORST]:
            rows.append((peer, f"{old:.3g}x", f"{new:.3g}x", _factor(factor), case, ""))
        parts.append(_table(rows))
    parts.append(f"{len(found.worse)} worse, {len(found.better)} better.")
    return "\n".join(parts).strip()


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two files and return the exit code."""
    parser = argparse.ArgumentParser(description="Compare two benchmark reports of dasr-ops.")
    parser.add_argument("old", type=Path, help="the earlier report")
    parser.add_argument("new", type=Path, help="the later report")
    parser.add_argument(
        "--threshold",
        type=float,
        help="relative change of our ratio that counts; default: by the kind of device",
    )
    parser.add_argument(
        "--agreement", action="store_true", help="print the ratios that agree least"
    )
    options = parser.parse_args(argv)
    if options.threshold is not None and not 0 <= options.threshold < 1:
        parser.error(f"--threshold: expected a number from 0 to 1, got {options.threshold}")
    try:
        old, new = read(options.old), read(options.new)
        if not {case["id"] for case in old["cases"]} & {case["id"] for case in new["cases"]}:
            raise Unusable(f"{options.old} and {options.new} have no case in common")
    except Unusable as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    found = compare(old, new, options.threshold)
    print(render(found, options.agreement))
    return 1 if found.worse else 0


if __name__ == "__main__":
    sys.exit(main())
