"""The command: exit codes, one line for each bad file, and nothing half written."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("tyro", reason="the commands parse their arguments by tyro")

from dasr_ops.cli import main, plan, work
from dasr_ops.cli._weights import NAMES_HELP
from dasr_ops.models import (
    DASR,
    Degradation_Predictor,
    MSRResNetDynamic,
    Upscaler,
    load_dasr,
    pictures,
    save_dasr,
    shipped,
)
from dasr_ops.models.controls import Controls
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
        ["upscale", "a.png", "-o", "out", "--denoise", "1.5"],
        ["upscale", "a.png", "-o", "out", "--dejpeg", "nan"],
        ["upscale", "a.png", "-o", "out", "--quality", "0"],
        ["upscale", "a.png", "-o", "out", "--overwrite", "--skip-existing"],
        ["upscale", "*.png"],
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
    options += ["--overlap", 3, "--device", "cpu", "--dtype", "bf16"]
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
    monkeypatch.setattr(pictures.formats, "MAX_PIXELS", 10)
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


def test_results_that_others_make_meanwhile(tmp_path, weights, capsys, monkeypatch):
    for name in ("a.png", "b.png", "c.gif"):
        _picture(tmp_path / "in" / name)
    out = tmp_path / "out"
    arguments = [tmp_path / "in", "-o", out, "--weights", weights]
    real = Upscaler.__call__

    def magnify(self, image, **kwargs):
        for name in ("a.png", "b.png"):
            (out / name).write_text("theirs")
        return real(self, image, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Upscaler, "__call__", magnify)
        assert _upscale(*arguments, "--skip-existing") == 0
    said = capsys.readouterr().err
    assert said.count("exists by now") == 2 and "done: 1, failed: 0" in said
    assert {path.name for path in out.iterdir()} == {"a.png", "b.png", "c.png"}
    assert (out / "a.png").read_text() == (out / "b.png").read_text() == "theirs"
    (out / "b.png").unlink()
    (out / "a.png").unlink()
    (out / "c.png").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Upscaler, "__call__", magnify)
        assert _upscale(*arguments) == 1
    assert "a.png exists; see --overwrite" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="closes by POSIX shells")
@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-"])
def test_streams_that_are_closed(tmp_path, weights, closed):
    _picture(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes(b"x")
    line = f'"{sys.executable}" -m dasr_ops upscale *.png -o out --weights "{weights}" {closed}'
    ended = subprocess.run(line, shell=True, cwd=tmp_path, stdout=subprocess.PIPE, check=False)
    assert ended.returncode == 1 and ended.stdout == b""  # of the one that is broken
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_help_names_the_weights():
    words = re.findall(r"[a-z-]+", NAMES_HELP.partition("(")[0])
    assert tuple(word for word in words if word != "or") == shipped.NAMES


def test_existing_results_are_a_matter_of_choice(tmp_path, weights, capsys):
    sources = [_picture(tmp_path / "in" / name) for name in ("a.png", "b.png")]
    before = [source.read_bytes() for source in sources]
    arguments = [tmp_path / "in", "-o", tmp_path / "out", "--weights", weights]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_text("mine")
    assert _upscale(*arguments) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'out' / 'a.png'} exists already: --overwrite" in error
    assert not (tmp_path / "out" / "b.png").exists()
    assert _upscale(*arguments, "--skip-existing") == 0
    assert "skipped, since they exist: 1" in capsys.readouterr().err
    assert (tmp_path / "out" / "a.png").read_text() == "mine"
    assert (tmp_path / "out" / "b.png").is_file()
    assert _upscale(*arguments) == 2
    assert "a.png and 1 more exists already" in capsys.readouterr().err
    assert _upscale(*arguments, "--overwrite") == 0
    assert (tmp_path / "out" / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert [source.read_bytes() for source in sources] == before
    assert _upscale(tmp_path / "in", "-o", tmp_path / "in", "--overwrite") == 2


def test_a_dry_run_writes_nothing(tmp_path, weights, capsys):
    a = _picture(tmp_path / "in" / "a.png")
    wide = _picture(tmp_path / "in" / "wide.webp", (16000, 1))
    arguments = [tmp_path / "in", "-o", tmp_path / "out", "--weights", weights, "--dry-run"]
    assert _upscale(*arguments, "--scale", 3) == 1
    printed = capsys.readouterr()
    assert printed.out == f"{a} (12x9) -> {tmp_path / 'out' / 'a.png'} (36x27)\n"
    assert f"error: {wide}: 48000x3 pixels do not fit into WEBP" in printed.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("scale", "size"), [(1, (12, 9)), (1.5, (18, 14)), (5, (60, 45))])
def test_any_scale(tmp_path, weights, scale, size):
    source = _picture(tmp_path / "a.png")
    target = tmp_path / "b.png"
    assert _upscale(source, "-o", target, "--weights", weights, "--scale", scale) == 0
    with Image.open(target) as image:
        assert image.size == size


def test_patterns(tmp_path, weights, capsys, monkeypatch):
    for name in ("x/a.png", "x/y/b.png", "x/y/c.txt"):
        _picture(tmp_path / name) if name.endswith("png") else (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert _upscale("x/**/*", "-o", "out", "--weights", weights) == 0
    assert sorted(str(p) for p in Path("out").rglob("*.png")) == ["out/a.png", "out/y/b.png"]
    assert _upscale("z*.png", "-o", "out", "--weights", weights) == 1
    assert "error: z*.png: no pictures or videos match" in capsys.readouterr().err


def test_controls_and_a_given_degradation(tmp_path, weights):
    source = _picture(tmp_path / "a.png", (30, 30))
    model = load_dasr(weights)
    (tmp_path / "v.json").write_text(str([0.25] * 33))
    given = torch.full((1, 33), 0.25)
    for flags, degradation in (
        (["--denoise", 0.5, "--dejpeg", -1], Controls(0.5, 0, -1)),
        (["--degradation", tmp_path / "v.json"], given),
        (["--degradation", tmp_path / "v.json", "--deblur", 1], Controls(0, 1, 0)(given)),
    ):
        arguments = [source, "-o", tmp_path / "b.png", "--weights", weights, "--overwrite"]
        assert _upscale(*arguments, *flags) == 0
        with Image.open(source) as image, Image.open(tmp_path / "b.png") as result:
            expected = Upscaler(model)(image, degradation=degradation)
            assert np.array_equal(np.asarray(result), np.asarray(expected))
    (tmp_path / "v.json").write_text("[1, 2]")
    assert _upscale(*arguments, "--degradation", tmp_path / "v.json") == 2


def test_several_devices_share_the_pictures(tmp_path, weights, monkeypatch):
    """Both are the CPU here; what matters is that each takes its part and all are done."""
    for number in range(6):
        _picture(tmp_path / "in" / f"{number}.png", (12 + number, 9))
    threads, call = set(), Upscaler.__call__
    barrier = threading.Barrier(2, timeout=60)

    def spy(self, *args, **kwargs):
        if threading.get_ident() not in threads:
            threads.add(threading.get_ident())
            barrier.wait()
        return call(self, *args, **kwargs)

    monkeypatch.setattr(Upscaler, "__call__", spy)
    arguments = [tmp_path / "in", "-o", tmp_path / "out", "--weights", weights]
    assert _upscale(*arguments, "--device", "cpu,cpu:0") == 0
    assert len(threads) == 2
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_warnings_are_one_line_and_quiet_silences_them(tmp_path, weights, capsys):
    source = _picture(tmp_path / "a.png", mode="RGBA")
    arguments = [source, "-o", tmp_path / "a.jpg", "--weights", weights, "--overwrite"]
    assert _upscale(*arguments) == 0
    expected = f"warning: {source}: JPEG does not hold transparency: placed on white"
    assert expected in capsys.readouterr().err.splitlines()
    assert _upscale(*arguments, "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_weights_that_cannot_be_used(tmp_path, weights, capsys, monkeypatch):
    source = _picture(tmp_path / "a.png")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "none")
    assert _upscale(source, "-o", tmp_path / "out") == 2
    assert "this build comes without weights" in capsys.readouterr().err
    assert _upscale(source, "-o", tmp_path / "out", "--weights", tmp_path / "no.pth") == 2
    assert f"--weights: {tmp_path / 'no.pth'}: no such file" in capsys.readouterr().err
    shipped.FOLDER.mkdir()
    shutil.copy(weights, shipped.FOLDER / "small.safetensors")
    assert _upscale(source, "-o", tmp_path / "out") == 0
    assert _upscale("--weights", "small", source, "-o", tmp_path / "named") == 0
    assert [path.name for path in (tmp_path / "named").iterdir()] == ["a.png"]
    folder = _picture(tmp_path / "small" / "b.png").parent
    monkeypatch.chdir(tmp_path)
    for number, first in enumerate((weights, "small")):
        assert _upscale("-o", tmp_path / f"after{number}", "--weights", first, folder.name) == 0
        assert (tmp_path / f"after{number}" / "b.png").is_file()
    assert _upscale("--weights", "dasr", source, "-o", tmp_path / "out1") == 2
    message = "--weights: dasr: this build comes without these weights; it has small"
    assert message in capsys.readouterr().err
    assert _upscale("--weights", "large", source, "-o", tmp_path / "out1") == 2
    assert (
        "--weights large: expected small, small-gan, dasr, dasr-gan or a" in capsys.readouterr().err
    )
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


def test_ranks_agree_on_what_exists(tmp_path, weights, monkeypatch, capsys):
    for name in "ab":
        _picture(tmp_path / "in" / f"{name}.png")
    _picture(tmp_path / "out" / "b.png")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert _upscale(tmp_path / "in", "-o", tmp_path / "out", "--weights", weights) == 2
    assert not (tmp_path / "out" / "a.png").exists()
    for rank, world in (("2", "2"), ("x", "2"), ("0", None)):
        monkeypatch.setenv("RANK", rank)
        if world is None:
            monkeypatch.delenv("WORLD_SIZE")
        assert _upscale(tmp_path / "in", "-o", tmp_path / "out", "--weights", weights) == 2
        assert "expected 0 <= RANK < WORLD_SIZE" in capsys.readouterr().err


def test_warnings_of_other_threads_are_not_lost(tmp_path, weights, capsys):
    """Reading the next picture must not silence what writing the last one says."""
    for number in range(8):
        _picture(tmp_path / "in" / f"{number}.png", (60, 40), mode="RGBA")
    arguments = [tmp_path / "in", "-o", tmp_path / "out", "--weights", weights, "--format", "jpg"]
    assert _upscale(*arguments, "--device", "cpu,cpu:0") == 0
    lines = capsys.readouterr().err.splitlines()
    assert sum("JPEG does not hold transparency: placed on white" in line for line in lines) == 8


def test_results_beyond_memory_are_one_line(tmp_path, weights, capsys, monkeypatch):
    source = _picture(tmp_path / "a.png")
    monkeypatch.setattr(work, "free_bytes", lambda device: 1000)
    assert _upscale(source, "-o", tmp_path / "out", "--weights", weights) == 1
    assert "the result takes 0.0 GB of memory" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent to a process")
def test_many_signals_end_once_and_clean(tmp_path, weights):
    frames = [Image.new("RGB", (200, 200), (level, 0, 0)) for level in range(0, 250, 2)]
    frames[0].save(tmp_path / "long.gif", save_all=True, append_images=frames[1:])
    command = [sys.executable, "-m", "dasr_ops", "upscale", str(tmp_path / "long.gif")]
    command += ["-o", str(tmp_path / "out" / "long.gif"), "--weights", str(weights)]
    process = subprocess.Popen([*command, "--tile", "16", "--overlap", "1"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (tmp_path / "out").is_dir():
        time.sleep(0.02)
    time.sleep(0.3)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.03)
    _, error = process.communicate(timeout=120)
    # The last signal may meet an interpreter that is done and takes no more of them.
    assert process.returncode in (130, -signal.SIGINT), error
    assert b"Traceback" not in error
    assert list((tmp_path / "out").iterdir()) == []


def test_progress_is_the_share_of_the_work(capsys):
    jobs = [plan.Job(Path(name), Path("out") / name) for name in ("a.png", "b.png")]
    report = work.Report(2, quiet=False)
    for share in (0.25, 0.5, 1.0):
        report.part(jobs[0], share)
    report.success(jobs[0], 3_000_000)
    report.part(jobs[1], 0.5)
    report.failure(jobs[1], "broken")
    assert report.shown == 2.0
    report.close()
    printed = capsys.readouterr().err
    assert "error: b.png: broken" in printed
    assert "done: 1, failed: 1; 3.0 megapixels in " in printed


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_mid_write_leaves_no_half_file(tmp_path, weights, monkeypatch, number, code):
    """The process gets the signal while it writes the first of two pictures."""
    for name in ("a.png", "b.png"):
        _picture(tmp_path / "in" / name, (200, 200))
    before = signal.getsignal(signal.SIGTERM)
    write, written = pictures.write_picture, []

    def interrupted(picture, path, **kwargs):
        written.append(path)
        os.kill(os.getpid(), number)
        time.sleep(0.2)
        write(picture, path, **kwargs)

    monkeypatch.setattr(pictures, "write_picture", interrupted)
    arguments = ["-o", tmp_path / "out", "--weights", weights, "--tile", 16, "--overlap", 1]
    assert _upscale(tmp_path / "in", *arguments) == code
    assert written == [tmp_path / "out" / "a.png"]
    assert list((tmp_path / "out").iterdir()) == written
    with Image.open(written[0]) as image:
        image.load()
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
