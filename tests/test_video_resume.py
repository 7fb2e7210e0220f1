"""Kills, full disks and reruns: nothing half-written, and the frames of an unbroken run."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("av", reason="PyAV is not installed")

from dasr_ops.models.video import (
    VideoError,
    VideoOptions,
    upscale_video,
    work_paths,
)
from dasr_ops.models.video.threads import Behind, prefetch

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


def test_damaged_segments_are_made_again(tmp_path, source, unbroken):
    target = tmp_path / "out.mp4"
    interrupt(source, target)
    (folder(target) / "000001.json").write_text('{"pts": [')
    (folder(target) / "left.part").write_bytes(b"half")
    summary = upscale_video(source, target, Nearest(), options=OPTIONS)
    assert summary.resumed == 4
    same(target, unbroken)


@pytest.mark.parametrize(
    ("place", "after"),
    # A decoder's threads hold frames back: the first segment needs many packets.
    [("reader", 1), ("reader", 26), ("mux", 1), ("mux", 9)],
)
def test_a_disk_that_fails_keeps_the_segments(
    tmp_path, source, unbroken, monkeypatch, place, after
):
    """A film, or its sound, must not end where a network did."""
    from dasr_ops.models.video import mux, reader

    module = {"reader": reader, "mux": mux}[place]
    real = module.demux

    def failing(*args):
        for number, packet in enumerate(real(*args)):
            if number == after:
                raise OSError(errno.EIO, "Input/output error")
            yield packet

    target = tmp_path / "out.mp4"
    with (
        monkeypatch.context() as patch,
        pytest.raises(VideoError, match=r"in\.mp4 cannot be read: "),
    ):
        patch.setattr(module, "demux", failing)
        upscale_video(source, target, Nearest(), options=OPTIONS)
    began = place == "mux" or after > 1  # with the first segment
    assert not target.exists() and len(work_paths(target)) == began
    summary = upscale_video(source, target, Nearest(), options=OPTIONS)
    assert place == "reader" or summary.resumed == 30
    same(target, unbroken)


def test_a_source_that_cannot_be_read_is_named(tmp_path, source, monkeypatch):
    from dasr_ops.models.video import settings

    def fail(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(settings, "source_identity", fail)
    with pytest.raises(VideoError, match=r"in\.mp4 cannot be read: Input/output error"):
        upscale_video(source, tmp_path / "out.mp4", Nearest(), options=OPTIONS)


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
