"""Kills, full disks and reruns: nothing half-written, and the frames of an unbroken run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
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
from dasr_ops.models.video.threads import Behind, prefetch
from dasr_ops.models.video.work import WorkFolder, work_path

from .video_tools import Nearest, make_clip, packets, planes, times

OPTIONS = VideoOptions(preset="fast", segment_frames=4, smoothing=0.5, predict_every=2)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "in.mp4", 30, audio=("eng",))


@pytest.fixture(scope="module")
def unbroken(source) -> Path:
    target = source.parent / "unbroken.mp4"
    upscale_video(source, target, Nearest(), options=OPTIONS)
    return target


def same(target: Path, wanted: Path) -> None:
    assert times(target) == times(wanted)
    assert packets(target, "video") == packets(wanted, "video")  # to the byte
    assert packets(target, "audio") == packets(wanted, "audio")
    assert work_paths(target) == []


SCRIPT = """
    import resource, signal, sys
    from pathlib import Path
    from dasr_ops.models.video import VideoOptions, upscale_video
    assert "av" not in sys.modules  # only when a video comes
    from tests.test_video_resume import OPTIONS
    from tests.video_tools import Nearest

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    if len(sys.argv) == 3:
        upscale_video(source, target, Nearest(delay=0.05), options=OPTIONS)
    for limit in map(int, sys.argv[3:]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
        try:
            upscale_video(source, target, Nearest(), options=OPTIONS)
        except Exception as error:
            names = sorted(path.name for path in target.parent.glob("**/*"))
            print(type(error).__name__, "000006.packets" in names, "out.mp4" in names,
                  any(name.endswith((".part", ".tmp")) for name in names), error)
"""


def folder(target: Path) -> Path:
    """The one folder of unfinished work."""
    paths = work_paths(target)
    assert len(paths) <= 1
    return paths[0] if paths else target.parent / "none"


def process(source: Path, target: Path, *limits: int) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), source, target, *map(str, limits)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_killed_in_the_middle(tmp_path, source, unbroken):
    target = tmp_path / "out.mp4"
    running = process(source, target)
    deadline = time.monotonic() + 120
    while not (folder(target) / "000001.packets").exists():
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    with pytest.raises(VideoError, match="being written by another process"):
        upscale_video(source, target, Nearest(), options=OPTIONS)
    time.sleep(0.07)  # into the next segment
    running.send_signal(signal.SIGKILL)
    running.wait()
    running.stdout.close()
    assert not target.exists()
    upscaler, seen = Nearest(), []
    summary = upscale_video(
        source, target, upscaler, options=OPTIONS, progress=lambda *at: seen.append(at)
    )
    assert summary.frames == 30
    assert summary.resumed >= 8 and summary.resumed % 4 == 0
    assert len(upscaler.seen) == 30 - summary.resumed
    assert seen[0] == (summary.resumed, 30) and seen[-1] == (30, 30)
    same(target, unbroken)


@pytest.mark.parametrize("at", [0, 3, 4, 17, 29])
def test_interrupted(tmp_path, source, unbroken, at):
    target = tmp_path / "out.mp4"
    with pytest.raises(KeyboardInterrupt):
        upscale_video(source, target, Nearest(fail_at=at), options=OPTIONS)
    assert list(tmp_path.glob("**/*.part")) == []
    assert not target.exists()
    names = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith("dasr-") for name in names)
    upscaler = Nearest()
    summary = upscale_video(source, target, upscaler, options=OPTIONS)
    # Frames that waited for the encoder are lost with the segment.
    assert summary.resumed <= at and summary.resumed % 4 == 0
    same(target, unbroken)


def test_interrupted_again_and_again(tmp_path, source, unbroken):
    target = tmp_path / "out.mp4"
    runs = 0
    while not target.exists():
        runs += 1
        assert runs < 30
        try:
            upscale_video(source, target, Nearest(fail_at=9), options=OPTIONS)
        except KeyboardInterrupt:
            continue
    assert runs >= 4
    same(target, unbroken)


def test_given_degradation_resumes_too(tmp_path, source):
    fixed = torch.full((1, 33), 0.3)
    for name, degradation in (("tensor", fixed), ("edit", lambda v: v * 0.5)):
        whole, target = tmp_path / f"{name}.mp4", tmp_path / f"{name}_broken.mp4"
        upscale_video(source, whole, Nearest(), options=OPTIONS, degradation=degradation)
        with pytest.raises(KeyboardInterrupt):
            upscale_video(
                source, target, Nearest(fail_at=14), options=OPTIONS, degradation=degradation
            )
        # Another function object that does the same is the same.
        again = (lambda v: v * 0.5) if name == "edit" else fixed.clone()
        summary = upscale_video(source, target, Nearest(), options=OPTIONS, degradation=again)
        assert summary.resumed > 0
        same(target, whole)


def interrupt(source: Path, target: Path, **kwargs) -> None:
    with pytest.raises(KeyboardInterrupt):
        upscale_video(source, target, Nearest(fail_at=14), options=OPTIONS, **kwargs)
    assert (folder(target) / "000001.packets").exists()


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


def test_damaged_segments_are_made_again(tmp_path, source, unbroken):
    target = tmp_path / "out.mp4"
    interrupt(source, target)
    (folder(target) / "000001.json").write_text('{"pts": [')
    (folder(target) / "left.part").write_bytes(b"half")
    summary = upscale_video(source, target, Nearest(), options=OPTIONS)
    assert summary.resumed == 4
    same(target, unbroken)


def test_failure_of_the_last_step_keeps_the_segments(tmp_path, source, unbroken, monkeypatch):
    target = tmp_path / "out.mp4"
    from dasr_ops.models.video import upscale

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(upscale, "write_result", fail)
        with pytest.raises(VideoError, match=r"out.mp4 cannot be written: No space left"):
            upscale_video(source, target, Nearest(), options=OPTIONS)
    assert not target.exists()
    upscaler = Nearest()
    assert upscale_video(source, target, upscaler, options=OPTIONS).resumed == 30
    assert upscaler.seen == []
    same(target, unbroken)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_full_disk(tmp_path, source, unbroken):
    """No file may grow beyond a size that segments reach, then one that the result reaches."""
    sizes = []
    interrupt(source, tmp_path / "probe.mp4")
    for file in folder(tmp_path / "probe.mp4").iterdir():
        sizes.append(file.stat().st_size)
    target = tmp_path / "out.mp4"
    most = max(sizes) + 1000
    assert unbroken.stat().st_size > 1.2 * most
    said, _ = process(source, target, max(sizes) // 2, most).communicate(timeout=120)
    first, second = said.splitlines()
    # The error, whether the last segment but one is kept, the target there, something half-written.
    assert first.startswith("VideoError False False False ") and "cannot be written" in first
    assert second.startswith("VideoError True False False ") and "cannot be written" in second
    assert upscale_video(source, target, Nearest(), options=OPTIONS).resumed == 30
    same(target, unbroken)


def test_existing_target(tmp_path, source):
    target = tmp_path / "out.mp4"
    target.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="out"):
        upscale_video(source, target, Nearest(), options=OPTIONS)
    assert target.read_bytes() == b"precious"
    with pytest.raises(KeyboardInterrupt):
        upscale_video(source, target, Nearest(fail_at=9), options=OPTIONS, replace=True)
    assert target.read_bytes() == b"precious"
    upscale_video(source, target, Nearest(), options=OPTIONS, replace=True)
    assert len(planes(target)) == 30


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


def test_memory_is_bounded(source, tmp_path):
    """A slow network never lets the decoder run far ahead; a slow encoder holds the network."""
    taken = []

    def supply():
        for number in range(50):
            taken.append(number)
            yield number

    items = prefetch(supply(), 3)
    assert next(items) == 0
    time.sleep(0.3)
    assert len(taken) <= 6
    items.close()
    assert len(taken) <= 7
    stored = []

    def slow(item: int) -> None:
        time.sleep(0.01)
        stored.append(item)

    with Behind(slow, 2) as sink:
        for number in range(20):
            sink.put(number)
            assert number - len(stored) <= 4
    assert stored == list(range(20))


def test_errors_of_threads_arrive():
    def supply():
        yield 1
        raise VideoError("decoder")

    items = prefetch(supply(), 2)
    assert next(items) == 1
    with pytest.raises(VideoError, match="decoder"):
        next(items)

    def fail(item: int) -> None:
        raise VideoError("encoder")

    with pytest.raises(VideoError, match="encoder"), Behind(fail, 2) as sink:
        for _ in range(100):
            sink.put(0)
    with pytest.raises(VideoError, match="encoder"), Behind(fail, 2) as sink:
        sink.put(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="mine"), Behind(fail, 2):
            raise ValueError("mine")
