"""``pytest benches/ --benchmark``: every case of `dasr_ops.bench` as tests of pytest-benchmark.

Without ``--benchmark`` (or another option of pytest-benchmark that asks for figures) each
formulation of each case runs once and is compared with float64.

pytest-benchmark times one function after another, but ratios need formulations timed in turn. So
everything selected is measured before the first test, and each test then replays its own times to
pytest-benchmark through a clock that shows them: its statistics, tables, files and comparisons
work as usual.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from dasr_ops.bench import Settings, measure, report, results, tables
from dasr_ops.bench.cases import Case, Selection, cases
from dasr_ops.bench.formulations import OFFICIAL, OURS
from dasr_ops.bench.results import Samples

_ASKING = ("json", "save", "autosave", "save_data", "compare", "histogram", "enable", "only")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmark")
    group.addoption("--benchmark", action="store_true", help="Measure, and print ratios.")
    group.addoption("--benchmark-full", action="store_true", help="Measure every case: long.")
    group.addoption(
        "--benchmark-device", metavar="DEVICE", help="cpu or cuda. Default: a GPU if there is one."
    )
    group.addoption(
        "--benchmark-seconds",
        metavar="SECONDS",
        type=float,
        help="Time for the rounds of each case. Default: 3 on a CPU, 1 on a GPU.",
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("the benchmarks need pytest-benchmark: pip install '.[test]'")
    option = config.option
    asked = option.benchmark or option.benchmark_full
    asked = asked or any(getattr(option, f"benchmark_{name}", None) for name in _ASKING)
    if not asked:
        option.benchmark_disable = True
    if not any(a.startswith("--benchmark-columns") for a in config.invocation_params.args):
        option.benchmark_columns = ["median", "iqr", "rounds"]
    try:
        device = report.chosen_device(option.benchmark_device)
    except ValueError as error:
        raise pytest.UsageError(f"--benchmark-{error}") from None
    config.stash[_SUITE] = Suite(
        device,
        "full" if option.benchmark_full else "default",
        Settings(seconds=option.benchmark_seconds),
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    level = getattr(metafunc.module, "LEVEL", None)
    if level is None or "entry" not in metafunc.fixturenames:
        return
    suite = metafunc.config.stash[_SUITE]
    entries = [
        (case, timed, peer)
        for case in cases(suite.selection, suite.device.type)
        if case.level == level
        for timed in case.mode
        for peer in measure.peers(case, suite.device.type)
    ]
    ids = [f"{case.identifier(timed)}/{peer}" for case, timed, peer in entries]
    metafunc.parametrize("entry", entries, ids=ids)


def pytest_collection_finish(session: pytest.Session) -> None:
    suite = session.config.stash[_SUITE]
    for item in session.items:
        entry = item.callspec.params.get("entry") if hasattr(item, "callspec") else None
        if entry is not None and entry[2] not in suite.selected[entry[0]]:
            suite.selected[entry[0]].append(entry[2])


def pytest_runtestloop(session: pytest.Session) -> None:
    config = session.config
    suite = config.stash[_SUITE]
    if suite.selected and not config.option.benchmark_disable and not config.option.collectonly:
        suite.measure(config.pluginmanager.getplugin("terminalreporter").write_line)


@pytest.fixture
def suite(request: pytest.FixtureRequest) -> Suite:
    return request.config.stash[_SUITE]


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]
) -> None:
    for entry in output_json["benchmarks"]:
        # The statistics of pytest-benchmark are enough there; the report below has the rest.
        entry["stats"].pop("data", None)
        for key in ("params", "param", "options"):
            entry.pop(key, None)
    output_json["dasr_ops"] = report.rounded(config.stash[_SUITE].report())


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    suite = config.stash[_SUITE]
    if not suite.measured:
        return
    found = suite.report()
    terminalreporter.section("times faster than the official formulation")
    terminalreporter.write_line(tables.machine_line(found))
    terminalreporter.write_line("\n" + tables.ratios(found))


class Clock:
    """A clock that shows the times it is told to."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        return self._now

    def replay(self, times: list[float]) -> Callable[[], None]:
        """Return a function whose calls take ``times``, one after another."""
        remaining = itertools.cycle(times)

        def call() -> None:
            self._now += next(remaining)

        return call


CLOCK = Clock()


def run(suite: Suite, entry: tuple[Case, str, str], benchmark: Any) -> None:
    """Check one formulation of one case, and give its times to pytest-benchmark."""
    case, timed, peer = entry
    samples = suite.check(case, peer) if benchmark.disabled else suite.measured[case][peer]
    if samples.skipped:
        pytest.skip(samples.skipped)
    if samples.failed:
        pytest.fail(samples.failed, pytrace=False)
    if benchmark.disabled:
        benchmark(lambda: None)
        return
    benchmark.group = case.identifier(timed)
    benchmark.extra_info["ratio"] = results.result(peer, timed, suite.measured[case])["ratio"]
    times = samples.best(timed)
    benchmark.pedantic(CLOCK.replay(times), rounds=len(times))


class Suite:
    """The cases of a session: measured together before the first test, or checked one by one."""

    def __init__(self, device: torch.device, selection: Selection, settings: Settings) -> None:
        self.device = device
        self.selection = selection
        self.settings = settings
        self.selected: dict[Case, list[str]] = defaultdict(list)
        self.measured: dict[Case, dict[str, Samples]] = {}
        self._checked: dict[Case, dict[str, Samples]] = {}
        self._report: dict[str, Any] | None = None

    def measure(self, say: Callable[[str], None]) -> None:
        """Measure the formulations of all selected cases."""
        chosen = {
            replace(case, peers=(OURS, OFFICIAL, *names)): case
            for case, names in self.selected.items()
        }
        self.report()  # the roofs are measured before, not between
        for case, samples, final in measure.measure_all(chosen, self.device, self.settings):
            rows = report.add(self.report(), case, samples)
            self.measured[chosen[case]] = samples
            mark = "" if final else ", first of several visits"
            for row in rows:
                say(f"[{len(self.measured)}/{len(chosen)}{mark}] {report.describe(row)}")

    def check(self, case: Case, peer: str) -> Samples:
        """Return the samples of one formulation, its accuracy only."""
        if case not in self._checked:
            self._checked[case] = measure.check(case, self.device, self.selected[case])
        return self._checked[case][peer]

    def report(self) -> dict[str, Any]:
        """Return the report of what was measured so far."""
        if self._report is None:
            self._report = report.new_report(self.device, self.selection)
        return self._report


_SUITE = pytest.StashKey[Suite]()
