"""The command: exit codes, one line for each bad file, and nothing half written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("tyro", reason="the commands parse their arguments by tyro")

from dasr_ops.cli import main
from dasr_ops.cli import upscale as command
from dasr_ops.models import (
    DASR,
    Degradation_Predictor,
    MSRResNetDynamic,
    Upscaler,
    load_dasr,
    save_dasr,
)
from dasr_ops.models.pictures import formats, writing
from dasr_ops.version import __version__


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    net_g = MSRResNetDynamic(num_feat=4, num_block=1, num_models=2, upscale=2)
    model = DASR(net_g, Degradation_Predictor(nf=4, num_networks=2))
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_dasr(model, path)
    save_dasr(model, path.with_name("g.pth"), path.with_name("p.pth"))
    return path


def _picture(path: Path, size: tuple[int, int] = (12, 9), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def _upscale(*arguments: object) -> int:
    return main(["upscale", *map(str, arguments)])


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dasr-ops {__version__}\n"
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "upscale" in text
    assert "convert" in text
    for name in ("upscale", "convert"):
        assert main([name, "--help"]) == 0
        assert f"dasr {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["enlarge"],
        ["upscale"],
        ["upscale", "a.png"],
        ["upscale", "-o", "out"],
        ["upscale", "a.png", "-o", "out", "--tile", "x"],
        ["upscale", "a.png", "-o", "out", "--tile", "-1"],
        ["upscale", "a.png", "-o", "out", "--tile", "32", "--overlap", "16"],
        ["upscale", "a.png", "-o", "out", "--no-such-option"],
        ["upscale", "a.png", "-o", "out", "--format", "gif"],
        ["upscale", "a.png", "-o", "out", "--weights", "model.onnx"],
        ["convert", "a.safetensors"],
        ["convert", "a", "b", "c", "-o", "d.safetensors"],
    ],
)
def test_usage_errors(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_one_picture(tmp_path, weights):
    source = _picture(tmp_path / "a.png")
    assert _upscale(source, "-o", tmp_path / "b.png", "--weights", weights) == 0
    with Image.open(source) as image, Image.open(tmp_path / "b.png") as result:
        expected = Upscaler(load_dasr(weights), dtype=torch.float32)(image)
        assert np.array_equal(np.asarray(result), np.asarray(expected))


@pytest.mark.parametrize("order", ["first", "last", "pair"])
def test_weights_may_stand_anywhere(tmp_path, weights, order):
    source, target = _picture(tmp_path / "a.png"), tmp_path / "b.png"
    arguments = {
        "first": ["--weights", weights, source, "-o", target],
        "last": [source, "-o", target, "--weights", weights],
        "pair": [
            *("--weights", weights.with_name("p.pth"), weights.with_name("g.pth"), source),
            *("-o", target),
        ],
    }[order]
    assert _upscale(*arguments, "--quiet") == 0
    assert target.is_file()


def test_tree_with_options(tmp_path, weights, capsys):
    _picture(tmp_path / "in" / "a.png")
    _picture(tmp_path / "in" / "b" / "c.bmp", (40, 50))
    options = ["--weights", weights, "--suffix", "_x2", "--format", "webp", "--tile", 20]
    options += ["--overlap", 3, "--device", "cpu", "--dtype", "bfloat16"]
    assert _upscale(tmp_path / "in", "-o", tmp_path / "out", *options) == 0
    sizes = {}
    for path in (tmp_path / "out").rglob("*.*"):
        with Image.open(path) as image:
            sizes[str(path.relative_to(tmp_path / "out"))] = image.size
    assert sizes == {"a_x2.webp": (24, 18), "b/c_x2.webp": (80, 100)}
    assert "done: 2, failed: 0" in capsys.readouterr().err


def test_bad_files_are_reported_and_the_others_go_on(tmp_path, weights, capsys):
    good = _picture(tmp_path / "in" / "good.png")
    jpeg = _picture(tmp_path / "in" / "cut.jpg", (80, 80))
    jpeg.write_bytes(jpeg.read_bytes()[:-800])
    (tmp_path / "in" / "text.png").write_text("hello")
    wide = _picture(tmp_path / "in" / "wide.webp", (16000, 1))
    code = _upscale(
        tmp_path / "in", tmp_path / "no.png", "-o", tmp_path / "out", "--weights", weights
    )
    assert code == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4
    for path, reason in (
        (jpeg, "truncated"),
        (tmp_path / "in" / "text.png", "not a picture"),
        (wide, "32000x2 pixels do not fit into WEBP"),
        (tmp_path / "no.png", "no such file"),
    ):
        (line,) = (line for line in errors if str(path) in line)
        assert reason in line
    assert [p.name for p in (tmp_path / "out").iterdir()] == [good.name]


def test_decompression_bomb_is_one_line(tmp_path, weights, capsys, monkeypatch):
    source = _picture(tmp_path / "a.png")
    monkeypatch.setattr(formats, "MAX_PIXELS", 10)
    assert _upscale(source, "-o", tmp_path / "out", "--weights", weights) == 1
    assert "too large: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unwritable_output_is_one_line(tmp_path, weights, capsys):
    a, b = _picture(tmp_path / "in" / "x" / "a.png"), _picture(tmp_path / "in" / "b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()  # a file where a folder is needed
    assert _upscale(tmp_path / "in", "-o", tmp_path / "out", "--weights", weights) == 1
    (line,) = (t for t in capsys.readouterr().err.splitlines() if t.startswith("error: "))
    assert str(a) in line
    assert "cannot be written" in line
    assert (tmp_path / "out" / b.name).is_file()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "a smaller --tile needs less"),
        (MemoryError(), "a smaller --tile needs less"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B"),
            "a smaller --tile needs less",
        ),
        (ZeroDivisionError("strange\nthing"), "ZeroDivisionError: strange thing"),
    ],
)
def test_failures_inside_are_one_line(tmp_path, weights, capsys, monkeypatch, error, line):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Upscaler, "__call__", fail)
    source = _picture(tmp_path / "a.png")
    assert _upscale(source, "-o", tmp_path / "out", "--weights", weights) == 1
    (reported,) = (t for t in capsys.readouterr().err.splitlines() if t.startswith("error: "))
    assert reported.endswith(line)


def test_existing_results_are_kept_unless_told_otherwise(tmp_path, weights, capsys):
    sources = [_picture(tmp_path / "in" / name) for name in ("a.png", "b.png")]
    before = [source.read_bytes() for source in sources]
    arguments = [tmp_path / "in", "-o", tmp_path / "out", "--weights", weights]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_text("mine")
    assert _upscale(*arguments) == 0
    assert "skipped, since they exist (see --overwrite): 1" in capsys.readouterr().err
    assert (tmp_path / "out" / "a.png").read_text() == "mine"
    assert (tmp_path / "out" / "b.png").is_file()
    assert _upscale(*arguments, "--overwrite") == 0
    assert (tmp_path / "out" / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert [source.read_bytes() for source in sources] == before
    assert _upscale(tmp_path / "in", "-o", tmp_path / "in", "--overwrite") == 2


def test_warnings_are_one_line_and_quiet_silences_them(tmp_path, weights, capsys):
    source = _picture(tmp_path / "a.png", mode="RGBA")
    arguments = [source, "-o", tmp_path / "a.jpg", "--weights", weights, "--overwrite"]
    assert _upscale(*arguments) == 0
    expected = f"warning: {source}: JPEG does not hold transparency: placed on white"
    assert expected in capsys.readouterr().err.splitlines()
    assert _upscale(*arguments, "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_weights_that_cannot_be_used(tmp_path, weights, capsys, monkeypatch):
    from dasr_ops.models import upscale as engine

    source = _picture(tmp_path / "a.png")
    monkeypatch.setattr(engine, "DEFAULT_WEIGHTS", tmp_path / "none.safetensors")
    assert _upscale(source, "-o", tmp_path / "out") == 2
    assert "this build comes without weights" in capsys.readouterr().err
    assert _upscale(source, "-o", tmp_path / "out", "--weights", tmp_path / "no.pth") == 2
    assert f"--weights: {tmp_path / 'no.pth'}: no such file" in capsys.readouterr().err
    monkeypatch.setattr(engine, "DEFAULT_WEIGHTS", weights)
    assert _upscale(source, "-o", tmp_path / "out") == 0
    for device in ("nonsense", "cuda:99"):
        assert _upscale(source, "-o", tmp_path / "out2", "--device", device) == 2
        assert f"--device {device}: " in capsys.readouterr().err


def test_ranks_share_the_work(tmp_path, weights, monkeypatch):
    for name in "abcde":
        _picture(tmp_path / "in" / f"{name}.png")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, names in (("0", "ace"), ("1", "bd")):
        monkeypatch.setenv("RANK", rank)
        out = tmp_path / rank
        assert _upscale(tmp_path / "in", "-o", out, "--weights", weights) == 0
        assert sorted(p.stem for p in out.iterdir()) == list(names)


def test_progress_counts_tiles(tmp_path, weights):
    class Bar:
        total = count = 0

        def reset(self, total: int) -> None:
            self.total, self.count = total, 0

        def update(self, n: int) -> None:
            self.count += n

    bar = Bar()
    upscaler = Upscaler(load_dasr(weights), tile=10, overlap=2)
    upscaler(np.zeros((20, 25, 3), np.uint8), progress=command._progress(bar))
    assert bar.count == bar.total == 4 * 5


def test_convert(tmp_path, weights, capsys):
    g, p, back = tmp_path / "g.pth", tmp_path / "p.pth", tmp_path / "back.safetensors"
    assert main(["convert", str(weights), "-o", str(g), str(p)]) == 0
    assert main(["convert", str(p), str(g), "-o", str(back), "--half"]) == 0
    for name, tensor in load_dasr(weights).state_dict().items():
        assert torch.equal(load_dasr(g, p).state_dict()[name], tensor)
        assert torch.equal(load_dasr(back).state_dict()[name], tensor.half().float())
    capsys.readouterr()
    assert main(["convert", str(weights), "-o", str(back)]) == 2
    assert "exists; see --overwrite" in capsys.readouterr().err
    assert main(["convert", str(weights), "-o", str(back), "--overwrite"]) == 0
    assert main(["convert", str(weights), "-o", str(weights), "--overwrite"]) == 2
    assert main(["convert", str(tmp_path / "no.pth"), "-o", str(tmp_path / "x.safetensors")]) == 1
    assert "no such file" in capsys.readouterr().err
    assert main(["convert", str(weights), "-o", str(tmp_path / "x.txt")]) == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_mid_write_leaves_no_half_file(tmp_path, weights, monkeypatch, number, code):
    """The process gets the signal after it has written half of a picture."""
    source, target = _picture(tmp_path / "a.png"), tmp_path / "out" / "b.png"
    before = signal.getsignal(signal.SIGTERM)

    def write_png(file, picture):
        file.write(b"half")
        os.kill(os.getpid(), number)
        time.sleep(10)
        raise AssertionError("the signal did not arrive")

    monkeypatch.setattr(writing, "write_png", write_png)
    assert _upscale(source, "-o", target, "--weights", weights) == code
    assert list(target.parent.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_python_m(tmp_path, weights):
    source = _picture(tmp_path / "a.png")
    (tmp_path / "bad.png").write_text("hello")
    command = [sys.executable, "-m", "dasr_ops", "upscale", str(source), str(tmp_path / "bad.png")]
    result = subprocess.run(
        [*command, "-o", str(tmp_path / "out"), "--weights", str(weights)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "out" / "a.png").is_file()
