"""The report of a validation: report.json, report.md, and the summary that is printed last."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from .runner import (
    FAILED,
    INTERRUPTED,
    LEFT_OUT,
    NOT_STARTED,
    PASSED,
    Failure,
    Session,
    write_atomically,
)

SCHEMA = 1
MAX_PRINTED_FAILURES = 15
MAX_PRINTED = 10_500  # characters, without the last two lines
# Everything that a validation may leave in its folder, in the order of interest.
FILES = (
    *("report.md", "report.json", "benchmark.md", "benchmark.json"),
    *("benchmark-ratios.png", "benchmark-roofline.png", "log.txt"),
)


def slug(name: str) -> str:
    """A name as a folder: "NVIDIA GeForce RTX 4090" -> "nvidia-geforce-rtx-4090"."""
    text = re.sub(r"\((r|tm|c)\)|[®™]", " ", name, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-") or "unknown"


def failures(session: Session) -> list[tuple[str, Failure]]:
    """Pairs of a part and what failed in it."""
    return [
        (name, failure)
        for name, outcome in session.outcomes.items()
        if outcome.status in (FAILED, INTERRUPTED)
        for failure in outcome.failures or [Failure(name, outcome.summary)]
    ]


def exit_code(session: Session) -> int:
    """0: nothing failed. 1: something failed. 3: nothing failed, but time or a signal ended it."""
    statuses = {outcome.status for outcome in session.outcomes.values()}
    if FAILED in statuses:
        return 1
    return 3 if statuses & {INTERRUPTED, NOT_STARTED} or session.signal is not None else 0


def as_dict(session: Session) -> dict[str, Any]:
    """The report for machines."""
    return {
        "schema": SCHEMA,
        "device": session.facts.get("device", "unknown"),
        "commit": session.facts.get("commit", "unknown"),
        "rehearsal": not session.facts.get("cuda", False),
        "mode": "quick" if session.quick else "full",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(session.started)),
        "seconds": round(session.seconds, 1),
        "limit": session.limit,
        "exit_code": exit_code(session),
        "facts": session.facts,
        "parts": [
            {
                "name": name,
                "status": outcome.status,
                "seconds": round(outcome.seconds, 1),
                "summary": outcome.summary,
                "failures": [{"name": f.name, "message": f.message} for f in outcome.failures],
                "details": outcome.details,
            }
            for name, outcome in session.outcomes.items()
        ],
    }


def markdown(session: Session) -> str:
    """The report for people: what failed first, then the outcome of the parts, then the figures."""
    facts = session.facts
    lines = [f"# Validation on {facts.get('device', 'unknown')}", "", _verdict(session), ""]
    for part, failure in failures(session):
        if lines[-1] == "" and "## Failures" not in lines:
            lines += ["## Failures", ""]
        lines += [f"- **{part}: {_inline(failure.name)}**"]
        lines += [
            "",
            "  ```text",
            *(f"  {line}" for line in failure.message.splitlines()),
            "  ```",
            "",
        ]
    lines += ["## Parts", "", *_part_table(session), ""]
    skips = [
        (name, n, reason)
        for name, outcome in session.outcomes.items()
        for reason, n in outcome.details.get("skips", {}).items()
    ]
    table = _benchmark_table(session)
    if table:
        lines += [re.sub(r"^#", "##", table, flags=re.MULTILINE).rstrip(), ""]
    for name in FILES:
        if name.endswith(".png") and (session.folder / name).exists():
            lines += [f"![{name}]({name})", ""]
    lines += ["## Machine", "", "| | |", "| --- | --- |"]
    shown = {"device": None, "driver": None, **facts}
    lines += [f"| {_cell(key)} | {_cell(value)} |" for key, value in shown.items() if value]
    if skips:
        lines += ["", "## Skipped tests", "", "| part | tests | reason |", "| --- | --- | --- |"]
        lines += [f"| {part} | {n} | {_cell(reason)} |" for part, n, reason in skips]
    return "\n".join(lines).rstrip() + "\n"


def summary(session: Session) -> str:
    """What is printed last: short enough that the end of a log holds it."""
    found = failures(session)
    lines = ["", "=" * 72]
    for part, failure in found[:MAX_PRINTED_FAILURES]:
        lines.append(f"FAILED {part}: {failure.name}")
        said = failure.message.splitlines()
        # How it ended stands at the beginning, an exception at the end.
        lines += [
            f"    {line[:160]}" for line in (said if len(said) < 4 else [*said[:2], said[-1]])
        ]
    if len(found) > MAX_PRINTED_FAILURES:
        lines.append(f"... and {len(found) - MAX_PRINTED_FAILURES} more")
    lines += ["", *_part_table(session)]
    used = sum(len(line) + 1 for line in lines)
    lines += ["", *_printed_table(session, MAX_PRINTED - used), ""]
    lines.append(f"{facts_line(session)}: {_verdict(session)}")
    return f"{session.without_paths(chr(10).join(lines))}\nreport: {session.folder}"


def facts_line(session: Session) -> str:
    """Device, driver, versions and commit in one line."""
    facts = session.facts
    words = [str(facts.get("device", "unknown"))]
    for label in ("driver", "torch", "nvcc", "commit"):
        if facts.get(label):
            words.append(f"{label} {facts[label]}")
    return ", ".join(words)


def save(session: Session) -> None:
    """Write both reports."""
    for name, text in (
        ("report.json", json.dumps(as_dict(session), indent=1) + "\n"),
        ("report.md", markdown(session)),
    ):
        write_atomically(session.folder / name, session.without_paths(text))


def _verdict(session: Session) -> str:
    n = len(failures(session))
    n_left = sum(o.status == NOT_STARTED for o in session.outcomes.values())
    words = [f"{n} failure{'s' * (n != 1)}" if n else "nothing failed"]
    if n_left:
        words.append(f"{n_left} part{'s' * (n_left != 1)} not started")
    if not session.facts.get("cuda", False):
        words.append("no CUDA device: a rehearsal on the CPU")
    mode = "quick" if session.quick else "full"
    return f"{'; '.join(words)} ({mode}, {session.seconds:.0f} s)"


def _part_table(session: Session) -> list[str]:
    # Failures first here, too; the order of the run otherwise.
    order = {FAILED: 0, INTERRUPTED: 0, NOT_STARTED: 1, PASSED: 2, LEFT_OUT: 3}
    rows = sorted(session.outcomes.items(), key=lambda item: order[item[1].status])
    return [
        "| part | outcome | seconds | |",
        "| --- | --- | --- | --- |",
        *(f"| {name} | {o.status} | {o.seconds:.0f} | {_cell(o.summary)} |" for name, o in rows),
    ]


def _benchmark_table(session: Session) -> str:
    try:
        return (session.folder / "benchmark.md").read_text()
    except OSError:
        return ""


def _printed_table(session: Session, space: int) -> list[str]:
    """The figures without the prose and the blanks that align columns."""
    lines = []
    for line in _benchmark_table(session).splitlines():
        if line.startswith(("|", "#")):
            line = re.sub(r"-{3,}", "---", re.sub(r" {2,}", " ", line))
            space -= len(line) + 1
            if space < 0:
                return [*lines, "... (the rest is in benchmark.md)"]
            lines.append(line)
    return lines


def _cell(value: object) -> str:
    if isinstance(value, dict):
        value = ", ".join(f"{k} {v}" for k, v in value.items())
    return " ".join(str(value).split()).replace("|", "\\|")[:600]


def _inline(text: str) -> str:
    return f"`{text}`" if "`" not in text else text
