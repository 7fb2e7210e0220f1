"""The page of ``dasr demo``, without a browser: what it computes, shows, keeps and says."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

pytest.importorskip("tyro", reason="the commands parse their arguments by tyro")

from dasr_ops.demo import engine as engine_module
from dasr_ops.demo.engine import Settings, crop
from dasr_ops.demo.regions import Box
from dasr_ops.demo.session import MOST_SESSIONS, VIEWS, Sessions
from dasr_ops.demo.tasks import Task
from dasr_ops.models.pictures import Picture, read_picture

from .demo_tools import Tab, difference, noise, predicted, tiny_engine


@pytest.fixture(scope="module")
def engine():
    with tiny_engine("two", "four") as engine:
        yield engine


@pytest.fixture
def tab(engine, tmp_path):
    pytest.importorskip("gradio", reason="the page is made by Gradio")
    tab = Tab(engine, tmp_path / "files")
    yield tab
    tab.sessions.close_all()


def _save(path: Path, array: np.ndarray, **options) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def test_small_picture(tab, engine, tmp_path):
    array = noise(60, 40)
    upload = tab.upload(_save(tmp_path / "a.png", array))
    assert not upload.exists()
    tab.run()
    picture = Picture(array)
    v = predicted(engine, picture, "two")
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
        assert difference(tab.image(1), plain) > 0, name
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
    assert difference(detail, crop(Picture(result), box.scaled(2)).color) <= 1
    assert tab.shown["save"]["interactive"] is True
    before = Image.fromarray(array).resize((600, 500), Image.Resampling.BICUBIC)
    cut = np.asarray(before)[2 * box.top : 2 * box.bottom, 2 * box.left : 2 * box.right]
    assert difference(tab.image(0), cut) <= 1
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
