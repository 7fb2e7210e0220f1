"""Who is told what of pictures could not be kept, while several threads work."""

from __future__ import annotations

import re
import threading
import warnings
from pathlib import Path

import pytest

from dasr_ops.models import pictures
from dasr_ops.models.pictures import (
    PictureWarning,
    errors,
    open_animation,
    read_picture,
    reading,
    said_to,
    write_picture,
)
from tests.picture_files import picture, rgb


def _tell_of_decoder() -> None:
    """Warn as Pillow does."""
    warnings.warn_explicit("odd file", UserWarning, "Image.py", 1, module="PIL.Image")


def _noted(path, notes):
    _tell_of_decoder()
    notes.append("something is lost")
    return picture(3, 8)


def test_notes_are_said_to_the_thread_that_asks(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_read", _noted)
    said: dict[int, list[str]] = {0: [], 1: []}
    together = threading.Barrier(2)

    def work(index: int) -> None:
        together.wait(30)
        with said_to(said[index].append):
            for _ in range(index + 1):
                read_picture(tmp_path / "a.png")
            write_picture(picture(4, 8), tmp_path / f"{index}.jpg")

    threads = [threading.Thread(target=work, args=(index,)) for index in said]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with said_to(lambda text: pytest.fail(f"another thread's: {text}")):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
    written = "JPEG does not hold transparency: placed on white"
    assert said[0] == ["something is lost", written]
    assert said[1] == ["something is lost"] * 2 + [written]
    assert not [one for one in caught if issubclass(one.category, PictureWarning)]


def test_said_to_nests_and_ends(tmp_path):
    outer: list[str] = []
    inner: list[str] = []
    with said_to(outer.append):
        with pytest.raises(KeyError), said_to(inner.append):
            write_picture(picture(4, 8), tmp_path / "a.jpg")
            raise KeyError
        write_picture(picture(3), tmp_path / "a.jpg")
    assert len(inner) == 1 and "transparency" in inner[0]
    assert len(outer) == 1 and "16-bit" in outer[0]
    with pytest.warns(PictureWarning, match="transparency"):
        write_picture(picture(4, 8), tmp_path / "a.jpg")


def test_filters_are_not_touched_where_notes_are_said(tmp_path, monkeypatch):
    before = list(warnings.filters)
    seen = []

    def read(path, notes):
        seen.append((warnings.filters, list(warnings.filters)))
        return _noted(path, notes)

    monkeypatch.setattr(reading, "_read", read)
    current = warnings.filters
    with said_to(lambda text: None), pytest.warns(UserWarning, match="odd file"):
        expected = list(warnings.filters)
        read_picture(tmp_path / "a.png")
        assert seen[0][1] == expected
    assert warnings.filters is current and list(current) == before


def test_decoders_are_silent_and_others_are_heard_while_threads_interleave(tmp_path, monkeypatch):
    """The first thread in is the first out, which `catch_warnings` does not survive."""
    inside = [threading.Event(), threading.Event()]
    leave = [threading.Event(), threading.Event()]

    def read(path, notes):
        index = int(path.stem)
        inside[index].set()
        assert leave[index].wait(30)
        _tell_of_decoder()
        return picture(3, 8)

    monkeypatch.setattr(reading, "_read", read)
    threads = [
        threading.Thread(target=read_picture, args=(tmp_path / f"{index}.png",))
        for index in range(2)
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        for thread, event in zip(threads, inside, strict=True):
            thread.start()
            assert event.wait(30)
        warnings.warn("mine", UserWarning, stacklevel=1)
        for thread, event in zip(threads, leave, strict=True):
            event.set()
            thread.join(30)
            warnings.warn("mine too", UserWarning, stacklevel=1)
        assert list(warnings.filters) == before
        _tell_of_decoder()
    assert [str(one.message) for one in caught] == ["mine", "mine too", "mine too", "odd file"]


@pytest.mark.parametrize("inner_first", [True, False])
def test_no_entry_stays_behind_beside_catch_warnings_of_others(inner_first):
    before = list(warnings.filters)
    decoders = errors.quiet_decoders()
    others = warnings.catch_warnings()
    if inner_first:  # begun first, and ended first
        decoders.__enter__()
        others.__enter__()
        decoders.__exit__(None, None, None)
        others.__exit__(None, None, None)
    else:
        others.__enter__()
        decoders.__enter__()
        others.__exit__(None, None, None)
        decoders.__exit__(None, None, None)
    assert list(warnings.filters) == before
    assert errors._quiet_threads == 0


def test_frames_of_animations_leave_filters_alone_between_them(tmp_path):
    frames = [rgb(seed) for seed in (0, 30, 60)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    before = list(warnings.filters)
    for _ in open_animation(tmp_path / "a.webp"):
        assert list(warnings.filters) == before


def test_all_notes_go_through_one_function():
    modules = list(Path(pictures.__file__).parent.glob("*.py"))
    assert len(modules) > 10
    for path in modules:
        if path.name != "errors.py":
            assert not re.search(r"warnings\.|import warnings", path.read_text()), path.name
