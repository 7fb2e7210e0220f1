"""`pytest benches/` as a user types it, on a few of its cases."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark")

ROOT = Path(__file__).resolve().parents[1]
# One small layer, two formulations.
CHOSEN = "conv_first and forward and not backward and (dasr_ops or official) and not compiled"
N_CHOSEN = 2


def suite(*arguments: object, select: str = CHOSEN) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "benches/", "-p", "no:cacheprovider"]
    command += ["--benchmark-device", "cpu", *map(str, arguments), "-k", select]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_without_a_flag_each_case_is_checked_once() -> None:
    result = suite()
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{N_CHOSEN} passed" in result.stdout
    assert "times faster" not in result.stdout


@pytest.mark.parametrize("flag", ["--benchmark", "--benchmark-only"])
def test_figures(flag: str, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    result = suite(flag, "--benchmark-seconds", 0.1, "--benchmark-json", path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{N_CHOSEN} passed" in result.stdout
    table = result.stdout.partition("times faster than the official formulation")[2]
    assert "6 x 3->64 3x3, 64x64" in table
    figures = json.loads(path.read_text())
    (row,) = figures["dasr_ops"]["cases"]
    assert [entry["peer"] for entry in row["results"]] == ["dasr_ops", "official"]
    for benchmark, entry in zip(figures["benchmarks"], row["results"], strict=True):
        assert "data" not in benchmark["stats"]
        # pytest-benchmark shows the interleaved times, not those of calls it made itself.
        assert benchmark["stats"]["median"] == pytest.approx(entry["median"], rel=1e-4)
        assert benchmark["stats"]["rounds"] == entry["rounds"] > 1
        assert benchmark["extra_info"]["ratio"] == pytest.approx(entry["ratio"], rel=1e-4)


def test_unknown_device() -> None:
    result = suite("--benchmark-device", "tpu")
    assert result.returncode != 0
    assert "--benchmark-device" in result.stderr + result.stdout
