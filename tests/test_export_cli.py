"""``dasr export``: files that run, exit codes, one line for each mistake, nothing half written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("tyro", reason="the commands parse their arguments by tyro")

from dasr_ops.cli import main
from dasr_ops.models import load_srresnet, read_metadata, save_dasr
from dasr_ops.models.export import _onnx, choose_degradation

from .export_tools import pictures, tiny_model

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model():
    return tiny_model(blocks=1)


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_dasr(model, path, metadata={"licence": "CC0-1.0"})
    save_dasr(model, path.with_name("g.pth"), path.with_name("p.pth"))
    return path


def export(*arguments: object) -> int:
    return main(["export", *map(str, arguments)])


def run_onnx(path: Path, **inputs: torch.Tensor) -> torch.Tensor:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
    return torch.from_numpy(session.run(None, feeds)[0])


def test_help(capsys):
    assert export("--help") == 0
    text = capsys.readouterr().out
    assert "dasr export" in text
    for option in ("--dynamic-batch", "--half", "--degradation", "--format", "--no-check"):
        assert option in text


def test_onnx_of_one_file_and_of_a_pair(model, weights, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    assert export(tmp_path / "a.onnx", "--weights", weights) == 0
    assert "agrees with PyTorch" in capsys.readouterr().err
    pair = weights.with_name("p.pth"), weights.with_name("g.pth")
    # The output may follow the weights, too.
    assert export("--quiet", "--weights", *pair, tmp_path / "b.onnx") == 0
    assert capsys.readouterr().err == ""
    lr = pictures(model, 1, 9, 12)
    with torch.no_grad():
        for name in ("a", "b"):
            sr = run_onnx(tmp_path / f"{name}.onnx", lr=lr)
            torch.testing.assert_close(sr, model(lr), rtol=0, atol=1e-4)
    entries = {e.key: e.value for e in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert entries["licence"] == "CC0-1.0"
    assert "format" not in entries


def test_options_reach_the_file(model, weights, tmp_path):
    pytest.importorskip("onnx")
    path = tmp_path / "a.onnx"
    options = ("--dynamic-batch", "--half", "--degradation-input", "--clip")
    assert export(path, "--weights", weights, *options) == 0
    lr, v = pictures(model, 2, 9, 12), torch.rand(2, 33)
    with torch.no_grad():
        expected = model(lr, degradation=v).clamp(0, 1)
    found = run_onnx(path, lr=lr, degradation=v)
    assert 1e-6 < (found - expected).abs().max() < 0.05


def test_pt2(model, weights, tmp_path):
    assert export(tmp_path / "a.pt2", "--weights", weights, "--no-check") == 0
    lr = pictures(model, 1, 9, 12)
    with torch.no_grad():
        sr = torch.export.load(tmp_path / "a.pt2").module()(lr=lr)
        torch.testing.assert_close(sr, model(lr), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_merged(model, weights, tmp_path, name, capsys):
    path = tmp_path / name
    assert export(path, "--weights", weights, "--degradation", "mean") == 0
    lr, v = pictures(model, 1, 9, 12), choose_degradation(model, "mean")
    with torch.no_grad():
        expected = model(lr, degradation=v)
        torch.testing.assert_close(load_srresnet(path)(lr), expected, rtol=0, atol=1e-4)
    if path.suffix == ".safetensors":
        assert json.loads(read_metadata(path)["degradation"]) == pytest.approx(
            v[0].tolist(), abs=1e-6
        )
    assert export(tmp_path / "d.onnx", "--weights", path, "--degradation-input") == 2
    said = capsys.readouterr().err
    assert "--degradation-input: has no use for these weights" in said
    # A merged network goes on to ONNX, and so does one merged on the way.
    pytest.importorskip("onnx")
    assert export(tmp_path / "b.onnx", "--weights", path) == 0
    options = ("--weights", weights, "--degradation", "mean")
    assert export(tmp_path / "c.onnx", *options) == 0
    for file in ("b.onnx", "c.onnx"):
        found = run_onnx(tmp_path / file, lr=lr)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_existing_files_are_kept_unless_told(weights, tmp_path, capsys):
    path = tmp_path / "a.pth"
    path.write_bytes(b"precious")
    options = ("--weights", weights, "--degradation", "clean")
    assert export(path, *options) == 2
    assert "see --overwrite" in capsys.readouterr().err
    assert path.read_bytes() == b"precious"
    assert export(path, *options, "--overwrite") == 0
    load_srresnet(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one output file, got 0"),
        (["a.onnx", "b.onnx"], "expected one output file, got 2"),
        (["a.tflite"], "expected a name that ends in one of .onnx .pt2 .safetensors .pth"),
        (["a.onnx", "--format", "aoti"], "ends in .pt2 for --format aoti"),
        (["a.onnx", "--format", "merged"], "ends in .safetensors or .pth for --format merged"),
        (["no/folder/a.onnx"], "there is no folder no/folder"),
        (["folder.onnx"], "expected a file, this is a folder"),
        (["a.pth"], "a merged network is for one degradation: give --degradation"),
        (["a.pth", "--degradation", "mean", "--clip"], "--clip: has no use for a merged network"),
        (["a.onnx", "--degradation", "mean", "--predictor-only"], "--predictor-only: has no use"),
        (["a.onnx", "--device", "cuda"], "--device cuda: has no use but for --format aoti"),
        (
            ["a.onnx", "--degradation-input", "--degradation-output"],
            "--degradation-input: has no use with --degradation-output, for then nothing",
        ),
        (
            ["a.pt2", "--degradation-input", "--predictor-only"],
            "--degradation-input: has no use with --predictor-only",
        ),
        (["a.onnx", "--predictor-only", "--half"], "--predictor-only: has no use with --half"),
        (["a.onnx", "--clip", "--predictor-only"], "--predictor-only: has no use with --clip"),
        (
            ["a.onnx", "--predictor-only", "--degradation-output"],
            "--predictor-only: has no use with --degradation-output",
        ),
        (["a.onnx", "--weights", "missing.pth"], "--weights: missing.pth: no such file"),
        (["a.onnx", "--weights", "1.pth", "2.pth", "3.pth"], "expected one or two files, got 3"),
    ],
)
def test_wrong_command_lines(tmp_path, monkeypatch, capsys, arguments, message):
    pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    assert export(*arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


def test_weights_are_never_overwritten(weights, capsys):
    before = weights.read_bytes()
    options = ("--weights", weights, "--degradation", "mean", "--overwrite")
    assert export(weights.parent / "." / weights.name, *options) == 2
    assert "these are the weights" in capsys.readouterr().err
    assert weights.read_bytes() == before


def test_a_missing_package_is_named(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert export(tmp_path / "a.onnx", "--weights", weights) == 1
    assert "pip install 'dasr-ops[export]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_onnxruntime_the_file_is_written_and_it_is_said(
    weights, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("onnx")
    find = _onnx.importlib.util.find_spec
    monkeypatch.setattr(
        _onnx.importlib.util, "find_spec", lambda n: None if n == "onnxruntime" else find(n)
    )
    assert export(tmp_path / "a.onnx", "--weights", weights) == 0
    assert "note: not compared with PyTorch" in capsys.readouterr().err
    assert (tmp_path / "a.onnx").is_file()


def test_a_full_disk_leaves_nothing(weights, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnx")

    def full(self: Path, data: bytes) -> int:
        with open(self, "wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert export(tmp_path / "a.onnx", "--weights", weights) == 1
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith("a.onnx cannot be written: No space left on device")
    )
    assert list(tmp_path.iterdir()) == []


def test_a_terminated_export_leaves_nothing(weights, tmp_path):
    pytest.importorskip("onnx")
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from dasr_ops.cli import main\n"
        "write = Path.write_bytes\n"
        "def slow(self, data):\n"
        "    write(self, data[:100])\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(60)\n"
        "Path.write_bytes = slow\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["export", str(tmp_path / "a.onnx"), "--weights", str(weights), "--no-check"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "writing\n"
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert list(tmp_path.iterdir()) == []
