"""Runs pytest and reads its results, also of a run that crashed."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .runner import FAILED, PASSED, Failure, Finished, Outcome, Session

NOTHING_COLLECTED = 5
# After such an error every later call of the process fails, whatever it tests.
POISON = re.compile(
    r"illegal memory access|misaligned address|unspecified launch failure|device-side assert|"
    r"illegal instruction|illegal address|invalid address space|invalid program counter|"
    r"stack error|launch timed out|uncorrectable ECC"
)
TEST_LIMIT = 120  # seconds for one test at most
MINIMUM = 5  # seconds; with less no process is started
MESSAGE_LINES = 6


@dataclass
class Results:
    """Counts, failures and skips (reason: how often) of one or several runs of pytest."""

    passed: int = 0
    skipped: int = 0
    failures: list[Failure] = field(default_factory=list)
    skips: Counter[str] = field(default_factory=Counter)

    @property
    def poisoned(self) -> bool:
        """Whether tests may have failed only because an earlier one broke the CUDA context."""
        return len(self.own_failures()) < len(self.failures)

    def own_failures(self) -> list[Failure]:
        """The failures up to the first one that may have caused those behind it."""
        for i, failure in enumerate(self.failures):
            if POISON.search(failure.message):
                return self.failures[: i + 1]
        return self.failures

    def add(self, other: Results) -> None:
        """Count the other's in; a test that failed before stays the failure that it was."""
        known = {failure.name for failure in self.failures}
        self.passed += other.passed
        self.skipped += other.skipped
        self.failures += [failure for failure in other.failures if failure.name not in known]
        self.skips += other.skips

    def outcome(self) -> Outcome:
        """The outcome of the part: no test at all is a failure, too."""
        failures = list(self.failures)
        if self.passed == 0 and not failures:
            failures.append(Failure("pytest", "no test ran"))
        counts = {"passed": self.passed, "failed": len(failures), "skipped": self.skipped}
        summary = ", ".join(f"{n} {name}" for name, n in counts.items())
        details = {"counts": counts, "skips": dict(self.skips.most_common())}
        return Outcome(FAILED if failures else PASSED, summary, failures, details)


def parse_junit(path: Path) -> Results | None:
    """Read pytest's JUnit XML; None if there is none, or only part of one."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return None
    results = Results()
    for case in root.iter("testcase"):
        name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
        skip = case.find("skipped")
        # A test can fail and then err in its teardown: it counts once.
        bad = [child for child in case if child.tag in ("failure", "error")]
        if bad:
            results.failures.append(Failure(name, "\n".join(map(_message, bad))))
        elif skip is not None:
            results.skipped += 1
            # A file that skips itself as a whole has its reason in the text.
            whole = re.search(r"Skipped: (.*?)['\"]?\)?$", (skip.text or "").strip())
            in_text = skip.get("message") == "collection skipped" and whole is not None
            results.skips[whole[1] if in_text else skip.get("message") or ""] += 1
        else:
            results.passed += 1
    return results


def _message(element: ElementTree.Element) -> str:
    text = element.text or ""
    # What the assertion said; the rest of the text is the source code around it.
    said = [line[1:].strip() for line in text.splitlines() if re.match(r"E\s", line)]
    lines = said or [line for line in text.splitlines() if line.strip()][-MESSAGE_LINES:]
    lines = lines or (element.get("message") or "").splitlines()
    return "\n".join(line[:300] for line in lines[:MESSAGE_LINES])


def run_suite(
    session: Session,
    targets: Sequence[str],
    *,
    options: Sequence[str] = (),
    workers: int = 0,
    first_share: float = 0.75,
) -> Outcome:
    """Run tests in one process; if that dies, file by file, and in such files test by test.

    Args:
        session: runs the processes.
        targets: files and folders below the root.
        options: more arguments for pytest.
        workers: processes of pytest-xdist, 0 for none.
        first_share: of the time; a run that hangs must leave some to find out where.
    """
    suite = _Suite(session, options)
    results = suite.attempt(targets, session.remaining() * first_share, workers)
    if results is None or results.poisoned:
        results = suite.split(targets, results)
    return results.outcome()


def has_plugin(module: str) -> bool:
    """Whether pytest will load a plugin by itself."""
    wanted = "PYTEST_DISABLE_PLUGIN_AUTOLOAD" not in os.environ
    return wanted and importlib.util.find_spec(module) is not None


class _Suite:
    def __init__(self, session: Session, options: Sequence[str]) -> None:
        self.session, self.options = session, list(options)
        self.last = Finished(0, "", False, 0.0)
        self._n_attempts = 0

    def attempt(self, targets: Sequence[str], limit: float, workers: int = 0) -> Results | None:
        """Run once; None if there are no results to trust."""
        self._n_attempts += 1
        xml = self.session.scratch / f"junit-{id(self):x}-{self._n_attempts}.xml"
        command = [*self._pytest(targets), "-v", "--tb=short", f"--junitxml={xml}"]
        # A test that hangs in a CUDA call must not take the time of all others.
        test_limit = min(TEST_LIMIT, round(limit * 0.6) + 1)
        command += ["-o", f"faulthandler_timeout={test_limit}"]
        if has_plugin("pytest_timeout"):
            # After faulthandler's report; a signal would wait for the CUDA call to return.
            command += [f"--timeout={test_limit + 3}", "--timeout-method=thread"]
        environment = {}
        if workers > 1:
            command += ["-n", str(workers), "--dist=loadfile"]
            # As many threads as processors in each worker would slow all of them down.
            environment["OMP_NUM_THREADS"] = "2"
        self.last = self.session.run(command, limit=limit, environment=environment)
        results = parse_junit(xml)
        if results is None and self.last.code == NOTHING_COLLECTED:
            return Results()
        # It may have been ended, or have failed in itself, with all tests so far passed.
        ended_well = self.last.code in (0, NOTHING_COLLECTED) or (
            self.last.code == 1 and results is not None and results.failures
        )
        if results is not None and (self.last.timed_out or not ended_well):
            results.failures.append(Failure("pytest", _ending(self.last)))
        return results

    def split(self, targets: Sequence[str], whole: Results | None) -> Results:
        """Run file by file, and test by test the files whose process dies or is poisoned."""
        total = self._start_over("pytest", whole)
        if self.session.remaining() < MINIMUM:
            return total
        for file, tests in self._collect(targets).items():
            results = self._attempt_if_time(file)
            if results is None or results.poisoned:
                total.add(self._start_over(file, results))
                # A file that dies before its tests were found has been run alone already.
                for test in tests:
                    results = self._attempt_if_time(test)
                    total.add(self._start_over(test, None) if results is None else results)
            else:
                total.add(results)
        return total

    def _start_over(self, target: str, results: Results | None) -> Results:
        """What a run that does not count has shown all the same."""
        if results is not None:
            return Results(failures=list(results.own_failures()))
        return Results(failures=[Failure(target, _ending(self.last))])

    def _attempt_if_time(self, target: str) -> Results | None:
        left = self.session.remaining()
        if left < MINIMUM:
            return Results(failures=[Failure(target, "not run again: no time was left")])
        return self.attempt([target], left * 0.5)

    def _pytest(self, targets: Sequence[str]) -> list[str]:
        command = [sys.executable, "-m", "pytest", *targets, f"--rootdir={self.session.root}"]
        command += ["-p", "no:cacheprovider", "--color=no", "--continue-on-collection-errors"]
        return [*command, *self.options]

    def _collect(self, targets: Sequence[str]) -> dict[str, list[str]]:
        """The files and, without their parameters, the tests in them that the options select."""
        command = [*self._pytest(targets), "--collect-only", "-q"]
        done = self.session.run(command, limit=self.session.remaining() * 0.4)
        files: dict[str, dict[str, None]] = {}
        for line in done.output.splitlines():
            if match := re.match(r"((\S+\.py)::[^\[\s]+)", line):
                files.setdefault(match[2], {})[match[1]] = None
            elif match := re.match(r"ERROR (\S+\.py)\b", line):
                files.setdefault(match[1], {})  # run it, to have its error
        if files:
            return {file: list(tests) for file, tests in files.items()}
        paths = [self.session.root / target.partition("::")[0] for target in targets]
        found = [f for p in paths for f in ([p] if p.is_file() else sorted(p.rglob("test_*.py")))]
        return {str(file.relative_to(self.session.root)): [] for file in found}


def _ending(finished: Finished) -> str:
    # What stands on the lines of -v.
    n_passed = len(re.findall(r"\bPASSED\b", finished.output))
    return f"{finished.ending} after {n_passed} tests had passed; the end:\n{finished.tail(6)}"
