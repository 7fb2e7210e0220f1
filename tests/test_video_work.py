"""The folder of unfinished work: which one, when it is used, and when it goes."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("av", reason="PyAV is not installed")

from dasr_ops.models.video import (
    VideoError,
    VideoOptions,
    VideoWarning,
    lock,
    upscale_video,
    work,
    work_paths,
)
from dasr_ops.models.video.work import WorkFolder, work_path

from .test_video_resume import OPTIONS, folder, interrupt, same
from .video_tools import Nearest, make_clip


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "in.mp4", 30, audio=("eng",))


@pytest.fixture(scope="module")
def unbroken(source) -> Path:
    target = source.parent / "unbroken.mp4"
    upscale_video(source, target, Nearest(), options=OPTIONS)
    return target


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"options": VideoOptions(preset="fast", segment_frames=4, crf=30)}, "encoder"),
        ({"upscaler": Nearest(scale=2)}, "network"),
        ({"options": replace(OPTIONS, max_frames=30)}, "max_frames"),
        ({"degradation": torch.zeros(1, 33)}, "degradation"),
        ({"degradation": lambda v: v + 0.1}, "degradation"),
    ],
)
def test_other_settings_leave_the_work_alone(tmp_path, source, unbroken, change, named):
    target = tmp_path / "out.mp4"
    interrupt(source, target)
    settings = {"options": OPTIONS, "upscaler": Nearest(), **change}
    upscaler = settings.pop("upscaler")
    upscaler.seen.clear()
    kept = folder(target)
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    with pytest.warns(VideoWarning, match=rf"{named}.*stays in .*{kept.name}"):
        summary = upscale_video(source, target, upscaler, **settings)
    assert summary.resumed == 0 and len(upscaler.seen) == 30
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    assert work_paths(target) == [kept]
    summary = upscale_video(source, target, Nearest(), options=OPTIONS, replace=True)
    assert summary.resumed >= 8
    same(target, unbroken)


def test_changed_source_starts_anew(tmp_path):
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    make_clip(source, 20)
    interrupt(source, target)
    make_clip(source, 22)
    with pytest.warns(VideoWarning, match=r"source.*starting anew"):
        assert upscale_video(source, target, Nearest(), options=OPTIONS).frames == 22


def test_trial_of_a_few_frames(tmp_path, source, unbroken):
    """It must not cost the hours of the run that it tries something for."""
    target = tmp_path / "out.mp4"
    interrupt(source, target)
    with pytest.warns(VideoWarning, match="max_frames"):
        trial = upscale_video(source, target, Nearest(), options=replace(OPTIONS, max_frames=2))
    assert trial.frames == 2
    summary = upscale_video(source, target, Nearest(), options=OPTIONS, replace=True)
    assert summary.resumed >= 8
    same(target, unbroken)


def test_long_names(tmp_path, source, unbroken):
    targets = [tmp_path / f"{'ü' * 124}{end}.mp4" for end in ("a", "b")]
    assert all(len(target.name.encode()) == 253 for target in targets)
    for target in targets:
        interrupt(source, target)
    assert folder(targets[0]) != folder(targets[1])
    for target in targets:
        assert len(folder(target).name.encode()) <= 255
        summary = upscale_video(source, target, Nearest(), options=OPTIONS)
        assert summary.resumed >= 8
        same(target, unbroken)


def test_names_of_folders(tmp_path):
    target = tmp_path / "out.mp4"
    settings = {"source": {"name": "in.mp4", "time": 1}, "crf": 18}
    path = work_path(target, settings)
    assert re.fullmatch(r"\.out\.mp4\.[0-9a-f]{8}\.dasr-video", path.name)
    changed = {"source": {"name": "in.mp4", "time": 2}, "crf": 18.0}
    assert work_path(target, changed) == path
    others = [{**settings, "crf": 18.5}, {**settings, "source": {"name": "in.mkv", "time": 1}}]
    assert len({path, *(work_path(target, other) for other in others)}) == 3


def test_killed_while_cleaning_up(tmp_path, source, monkeypatch):
    target = tmp_path / "out.mp4"
    with monkeypatch.context() as patch:
        patch.setattr(WorkFolder, "remove", lambda work: None)
        upscale_video(source, target, Nearest(), options=OPTIONS)
    assert folder(target).is_dir()
    unfinished = tmp_path / "other.mp4"
    interrupt(source, unfinished)
    unfinished.write_bytes(b"earlier result")  # newer than the work, but not what it became
    for path in (target, unfinished):
        with pytest.raises(FileExistsError):
            upscale_video(source, path, Nearest(), options=OPTIONS)
    assert work_paths(target) == []
    assert (folder(unfinished) / "000001.packets").exists()


class Choosing(Nearest):
    """Chooses other tiles each time it is asked, as an upscaler does by the memory that is free."""

    tile = "auto"

    def __init__(self, rows: int, **kwargs):
        super().__init__(**kwargs)
        self.rows, self.asked, self.tiles = rows, [], []

    def choose_tiles(self, height: int, width: int) -> tuple[int, int]:
        self.asked.append((height, width))
        return self.rows, 2 * self.rows

    def __call__(self, image, *, degradation, tiles=None):
        self.tiles.append(tiles)
        return super().__call__(image, degradation=degradation)


def test_tiles_are_those_of_the_first_run(tmp_path, source, unbroken):
    target = tmp_path / "out.mp4"
    first, second = Choosing(64, fail_at=14), Choosing(128)
    with pytest.raises(KeyboardInterrupt):
        upscale_video(source, target, first, options=OPTIONS)
    assert first.asked == [(24, 32)] and set(first.tiles) == {(64, 128)}
    assert upscale_video(source, target, second, options=OPTIONS).resumed >= 8
    assert second.asked == [] and set(second.tiles) == {(64, 128)}
    same(target, unbroken)
    third = Choosing(64)
    third.tile = 48
    upscale_video(source, target, third, options=OPTIONS, replace=True)
    assert third.asked == [] and set(third.tiles) == {None}


class Stop(Exception):
    """Raised by ``progress``, as the command line does after Ctrl-C."""


def test_progress_can_stop_what_makes_no_frames(tmp_path):
    """Counting, dropping frames that are done, and putting the file together."""
    source, target = make_clip(tmp_path / "in.mkv", 160, options={"g": "10"}), tmp_path / "out.mp4"
    options = VideoOptions(preset="ultrafast", segment_frames=30)
    called = []

    def stop_at(call: int | None):
        def progress(done, total):
            called.append((done, total))
            if len(called) == call:
                raise Stop

        called.clear()
        return progress

    def run(upscaler, progress):
        return upscale_video(source, target, upscaler, options=options, progress=progress)

    with pytest.raises(Stop):
        run(Nearest(), stop_at(2))
    assert called == [(0, None)] * 2  # counting
    with pytest.raises(KeyboardInterrupt):
        run(Nearest(fail_at=155), stop_at(None))
    counting = 3
    upscaler = Nearest()
    for call in (counting + 2, counting + 4):  # the first says how far it is
        with pytest.raises(Stop):
            run(upscaler, stop_at(call))
        assert called[counting:] == [(150, 160)] * (call - counting)
    assert upscaler.seen == []
    with pytest.raises(Stop):
        run(upscaler, stop_at(counting + 1 + 3 + 10 + 2))
    assert called[-2:] == [(160, 160)] * 2 and len(upscaler.seen) == 10
    assert not target.exists() and list(tmp_path.glob("**/*.part")) == []
    assert run(Nearest(), stop_at(None)).resumed == 160
    assert len(called) > counting + 1 + 3 + 3 + 3


@pytest.mark.parametrize("held", [False, True])
def test_lock_without_fcntl(tmp_path, source, unbroken, monkeypatch, held):
    """As on Windows: another lock, and files that are open cannot be removed."""
    closed = []

    def locking(descriptor: int, mode: int, size: int) -> None:
        assert (mode, size) == (2, 1)
        if held:
            raise PermissionError(13, "Permission denied")

    def rmtree(path: Path, ignore_errors: bool) -> None:
        held_files = [
            os.readlink(f"/proc/self/fd/{name}")
            for name in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{name}")
        ]
        assert str(path / ".lock") not in held_files
        closed.append(path)
        delete(path, ignore_errors=ignore_errors)

    delete = shutil.rmtree
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    monkeypatch.setattr(work, "MUST_CLOSE", True)
    if os.path.isdir("/proc/self/fd"):
        monkeypatch.setattr(work.shutil, "rmtree", rmtree)
    target = tmp_path / "out.mp4"
    if held:
        with pytest.raises(VideoError, match="being written by another process"):
            upscale_video(source, target, Nearest(), options=OPTIONS)
        return
    upscale_video(source, target, Nearest(), options=OPTIONS)
    assert len(closed) == os.path.isdir("/proc/self/fd")
    same(target, unbroken)
