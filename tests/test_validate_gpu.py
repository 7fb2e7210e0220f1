"""The validation command: whatever happens to a part, the others run and the report is written."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("GPUs are validated on Linux", allow_module_level=True)

from .validation_tools import (
    BENCHES,
    facts,
    new_session,
    parts,
    report,
    runner,
    validate_gpu,
    wait_for,
)

FAILED, INTERRUPTED, LEFT_OUT = runner.FAILED, runner.INTERRUPTED, runner.LEFT_OUT
NOT_STARTED, PASSED = runner.NOT_STARTED, runner.PASSED
Failure, Finished, Outcome = runner.Failure, runner.Finished, runner.Outcome
Part, Session = runner.Part, runner.Session


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return new_session(tmp_path)


def saved(session: Session) -> dict:
    return json.loads((session.folder / "report.json").read_text())


def python(session: Session, code: str, **options) -> Finished:
    return session.run([sys.executable, "-S", "-c", code], **options)


def part_of(code: str, name: str = "part", limit: float = 30) -> Part:
    def run(session: Session) -> Outcome:
        done = python(session, code)
        if done.code != 0 or done.timed_out:
            return Outcome.failed(name, done.ending)
        return Outcome(PASSED, done.output.strip())

    return Part(name, run, limit)


def statuses(session: Session) -> dict[str, str]:
    return {part["name"]: part["status"] for part in saved(session)["parts"]}


def is_alive(pid: int) -> bool:
    try:
        # A zombie that nobody reaps is dead, too.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---- parts and processes ----


def test_parts_fail_each_for_itself(session: Session) -> None:
    def broken(session: Session) -> Outcome:
        raise KeyError("gone")

    codes = {
        "well": "print('fine')",
        "badly": "raise SystemExit(3)",
        "crash": "import os; os.abort()",
        "after": "print('still here')",
    }
    fakes = [part_of(code, name) for name, code in codes.items()]
    session.execute([*fakes[:3], Part("broken", broken, 10), fakes[3]])
    assert list(statuses(session).values()) == [PASSED, FAILED, FAILED, FAILED, PASSED]
    assert [part["summary"] for part in saved(session)["parts"]] == [
        *("fine", "exited with 3", "was killed by SIGABRT", "KeyError: 'gone'", "still here")
    ]
    log = session.log.read_text()
    assert "==== crash ====" in log and "still here" in log and "Traceback" in log
    assert report.exit_code(session) == saved(session)["exit_code"] == 1


def test_a_missing_program_is_no_crash(session: Session) -> None:
    done = session.run(["/nowhere/at-all"])
    assert done.code == 127 and "at-all" in done.output


def begun(code: str, log: Path) -> subprocess.Popen:
    """A group of processes that has started, and says so in the log."""
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-S", "-u", "-c", code], stdout=stream, preexec_fn=os.setpgrp
        )
    wait_for(lambda: "begun" in log.read_text())
    return process


def test_a_group_that_ignores_signals_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grace = ((signal.SIGINT, 0.2), (signal.SIGTERM, 0.2), (signal.SIGKILL, 5.0))
    monkeypatch.setattr(runner, "GRACE", grace)
    code = (
        "import os, signal, time\n"
        "for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, signal.SIG_IGN)\n"
        "pid = os.fork()\n"
        "if pid: print('begun', pid)\n"
        "time.sleep(60)"
    )
    process = begun(code, tmp_path / "log")
    runner.end_group(process)
    assert process.returncode == -signal.SIGKILL
    child = int((tmp_path / "log").read_text().split()[1])
    wait_for(lambda: not is_alive(child))


def test_what_reacts_to_an_interrupt_may_finish(tmp_path: Path) -> None:
    code = (
        "import time\n"
        "try: print('begun'); time.sleep(60)\n"
        "except KeyboardInterrupt: print('wrote it')"
    )
    process = begun(code, tmp_path / "log")
    runner.end_group(process)
    assert process.returncode == 0 and "wrote it" in (tmp_path / "log").read_text()


def test_timeout(session: Session) -> None:
    done = session.run(["sleep", "60"], limit=0.2)
    assert done.timed_out and done.seconds < 30 and done.ending.startswith("timed out after")


def test_children_do_not_outlive_a_part_that_ends_well(session: Session) -> None:
    code = "import os, time\npid = os.fork()\nif pid: print(pid)\nelse: time.sleep(60)"
    done = python(session, code)
    assert done.code == 0
    wait_for(lambda: not is_alive(int(done.output)))


def test_time_is_shared(session: Session) -> None:
    granted = {}

    def part(name: str, **options) -> Part:
        def run(session: Session) -> Outcome:
            granted[name] = session.remaining()
            return Outcome(PASSED)

        return Part(name, run, **options)

    session.limit = 50
    session.execute(
        [
            part("short", limit=10),
            part("long", limit=1000, reserve=5),
            part("modest", limit=1000, reserve=20, minimum=15),
            part("too long", limit=1000, reserve=15, minimum=70),
        ]
    )
    # 50 s less what the parts behind it keep for themselves.
    assert granted == {
        "short": pytest.approx(10, abs=1),
        "long": pytest.approx(15, abs=1),
        "modest": pytest.approx(35, abs=1),
    }
    assert statuses(session)["too long"] == NOT_STARTED
    assert session.outcomes["too long"].summary == "no time was left"
    assert report.exit_code(session) == 3
    assert "1 part not started" in report.summary(session)


def test_long_output_is_cut_in_the_log_alone(session: Session) -> None:
    session.execute([part_of("print('a' * 3_000_000 + 'END')")])
    assert session.outcomes["part"].summary.endswith("END")
    log = session.log.read_text()
    assert len(log) < 1_500_000 and "bytes left out" in log and "END" in log


def test_reports_name_no_folders_of_this_machine(session: Session) -> None:
    session.execute([part_of("import os; print(os.getcwd() + '/x')"), part_of("1/0", "bad")])
    text = f"{session.scratch}/y {session.root}/z"
    session.outcomes["bad"].failures = [Failure("f", text)]
    report.save(session)
    for name in ("report.json", "report.md", "log.txt"):
        content = (session.folder / name).read_text()
        assert str(session.root) not in content and str(session.scratch) not in content, name
    assert "./x" in session.log.read_text() and "./z" in report.summary(session)


def test_a_report_that_cannot_be_written_stops_nothing(session: Session) -> None:
    session.folder.joinpath("report.json").mkdir()
    session.execute([part_of("print(1)", "one"), part_of("print(2)", "two")])
    assert [outcome.status for outcome in session.outcomes.values()] == [PASSED, PASSED]


def hanging_validation(folder: Path) -> subprocess.Popen:
    """A validation of three parts, the second of which hangs."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.test_validate_gpu import *\n"
        f"folder = Path({str(folder)!r})\n"
        "s = Session(folder, folder, folder, limit=60, save=report.save, say=print)\n"
        "hang = 'import os, time; print(f\"begun {os.getpid()}\", flush=True); time.sleep(60)'\n"
        "s.execute([part_of('', 'one'), part_of(hang, 'two'), part_of('', 'three')])\n"
        "print(report.summary(s))\n"
        "sys.exit(report.exit_code(s))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=BENCHES.parent
    )
    log = folder / "log.txt"
    wait_for(lambda: log.exists() and re.search(r"^begun \d+\n", log.read_text(), re.M), 60)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_leave_a_report(tmp_path: Path, number: int) -> None:
    process = hanging_validation(tmp_path)
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 3
    data = json.loads((tmp_path / "report.json").read_text())
    assert [part["status"] for part in data["parts"]] == [PASSED, INTERRUPTED, NOT_STARTED]
    ended = f"ended by {signal.Signals(number).name}"
    assert ended in output and ended in (tmp_path / "report.md").read_text()


def test_killed_it_leaves_what_was_done_and_no_process(tmp_path: Path) -> None:
    process = hanging_validation(tmp_path)
    process.kill()
    process.communicate(timeout=30)
    data = json.loads((tmp_path / "report.json").read_text())
    assert [part["status"] for part in data["parts"]] == [PASSED, NOT_STARTED, NOT_STARTED]
    pid = int(re.search(r"^begun (\d+)", (tmp_path / "log.txt").read_text(), re.M)[1])
    wait_for(lambda: not is_alive(pid))


# ---- the report ----


def test_failures_come_first(session: Session) -> None:
    session.facts.update(device="Some GPU", cuda=True, driver="1.2", torch="2.11", commit="abc")
    session.outcomes = {
        "good": Outcome(PASSED, "fine", details={"skips": {"no | pipe": 2}}),
        "bad": Outcome(FAILED, "1 failed", [Failure("test_x", "assert 1 == 2\nmore")]),
        "away": Outcome(LEFT_OUT, "not here"),
    }
    page = report.markdown(session)
    order = ["# Validation on Some GPU", "1 failure", "assert 1 == 2", "| bad", "| good", "| away"]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert "no \\| pipe" in page and "rehearsal" not in page
    text = report.summary(session)
    places = [text.index(x) for x in ("FAILED bad: test_x", "| bad", "driver 1.2", "commit abc")]
    assert places == sorted(places)


def test_summary_fits_into_the_end_of_a_log(session: Session) -> None:
    failures = [Failure(f"test_{i}" * 10, "long line " * 100) for i in range(500)]
    session.outcomes = {"tests": Outcome(FAILED, "500 failed", failures)}
    session.folder.joinpath("benchmark.md").write_text("prose\n" + "| a    case |\n" * 5000)
    text = report.summary(session)
    assert len(text) < 12_000 and "| a case |" in text and "prose" not in text
    assert "... and 485 more" in text and "benchmark.md" in text


def test_names_of_folders(tmp_path: Path) -> None:
    assert report.slug("NVIDIA H200") == "nvidia-h200"
    assert report.slug("NVIDIA GeForce RTX 4090") == "nvidia-geforce-rtx-4090"
    assert report.slug("Intel(R) Xeon(R) CPU @ 2.60GHz") == "intel-xeon-cpu-2-60ghz"
    assert report.slug("...") == "unknown"
    first = validate_gpu.new_folder(tmp_path, "NVIDIA H200", "abc123-dirty")
    assert first.parent == tmp_path / "nvidia-h200" and first.name.endswith("-abc123-dirty")
    first.mkdir(parents=True)
    assert validate_gpu.new_folder(tmp_path, "NVIDIA H200", "abc123-dirty") != first


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_commit(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    assert validate_gpu.git_commit(tmp_path) == "unknown"
    subprocess.run([*git, "init", "-q"], check=True)
    tmp_path.joinpath("a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "a"], check=True)
    commit = validate_gpu.git_commit(tmp_path)
    assert commit.isalnum() and len(commit) >= 7
    results = tmp_path / "benches" / "results"
    results.mkdir(parents=True)
    results.joinpath("report.json").touch()
    assert validate_gpu.git_commit(tmp_path) == commit
    tmp_path.joinpath("a").write_text("2")
    assert validate_gpu.git_commit(tmp_path) == f"{commit}-dirty"
    assert validate_gpu.git_commit(results.parent) == "unknown"


def test_whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def some(session: Session) -> Outcome:
        session.facts.update(device="Some GPU", cuda=True)
        for name in ("benchmark.md", "benchmark.json"):
            session.folder.joinpath(name).write_text("new")
        return Outcome(PASSED, "yes")

    monkeypatch.setattr(parts, "all_parts", lambda quick, limit: [Part("some", some, 10)])
    out = tmp_path / "out"
    out.mkdir()
    out.joinpath("benchmark-ratios.png").write_text("of an earlier run")
    code = validate_gpu.main(["--quick", "--output", str(out), "--commit", "abc"])
    assert code == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"report.md", "report.json", "log.txt", "benchmark.md", "benchmark.json"}
    assert names <= set(report.FILES) and len(report.FILES) <= 8
    data = json.loads(out.joinpath("report.json").read_text())
    assert (data["commit"], data["mode"], data["limit"]) == ("abc", "quick", 170)
    assert capsys.readouterr().out.rstrip().endswith(f"report: {out}")


def test_facts_of_this_machine() -> None:
    assert facts.cpu_name()
    assert facts.output_of(["/nowhere/at-all"]) == ""
    assert facts.output_of(["sleep", "5"], timeout=0.1) == ""
    assert facts.output_of(["false"]) == ""
