"""How the validation command reads what pytest, the sanitizer and the other tools leave."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("GPUs are validated on Linux", allow_module_level=True)

from .validation_tools import new_session, parts, report, runner, suite

FAILED, LEFT_OUT, PASSED = runner.FAILED, runner.LEFT_OUT, runner.PASSED
Failure, Finished, Outcome = runner.Failure, runner.Finished, runner.Outcome
Session = runner.Session


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return new_session(tmp_path)


# ---- pytest's results ----

JUNIT = """<?xml version="1.0"?><testsuites><testsuite name="pytest" tests="5">
<testcase classname="tests.test_a" name="test_good" time="0.1"/>
<testcase classname="tests.test_a" name="test_bad[1]"><failure message="assert 1 == 2">
def test_bad(n):
&gt;       assert n == 2
E       assert 1 == 2
E        +  where 1 = f()
</failure></testcase>
<testcase classname="" name="tests.test_b"><error message="collection failure">
tests/test_b.py:1: in &lt;module&gt;
    import tyro
E   ModuleNotFoundError: No module named 'tyro'
</error></testcase>
<testcase classname="tests.test_c" name="test_skipped"><skipped message="no device"/></testcase>
<testcase classname="" name="tests.test_d"><skipped message="collection skipped">
('/root/tests/test_d.py', 7, "Skipped: needs it (and 'that')")</skipped></testcase>
<testcase classname="tests.test_c" name="test_too"><failure message="m">E   x</failure>
<error message="at teardown">E   y</error></testcase>
</testsuite></testsuites>"""


def test_junit(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    assert suite.parse_junit(path) is None
    path.write_text(JUNIT[:500])
    assert suite.parse_junit(path) is None
    path.write_text(JUNIT)
    results = suite.parse_junit(path)
    assert results.failures == [
        Failure("tests.test_a::test_bad[1]", "assert 1 == 2\n+  where 1 = f()"),
        Failure("tests.test_b", "ModuleNotFoundError: No module named 'tyro'"),
        Failure("tests.test_c::test_too", "x\ny"),
    ]
    outcome = results.outcome()
    assert outcome.status == FAILED
    assert outcome.summary == "1 passed, 3 failed, 2 skipped"
    assert outcome.details["skips"] == {"no device": 1, "needs it (and 'that')": 1}


def test_no_test_at_all_is_a_failure() -> None:
    assert suite.Results().outcome().status == FAILED
    assert suite.Results(skipped=3).outcome().status == FAILED
    assert suite.Results(passed=1, skipped=2).outcome().status == PASSED


@pytest.fixture
def folder_of_tests(session: Session, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # starts sooner
    folder = session.root / "tests"
    folder.mkdir()
    return folder


def test_suite_survives_a_crash(session: Session, folder_of_tests: Path) -> None:
    folder = folder_of_tests
    folder.joinpath("test_a.py").write_text(
        "def test_good(): pass\ndef test_bad(): assert 1 == 2\n"
    )
    folder.joinpath("test_b.py").write_text(
        "import os, pytest\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_before(n): pass\n"
        "def test_crash(): os.abort()\n"
        "def test_behind(): pass\n"
    )
    folder.joinpath("test_c.py").write_text("import nothing_of_this_name\n")
    outcome = suite.run_suite(session, ["tests"])
    assert outcome.summary.startswith("4 passed")
    messages = {failure.name: failure.message for failure in outcome.failures}
    assert list(messages) == [
        *("pytest", "tests.test_a::test_bad", "tests/test_b.py"),
        *("tests/test_b.py::test_crash", "tests.test_c"),
    ]
    crash = messages["tests/test_b.py::test_crash"]
    assert crash.startswith("was killed by SIGABRT after 0 tests had passed")
    assert messages["pytest"].startswith("was killed by SIGABRT after 3 tests had passed")
    assert "nothing_of_this_name" in messages["tests.test_c"]


def test_a_broken_context_is_told_from_its_consequences(
    session: Session, folder_of_tests: Path
) -> None:
    folder_of_tests.joinpath("test_a.py").write_text(
        "context = []\n"
        "def test_one(): assert not context\n"
        "def test_two():\n"
        "    context.append(1)\n"
        "    raise RuntimeError('CUDA error: an illegal memory access was encountered')\n"
        "def test_three(): assert not context\n"
    )
    outcome = suite.run_suite(session, ["tests"])
    assert [failure.name for failure in outcome.failures] == ["tests.test_a::test_two"]
    assert outcome.details["counts"]["passed"] == 2


# ---- single parts ----


def finished(output: str, code: int = 0, timed_out: bool = False) -> Finished:
    return Finished(code, output, timed_out, 1.0)


def test_sanitizer_is_read() -> None:
    clean = "========= COMPUTE-SANITIZER\nfine\n========= ERROR SUMMARY: 0 errors\n"
    races = "========= RACECHECK SUMMARY: {} hazards displayed ({} errors, 0 warnings)\n"
    found = (
        "========= Invalid __global__ write of size 4 bytes\n========= ERROR SUMMARY: 3 errors\n"
    )
    unsupported = "========= Error: Device not supported. Please refer to ...\n"

    def read(*arguments) -> tuple[str, str]:
        outcome = parts.read_sanitizer("memcheck", finished(*arguments))
        return outcome.status, outcome.summary

    assert read(clean) == (PASSED, "no finding")
    assert read(races.format(0, 0)) == (PASSED, "no finding")
    assert read(races.format(2, 2))[0] == FAILED
    assert read(found, parts.FINDING_CODE) == (FAILED, "Invalid __global__ write of size 4 bytes")
    assert read(found)[0] == FAILED
    assert read(unsupported, 1)[0] == LEFT_OUT
    assert read(clean, 1)[0] == FAILED
    assert read(clean, 0, True)[0] == FAILED
    assert read("no summary")[0] == FAILED


STUB = """
import json as j
def run(selection='default', *, device='cuda', budget, json, markdown, plot, commit):
    results = [{'peer': device}, {'peer': commit}]
    json.write_text(j.dumps({'cases': [{'id': selection, 'results': results}]}))
    markdown.write_text('# Speed\\n\\n| a | b |\\n')
"""


def test_benchmarks(session: Session) -> None:
    session.facts["commit"] = "abc"
    package = session.root / "dasr_ops"
    package.mkdir()
    package.joinpath("__init__.py").touch()
    package.joinpath("bench.py").write_text("raise ImportError('no bench here')")
    outcome = parts.benchmarks(session)
    assert outcome.status == FAILED and outcome.summary.endswith("no results")
    assert "no bench here" in outcome.failures[0].message
    package.joinpath("bench.py").write_text(STUB)
    outcome = parts.benchmarks(session)
    assert (outcome.status, outcome.summary) == (PASSED, "quick on cpu: 1 cases")
    session.facts["cuda"] = True
    assert parts.benchmarks(session).summary == "default on cuda: 1 cases"
    (session.folder / "benchmark-ratios.png").touch()
    page = report.markdown(session)
    assert "\n## Speed" in page and "(benchmark-ratios.png)" in page and "roofline" not in page
    assert report.summary(session).count("| a | b |") == 1


def test_benchmarks_that_fail(session: Session) -> None:
    package = session.root / "dasr_ops" / "bench"
    package.mkdir(parents=True)
    package.parent.joinpath("__init__.py").touch()
    package.joinpath("tables.py").write_text("def markdown(report): return str(len(report))\n")
    end = "    markdown.unlink()\n    raise OSError('out of memory')\n"
    package.joinpath("__init__.py").write_text(STUB + end)
    outcome = parts.benchmarks(session)
    assert outcome.status == FAILED and "1 cases" in outcome.summary
    assert "out of memory" in outcome.failures[0].message
    assert (session.folder / "benchmark.md").read_text() == "1"  # made of what was measured

    wrong = STUB.replace("{'peer': commit}", "{'peer': 'ours', 'failed': 'error 2e-1'}")
    package.joinpath("__init__.py").write_text(wrong)
    outcome = parts.benchmarks(session)
    assert outcome.status == FAILED
    assert outcome.failures == [Failure("quick, ours", "error 2e-1")]


def test_environment_without_a_usable_gpu(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(answer: str, code: int = 0) -> Outcome:
        session.facts.clear()
        monkeypatch.setattr(session, "run", lambda command: finished(answer, code))
        return parts.environment(session)

    assert "rehearsal" in run('{"device": "Some CPU", "cuda": false}').summary
    assert run('{"device": "H", "gpu": "H", "cuda": false}').status == FAILED
    assert run('{"device": "H", "gpu": "H", "cuda": true}').status == PASSED
    # The probe told of a device and died using it.
    assert run('{"device": "H", "gpu": "H", "cuda": true}\nError', 1).status == FAILED
    assert session.facts["cuda"] is False


def test_what_was_loaded_must_be_what_was_built(session: Session) -> None:
    here = str(session.root / "dasr_ops" / "_C.abi3.so")
    good = {"cpu": "available: x", "cuda": "available: x"}
    bad = {"cpu": "available: x", "cuda": "unavailable: built without CUDA"}

    def faults(path: str, backends: dict, reason: str | None = None) -> list[str]:
        return parts.loading_faults(session, {"path": path, "backends": backends, "reason": reason})

    assert faults(here, bad) == []
    session.facts["cuda"] = True
    assert faults(here, good) == []
    assert faults(here, bad) == ["backend cuda: unavailable: built without CUDA"]
    assert "not the one" in faults("/elsewhere/_C.abi3.so", good)[0]
    assert faults(here, good, "is truncated") == ["not loaded: is truncated"]


@pytest.mark.parametrize("quick", [True, False])
def test_parts_fit_into_the_time(quick: bool) -> None:
    listed = parts.all_parts(quick)
    assert len({part.name for part in listed}) == len(listed)
    limit = parts.QUICK_LIMIT if quick else parts.FULL_LIMIT
    assert sum(part.reserve for part in listed) < limit / 2
    longer = parts.all_parts(quick, 3 * limit)
    assert [part.limit for part in longer] == [pytest.approx(3 * part.limit) for part in listed]
