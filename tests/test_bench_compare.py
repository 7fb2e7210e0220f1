"""``benches/compare.py`` finds what became worse, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benches" / "compare.py"
spec = importlib.util.spec_from_file_location("bench_compare", SCRIPT)
compare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare)


def result(peer: str, ratio: float, **fields) -> dict:
    interval = {"ratio_low": ratio * 0.98, "ratio_high": ratio * 1.02}
    exactness = {"error": 3e-7, "bar": 3e-6, "peak_memory": 50_000_000}
    return {"peer": peer, "median": 1e-3, "ratio": ratio, **interval, **exactness, **fields}


def report(count: int = 3) -> dict:
    results = [result("dasr_ops", 2.0), result("official", 1.0), result("loop", 0.5)]
    cases = [
        {"id": f"group:_layer_{i}/K=5/forward", "dtype": "float32", "results": deepcopy(results)}
        for i in range(count)
    ]
    machine = {"device": "cpu", "name": "CPU", "threads": 2, "torch": "2.13.0"}
    return {"format": 1, "selection": "quick", "machine": machine, "left_out": [], "cases": cases}


def ours(changed: dict, case: int = 0) -> dict:
    return changed["cases"][case]["results"][0]


def found(new: dict, old: dict | None = None) -> list[str]:
    """Compare with `report` and return what is worse, then what is better."""
    outcome = compare.compare(old or report(), new)
    return [finding.what for finding in outcome.worse + outcome.better]


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture):
    def run(old: object, new: object, *options: str) -> tuple[int, str, str]:
        files = [write(tmp_path / "old.json", old), write(tmp_path / "new.json", new)]
        code = compare.main([*map(str, files), *options])
        return code, *capsys.readouterr()

    return run


def test_equal_reports_have_nothing_worse(run) -> None:
    code, out, _ = run(report(), report())
    assert code == 0
    assert "WORSE" not in out
    assert "100.0 % of 6 ratios agree within 10 %." in out


@pytest.mark.parametrize(
    ("ratio", "width", "expected"),
    [
        (1.6, 0.02, ["slower"]),
        (2.5, 0.02, ["faster"]),
        (1.93, 0.001, []),  # below the threshold, however sure
        (2.07, 0.001, []),
        (1.6, 0.3, []),  # beyond the threshold, inside the noise
        (2.5, 0.3, []),
    ],
)
def test_speed_needs_threshold_and_intervals(ratio, width, expected) -> None:
    new = report()
    interval = {"ratio_low": ratio * (1 - width), "ratio_high": ratio * (1 + width)}
    ours(new).update(ratio=ratio, **interval)
    assert found(new) == expected


def test_threshold_is_an_option(run) -> None:
    new = report()
    ours(new).update(ratio=1.6, ratio_low=1.58, ratio_high=1.62)
    assert run(report(), new)[0] == 1
    assert run(report(), new, "--threshold", "0.25")[0] == 0
    with pytest.raises(SystemExit) as caught:
        run(report(), new, "--threshold", "nan")
    assert caught.value.code == 2


def test_slower_peers_are_no_regression() -> None:
    new = report()
    new["cases"][0]["results"][2] = result("loop", 0.1)
    assert found(new) == []


@pytest.mark.parametrize(
    ("dtype", "old_error", "new_error", "expected"),
    [
        ("float32", 3e-7, 4e-7, []),
        ("float32", 3e-7, 6e-7, ["less exact"]),
        ("float32", 1e-8, 5e-8, []),  # below a roundoff
        ("bfloat16", 1e-7, 1e-6, []),
        ("float32", 2.9e-6, 3.1e-6, ["less exact"]),  # over the bar
        ("float32", 4e-6, 5e-6, []),  # was over it before
        ("float32", 0.0, 5e-7, ["less exact"]),
        ("float32", 6e-7, 3e-7, ["more exact"]),
    ],
)
def test_exactness(dtype, old_error, new_error, expected) -> None:
    old, new = report(), report()
    old["cases"][0]["dtype"] = new["cases"][0]["dtype"] = dtype
    ours(old)["error"], ours(new)["error"] = old_error, new_error
    assert found(new, old) == expected


def test_tfloat32_has_its_own_roundoff() -> None:
    old, new = report(), report()
    ours(old).update(error=1e-4, bar=1e-3)
    ours(new).update(error=3e-4, bar=1e-3)
    assert found(new, old) == ["less exact"]
    for changed in (old, new):
        changed["cases"][0]["tf32"] = True
    assert found(new, old) == []


@pytest.mark.parametrize("error", [math.nan, math.inf, None])
def test_no_finite_error_is_less_exact(run, error) -> None:
    new = report()
    ours(new)["error"] = error
    code, out, _ = run(report(), new)
    assert code == 1
    assert "no finite error" in out


@pytest.mark.parametrize("field", ["ratio", "ratio_low", "median", "peak_memory"])
@pytest.mark.parametrize("value", [math.nan, math.inf, None, 10**400, "1", True])
def test_odd_values_survive(run, field, value) -> None:
    old, new = report(), report()
    ours(old)[field] = ours(new)[field] = value
    assert run(old, new, "--agreement")[0] == 0


@pytest.mark.parametrize(
    ("size", "expected"),
    [(60_000_000, []), (70_000_000, ["larger"]), (30_000_000, ["smaller"])],
)
def test_peak_memory(size, expected) -> None:
    new = report()
    ours(new)["peak_memory"] = size
    assert found(new) == expected


def test_little_memory_may_double() -> None:
    old, new = report(), report()
    ours(old)["peak_memory"], ours(new)["peak_memory"] = 900_000, 1_800_000
    assert found(new, old) == []


def test_missing_case_says_why(run) -> None:
    new = report()
    del new["cases"][1:]
    new["left_out"] = [{"case": "group:_layer_1/K=5", "reason": "the budget was used up"}]
    code, out, _ = run(report(), new)
    assert code == 1
    assert out.count("missing") == 2
    assert "group:_layer_1/K=5/forward  the budget was used up" in out
    assert "group:_layer_2/K=5/forward  not in the new report" in out


def test_another_selection_is_no_loss(run) -> None:
    new = report(2)
    new["selection"] = "default"
    code, out, _ = run(report(), new)
    assert code == 0
    assert "1 cases are only in the old report" in out


@pytest.mark.parametrize(
    ("peer", "word"), [(0, "skipped"), (0, "failed"), (1, "skipped"), (1, "failed")]
)
def test_ours_and_the_official_must_stay(run, peer, word) -> None:
    new = report()
    results = new["cases"][0]["results"]
    results[peer] = {"peer": results[peer]["peer"], word: "out of memory"}
    if peer == 1:
        ours(new)["ratio"] = None
    code, out, _ = run(report(), new)
    assert code == 1
    assert f"{('dasr_ops', 'official')[peer]} {word}: out of memory" in out


def test_other_peers_may_go(run) -> None:
    new = report()
    new["cases"][0]["results"][2] = {"peer": "loop", "skipped": "out of memory"}
    code, out, _ = run(report(), new)
    assert code == 0
    assert "no longer measured: group:_layer_0/K=5/forward: loop skipped: out of memory" in out


def test_worst_comes_first() -> None:
    new = report(5)
    for case, ratio in enumerate((1.5, 0.5, 1.0)):
        ours(new, case).update(result("dasr_ops", ratio))
    ours(new, 3)["error"] = 1e-5
    del new["cases"][4]
    outcome = compare.compare(report(5), new)
    assert [finding.case[13] for finding in outcome.worse] == ["4", "3", "1", "2", "0"]
    assert outcome.worse[2].factor == pytest.approx(4)


def test_agreement_counts_all_peers_but_the_official(run) -> None:
    new = report(5)
    ours(new, 0).update(result("dasr_ops", 2.2))  # 10 %: agrees
    ours(new, 1).update(result("dasr_ops", 2.21))
    new["cases"][2]["results"][2] = result("loop", 0.25)
    new["cases"][3]["results"][2] = {"peer": "loop", "skipped": "no"}
    new["cases"][4]["results"][1] = result("official", 5.0)
    code, out, _ = run(report(5), new, "--agreement")
    assert code == 0
    assert "77.8 % of 9 ratios agree within 10 %." in out
    worst = out.split("agree within")[1].splitlines()[2]
    assert worst.split() == ["loop", "0.5x", "0.25x", "2.00x", "group:_layer_2/K=5/forward"]


def test_no_common_ratio(run) -> None:
    old = report(1)
    old["cases"][0]["results"] = []
    assert "No ratio is in both reports." in run(old, report(1))[1]


@pytest.mark.parametrize("key", ["threads", "torch", "name", "cuda"])
def test_other_machines_are_told(run, key) -> None:
    new = report()
    new["machine"][key] = "other"
    code, out, _ = run(report(), new)
    assert code == 0
    assert "WARNING" in out
    assert f"{key} {report()['machine'].get(key)} -> other" in out
    assert "Ratios are compared all the same" in out


def test_other_commit_is_the_point(run) -> None:
    new = report()
    new["machine"]["commit"] = "other"
    assert "WARNING" not in run(report(), new)[1]


def test_pytest_benchmark_carries_a_report(run) -> None:
    new = report()
    ours(new).update(result("dasr_ops", 1.0))
    wrapped = {"machine_info": {}, "benchmarks": [], "dasr_ops": new}
    code, out, _ = run(report(), wrapped)
    assert code == 1
    assert "slower" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("3", "not a benchmark report"),
        ({"cases": []}, "not a benchmark report"),
        ({"benchmarks": [], "machine_info": {}}, "without a report"),
        ({**report(), "format": 2}, "format 2, expected 1"),
        ({**report(), "cases": {}}, "not what a report has"),
        ({**report(), "cases": [{}]}, "without id"),
        ({**report(), "cases": [{"id": "a", "results": [{}]}]}, "malformed results"),
        ({**report(), "cases": report()["cases"][:1] * 2}, "occurs twice"),
        ({**report(), "cases": []}, "no case in common"),
    ],
)
def test_unusable_input(run, content, message) -> None:
    for pair in ((content, report()), (report(), content)):
        code, out, err = run(*pair)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1


def test_absent_and_binary_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    good = write(tmp_path / "good.json", report())
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    for bad in (tmp_path / "absent.json", tmp_path, binary):
        assert compare.main([str(bad), str(good)]) == 2
        assert capsys.readouterr().err.startswith(f"compare: {bad}: ")


def test_runs_without_any_package(tmp_path: Path) -> None:
    file = write(tmp_path / "report.json", report())
    command = [sys.executable, "-I", "-S", str(SCRIPT), str(file), str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0 worse, 0 better." in done.stdout
