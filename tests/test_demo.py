"""The page of ``dasr demo``, without a browser: what it computes, shows, keeps and says."""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

pytest.importorskip("tyro", reason="the commands parse their arguments by tyro")

from dasr_ops.cli import demo as command
from dasr_ops.cli import main
from dasr_ops.demo import engine as engine_module
from dasr_ops.demo import server
from dasr_ops.demo.engine import Engine, Settings, crop
from dasr_ops.demo.regions import Box, busiest_point, detail_around, framed, shown_size
from dasr_ops.demo.session import MOST_SESSIONS, VIEWS, Sessions
from dasr_ops.demo.tasks import Cancelled, Task, Worker
from dasr_ops.models import Controls, Upscaler
from dasr_ops.models.pictures import Picture, read_picture

from .demo_tools import Tab, noise, tiny_model

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def engine():
    models = {"two": tiny_model(2), "four": tiny_model(4, seed=1)}
    engine = Engine(models, device="cpu", tile=64)
    yield engine
    engine.worker.close()


@pytest.fixture
def tab(engine, tmp_path):
    pytest.importorskip("gradio", reason="the page is made by Gradio")
    tab = Tab(engine, tmp_path / "files")
    yield tab
    tab.sessions.close_all()


def _save(path: Path, array: np.ndarray, **options) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def _predicted(engine: Engine, picture: Picture, weights: str) -> torch.Tensor:
    return engine.predict(picture, weights, Task())


def _difference(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# --- regions


@pytest.mark.parametrize("center", [(0, 0), (500, 300), (999, 599)])
def test_details_lie_inside(center):
    box = detail_around(center, (1000, 600))
    assert box.size == (200, 150)
    assert box.left >= 0 and box.top >= 0 and box.right <= 1000 and box.bottom <= 600
    assert box.left <= center[0] < box.right and box.top <= center[1] < box.bottom


@pytest.mark.parametrize("size", [(1, 1), (7, 3000), (3000, 7), (200, 150)])
def test_details_of_small_and_narrow_pictures(size):
    box = detail_around((size[0] // 2, size[1] // 2), size)
    assert box.size == (min(size[0], 200), min(size[1], 150))


@pytest.mark.parametrize("size", [(900, 700), (2000, 1500)])
def test_busiest_point_is_where_something_happens(size):
    image = np.full((size[1], size[0]), 90, np.uint8)
    image[500:600, 620:760] = noise(140, 100)[:, :, 0]
    x, y = busiest_point(Image.fromarray(image))
    box = detail_around((x, y), size)
    assert box.left <= 620 and box.right >= 760 and box.top <= 500 and box.bottom >= 600


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000)])
def test_busiest_point_of_tiny_pictures(size):
    x, y = busiest_point(Image.new("RGB", size))
    assert 0 <= x < size[0] and 0 <= y < size[1]


def test_shown_size_is_bounded():
    assert shown_size((600, 400)) == (600, 400)
    assert shown_size((24000, 12000)) == (2400, 1200)
    assert shown_size((120000, 40)) == (2400, 1)


def test_frame_leaves_the_rest_alone():
    image = Image.new("RGB", (400, 300), "red")
    result = np.asarray(framed(image, Box(100, 50, 200, 150), (800, 600)))
    assert (result[80, 30] == (255, 0, 0)).all() and (result[50, 75] == (255, 0, 0)).all()
    assert (result[25:75, 50:100] == 255).all(2).any()


# --- tasks


def test_tasks_run_in_turn_and_can_be_called_off():
    worker, order = Worker(), []
    first, second, third = Task(), Task(), Task()

    def endless(task):
        while True:
            task.report(1, 2)
            time.sleep(0.001)

    worker.start(first, endless)
    worker.start(second, lambda task: order.append("second"))
    worker.start(third, lambda task: order.append("third") or 3)
    assert not first.finished(0.05)
    assert (first.started, second.started, first.done, first.total) == (True, False, 1, 2)
    second.cancel()
    first.cancel()
    assert third.finished(10) and third.result() == 3
    assert order == ["third"]
    for task in (first, second):
        with pytest.raises(Cancelled):
            task.result()
    worker.close()


def test_networks_notice_that_they_are_called_off(engine):
    """Between two layers, not only between two tiles."""
    picture = Picture(noise(40, 30))
    task = Task()

    def run(task):
        task.cancel()
        return engine.predict(picture, "two", Task())

    engine.worker.start(task, run)
    assert task.finished(10)
    with pytest.raises(Cancelled):
        task._future.result()


# --- engine


@pytest.mark.parametrize("weights", ["two", "four"])
@pytest.mark.parametrize("deblur", [0.0, 0.5])
def test_result_is_that_of_the_upscaler(engine, weights, deblur):
    picture = Picture(noise(90, 70))
    scale = engine.native_scale(weights)
    v = _predicted(engine, picture, weights)
    whole = Upscaler(tiny_model(scale, seed=int(weights == "four")), tile=0, device="cpu")
    expected = whole(picture.color, degradation=Controls(deblur=deblur)(v))
    settings = Settings(weights, scale, deblur=deblur)
    result = engine.enlarge(picture, v, settings, Task())
    assert _difference(result.color, expected) <= 1
    box = Box(20, 10, 60, 50)
    detail = engine.enlarge_detail(picture, box, v, settings, Task())
    assert _difference(detail.color, crop(result, box.scaled(scale)).color) <= 1


def test_too_large_results_are_refused(engine):
    engine.check_size((10_000, 10_000), Settings("two", 2))
    with pytest.raises(engine_module.TooLargeError, match="20000 × 40000 pixels, 800 million"):
        engine.check_size((10_000, 20_000), Settings("two", 2))


def test_scales_on_offer(engine):
    assert engine.scales("two") == [2]
    assert engine.scales("four") == [2, 3, 4]


# --- the page


def test_small_picture(tab, engine, tmp_path):
    array = noise(60, 40)
    upload = tab.upload(_save(tmp_path / "a.png", array))
    assert not upload.exists()
    tab.run()
    picture = Picture(array)
    v = _predicted(engine, picture, "two")
    expected = engine.enlarge(picture, v, Settings("two", 2), Task()).color
    assert np.array_equal(tab.image(1), expected)
    bicubic = Image.fromarray(array).resize((120, 80), Image.Resampling.BICUBIC)
    assert np.array_equal(tab.image(0), np.asarray(bicubic))
    assert re.search(r"120 × 80 pixels in [\d.]+ s on cpu", tab.shown["status"])
    assert "<dt>Noise</dt>" in tab.shown["reading"]
    assert tab.shown["save"]["interactive"] is True
    assert tab.shown["view"]["visible"] is False


def test_controls_change_the_result_and_nothing_is_measured_twice(
    tab, engine, tmp_path, monkeypatch
):
    calls = []
    predict = engine.predict
    monkeypatch.setattr(engine, "predict", lambda *a: calls.append(a[1]) or predict(*a))
    tab.upload(_save(tmp_path / "a.png", noise(60, 40)))
    tab.run()
    plain = tab.image(1)
    for name in ("denoise", "deblur", "dejpeg"):
        tab.run(**{name: 1.0})
        assert _difference(tab.image(1), plain) > 0, name
        tab.run(**{name: 0.0})
        assert np.array_equal(tab.image(1), plain)
    assert calls == ["two"]
    tab.run(weights="four", scale=4)
    assert tab.image(1).shape == (160, 240, 3)
    tab.run(scale=3)
    assert tab.image(1).shape == tab.image(0).shape == (120, 180, 3)
    assert calls == ["two", "four"]


def test_large_picture_shows_a_detail_first(tab, tmp_path):
    array = noise(300, 250)
    tab.upload(_save(tmp_path / "a.png", array))
    assert tab.shown["view"] == {"value": "Detail", "visible": True, "__type__": "update"}
    for update in tab.quick():
        tab.take(update)
    assert tab.session.result is None
    detail = tab.image(1)
    assert detail.shape == (300, 400, 3)
    assert tab.shown["save"]["interactive"] is False
    for update in tab.finish():
        tab.take(update)
    box = tab.session.detail
    result = tab.session.result[0].color
    assert result.shape == (500, 600, 3)
    assert _difference(detail, crop(Picture(result), box.scaled(2)).color) <= 1
    assert tab.shown["save"]["interactive"] is True
    before = Image.fromarray(array).resize((600, 500), Image.Resampling.BICUBIC)
    cut = np.asarray(before)[2 * box.top : 2 * box.bottom, 2 * box.left : 2 * box.right]
    assert _difference(tab.image(0), cut) <= 1
    tab.take(tab.handlers.look(VIEWS[0], tab.request))
    assert np.array_equal(tab.image(1), result)
    point = type("Event", (), {"index": [299, 0]})
    tab.take(tab.handlers.point(point, tab.request))
    assert tab.session.detail == Box(100, 0, 300, 150)
    assert np.array_equal(tab.image(1), result[:300, 200:])


def test_what_comes_later_calls_off_what_runs(tab, engine, tmp_path, monkeypatch):
    enlarge = engine.enlarge

    def slow(picture, v, settings, task):
        while settings.denoise == 0:
            task.report(1, 2)
            time.sleep(0.001)
        return enlarge(picture, v, settings, task)

    monkeypatch.setattr(engine, "enlarge", slow)
    tab.upload(_save(tmp_path / "a.png", noise(400, 300)))
    for update in tab.quick():
        tab.take(update)
    first = tab.finish()
    next(first)
    next(first)  # now it runs
    later = tab.quick(denoise=0.7)
    for update in later:
        tab.take(update)
    assert len(list(first)) == 0
    assert tab.session.result is None
    for update in tab.finish():
        tab.take(update)
    assert tab.session.result[1] == Settings("two", 2, denoise=0.7)


def test_late_arrivals_do_nothing(tab, tmp_path):
    tab.upload(_save(tmp_path / "a.png", noise(300, 250)))
    for _ in tab.quick(deblur=0.5):
        pass
    late = tab.finish()
    for _ in tab.quick(deblur=0.6):
        pass
    assert len(list(late)) == 1
    assert tab.session.result is None


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3000, 2)])
def test_odd_shapes(tab, tmp_path, size):
    tab.upload(_save(tmp_path / "a.png", noise(*size)))
    tab.run()
    assert "pixels in" in tab.shown["status"]
    assert tab.session.result[0].size == (size[0] * 2, size[1] * 2)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_modes(tab, tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(noise(30, 20)).convert(mode).save(path)
    tab.upload(path)
    tab.run()
    assert tab.image(1).shape[:2] == tab.image(0).shape[:2] == (40, 60)


def test_bad_files_are_explained(tab, tmp_path):
    text = tmp_path / "a.png"
    text.write_text("hello")
    cut = _save(tmp_path / "b.jpg", noise(200, 200))
    cut.write_bytes(cut.read_bytes()[:-3000])
    for path in (text, cut):
        assert not tab.upload(path).parent.exists()
        assert "This file cannot be used: " in tab.shown["status"]
        assert tab.shown["source"] is None and tab.shown["save"]["interactive"] is False
        tab.run()
        assert tab.shown["compare"] is None
    tab.upload(_save(tmp_path / "c.png", noise(30, 20)))
    tab.run()
    assert "pixels in" in tab.shown["status"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "Not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "Not enough memory"),
        (RuntimeError("odd <b>\nthing"), "RuntimeError: odd &lt;b&gt; thing"),
    ],
)
def test_failures_are_explained_and_do_not_last(tab, engine, tmp_path, monkeypatch, error, said):
    def fail(*_):
        raise error

    tab.upload(_save(tmp_path / "a.png", noise(30, 20)))
    with monkeypatch.context() as patch:
        patch.setattr(engine, "enlarge", fail)
        tab.run()
    assert said in tab.shown["status"]
    assert 'role="alert"' in tab.shown["status"]
    tab.run(deblur=0.1)
    assert "pixels in" in tab.shown["status"]


def test_too_large_for_the_page(tab, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "LARGEST_RESULT", 1000)
    tab.upload(_save(tmp_path / "a.png", noise(30, 20)))
    tab.run()
    assert "The result would have 60 × 40 pixels" in tab.shown["status"]


@pytest.mark.parametrize(("format", "suffix"), [("PNG", "png"), ("JPEG", "jpg"), ("TIFF", "tif")])
def test_downloads_keep_metadata(tab, tmp_path, format, suffix):
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    exif[0x0112] = 6  # to be turned by 90 degrees
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tab.upload(_save(tmp_path / "my photo.jpg", noise(30, 20), exif=exif, icc_profile=profile))
    tab.run()
    for update in tab.handlers.write(format, tab.request):
        tab.take(update)
    name = f"my photo_x2.{suffix}"
    assert tab.shown["link"] == f"download/{tab.session.token}/my%20photo_x2.{suffix}"
    assert name in tab.shown["notes"]
    assert tab.sessions.download(tab.session.token).name == name
    with Image.open(tab.session.download) as image:
        assert image.size == (40, 60)
        assert image.getexif()[0x010F] == "Camera"
        assert image.getexif().get(0x0112, 1) == 1
        assert image.info["icc_profile"] == profile
        if suffix != "jpg":
            assert np.array_equal(np.asarray(image), tab.session.result[0].color)
    path = tab.session.download
    tab.run(deblur=1.0)
    assert not path.exists()  # it was of another result


def test_16_bits_stay_16_bits(tab, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    deep = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb")
    tab.upload(tmp_path / "a.tif")
    tab.run()
    assert tab.image(1).dtype == np.uint8
    for update in tab.handlers.write("PNG", tab.request):
        tab.take(update)
    result = read_picture(tab.session.download).color
    assert result.dtype == np.uint16
    assert np.array_equal(result, tab.session.result[0].color)


def test_example(tab):
    tab.take(tab.handlers.open_example(tab.request))
    tab.run()
    assert "300 × 200 pixels" in tab.shown["status"]


def test_closed_tabs_leave_nothing(tab, engine, tmp_path):
    tab.upload(_save(tmp_path / "a.png", noise(400, 300)))
    for _ in tab.quick():
        pass
    running = tab.finish()
    next(running)
    next(running)
    folder, results = tab.session.folder, tab.session.results
    assert list(folder.iterdir())
    tab.handlers.leave(tab.request)
    list(running)
    assert not folder.exists() and not results.exists()


def test_idle_tabs_are_forgotten(tmp_path):
    sessions = Sessions(tmp_path)
    first = sessions.get("0")
    for number in range(1, MOST_SESSIONS):
        sessions.get(str(number))
    assert sessions.get("0") is first
    sessions.get("new")
    assert sessions.get("0") is first
    for folder in tmp_path.iterdir():
        assert len(list(folder.iterdir())) == MOST_SESSIONS
    sessions.close_all()
    assert sorted(tmp_path.rglob("*")) == sorted(tmp_path.iterdir())


def test_files_do_not_pile_up(tab, tmp_path):
    tab.upload(_save(tmp_path / "a.png", noise(30, 20)))
    for step in range(8):
        tab.run(denoise=step / 10)
    assert len(list(tab.session.folder.iterdir())) <= 6


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../x.png", "x"),
        ("..", "picture"),
        ("", "picture"),
        ("ä b.jpg", "ä b"),
        ("a*?.png", "a__"),
    ],
)
def test_names_of_files(name, expected):
    pytest.importorskip("gradio", reason="the page is made by Gradio")
    from dasr_ops.demo.handlers import _stem

    assert _stem(name) == expected
    assert len(_stem("ü" * 300).encode()) <= 150


# --- server


def test_ports():
    with server.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(server.ServerError, match=f"--port {port}: address already in use"):
            server.listen("127.0.0.1", port)
    with server.listen("127.0.0.1", None) as one, server.listen("127.0.0.1", None) as two:
        assert server.FIRST_PORT <= one.getsockname()[1] < two.getsockname()[1]
    with pytest.raises(server.ServerError, match="--host nowhere"):
        server.listen("nowhere.invalid", None)


# --- command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "70000"], "--port 70000"),
        (["--tile", "20"], "--tile 20"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (
            ["--weights", "a.png"],
            "--weights a.png: expected small, dasr, dasr-gan or a",
        ),
        (["--weights", "g.pth"], "the .pth files of G and P after each other"),
        (["--device", "nonsense"], "--device nonsense"),
        (["--share"], "share"),
    ],
)
def test_usage_errors(capsys, monkeypatch, arguments, said):
    monkeypatch.setattr(server, "check_gradio", lambda: None)
    assert main(["demo", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_errors_while_serving_are_not_those_of_options(capsys, monkeypatch):
    monkeypatch.setattr(server, "check_gradio", lambda: None)
    for error in (ValueError("odd"), RuntimeError("odd\nmore"), OSError(28, "No space left")):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(server, "_run", fail)
        monkeypatch.setattr(server, "application", lambda *_: None)
        assert main(["demo", "--device", "cpu", "--port", "0"]) == 1
        said = capsys.readouterr().err
        assert "--device" not in said and len(said.splitlines()) == 1


def test_a_full_disk_is_no_traceback(capsys, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(server, "check_gradio", lambda: None)
    monkeypatch.setattr(server.tempfile, "TemporaryDirectory", full)
    assert main(["demo", "--port", "0"]) == 1
    assert capsys.readouterr().err.endswith("No space left on device\n")


def test_taken_port_is_a_usage_error(capsys, monkeypatch):
    monkeypatch.setattr(server, "check_gradio", lambda: None)
    with server.listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert main(["demo", "--port", port]) == 2
    assert f"dasr demo: error: --port {port}: address already in use" in capsys.readouterr().err


def test_missing_gradio_is_named(capsys, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert main(["demo"]) == 2
    assert "Gradio is missing: pip install 'dasr-ops[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["5.49.1", "6.9.0", "6.18", "0.1.dev0"])
def test_old_gradio_is_named(capsys, monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    assert main(["demo"]) == 2
    said = f"Gradio 6.19 or later is needed, got {version}: pip install --upgrade 'dasr-ops[demo]'"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("version", ["6.19.0", "6.20", "6.100.1", "7.0.0b1"])
def test_new_gradio_is_taken(monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    server.check_gradio()


def test_weights_are_grouped_and_named():
    paths = [Path(p) for p in ("a/x.safetensors", "b/x.safetensors", "g.pth", "p.pth")]
    groups = command._grouped(paths)
    assert groups == [(paths[0],), (paths[1],), (paths[2], paths[3])]
    assert command._names(groups[:1]) == ["x"]
    assert command._names(groups) == ["a/x", "b/x", "g"]
    assert command._names([groups[0], groups[0]]) == ["1. x", "2. x"]
    with pytest.raises(command.UsageError, match="expected the"):
        command._grouped([paths[2], paths[0]])


@pytest.mark.slow
def test_nothing_else_needs_gradio():
    code = "import sys, dasr_ops, dasr_ops.cli.demo, dasr_ops.models, dasr_ops.demo\n"
    code += "assert 'gradio' not in sys.modules and 'fastapi' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("signal_", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ends_cleanly(tmp_path, signal_, code):
    pytest.importorskip("gradio", reason="the page is made by Gradio")
    environment = {**os.environ, "TMPDIR": str(tmp_path), "HOME": str(tmp_path / "home")}
    arguments = [sys.executable, "-m", "dasr_ops", "demo", "--port", "0"]
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = process.stdout.readline().split()[0]
        host, port = address.removeprefix("http://").split(":")
        assert host == "127.0.0.1"
        for _ in range(100):
            try:
                socket.create_connection((host, int(port)), timeout=5).close()
                opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                opener.open(address, timeout=60).close()
                break
            except OSError:
                time.sleep(0.1)
        assert any(tmp_path.glob("dasr-demo-*"))
        process.send_signal(signal_)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())
