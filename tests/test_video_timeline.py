"""Clocks that start anew, and time stamps that are wrong."""

from __future__ import annotations

import warnings
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import pytest

pytest.importorskip("av", reason="PyAV is not installed")

import av

from dasr_ops.models.video import VideoOptions, VideoWarning, encoders, upscale_video
from dasr_ops.models.video.plan import make_plan
from dasr_ops.models.video.probe import read_source
from dasr_ops.models.video.reader import _Clock
from dasr_ops.models.video.timeline import RestartFinder

from .video_tools import SIZE, Nearest, gray_frame, make_clip, packets, times

FAST = VideoOptions(preset="ultrafast", segment_frames=20)


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error", VideoWarning)
        yield


def sound_times(path) -> list[Fraction]:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return [packet.pts * packet.time_base for packet in container.demux(stream) if packet.size]


@pytest.mark.parametrize("clips", [2, 3])
def test_clips_one_behind_the_other(tmp_path, quiet, clips):
    """As `cat a.ts b.ts` makes them: each clip begins with the clock of the first."""
    clip = make_clip(tmp_path / "a.ts", 30, size=(64, 48), audio=("eng",))
    source, target = tmp_path / "in.ts", tmp_path / "out.mkv"
    source.write_bytes(clip.read_bytes() * clips)
    summary = upscale_video(source, target, Nearest(), options=FAST)
    assert summary.frames == 30 * clips
    assert summary.duration == pytest.approx(1.2 * clips, abs=0.002)
    found = times(target)
    for number, time in enumerate(found):
        assert abs(time - found[0] - Fraction(number, 25)) <= Fraction(2, 1000)
    # The sound keeps its distance to the pictures, in every clip.
    assert len(packets(target, "audio")) == len(packets(source, "audio"))
    sound = sound_times(target)
    each = len(sound) // clips
    start = sound_times(clip)[1] - times(clip)[0]
    for number in range(clips):
        # The first may have to wait for the last of the clip before.
        distance = sound[number * each + 1] - found[30 * number]
        assert abs(distance - start) <= Fraction(3, 1000)
    assert all(b >= a for a, b in pairwise(sound))


def test_begun_clip_of_several(tmp_path, quiet):
    clip = make_clip(tmp_path / "a.ts", 30, size=(64, 48), audio=("eng",))
    source, target = tmp_path / "in.ts", tmp_path / "out.mp4"
    source.write_bytes(clip.read_bytes() * 3)
    options = VideoOptions(preset="ultrafast", max_frames=40)
    assert upscale_video(source, target, Nearest(), options=options).frames == 40
    assert 1.4 < sound_times(target)[-1] < 1.65


def test_clips_resume(tmp_path, quiet):
    clip = make_clip(tmp_path / "a.ts", 30, size=(64, 48), audio=("eng",))
    source, whole, target = (tmp_path / name for name in ("in.ts", "whole.mp4", "out.mp4"))
    source.write_bytes(clip.read_bytes() * 2)
    upscale_video(source, whole, Nearest(), options=FAST)
    with pytest.raises(KeyboardInterrupt):
        upscale_video(source, target, Nearest(fail_at=50), options=FAST)
    assert upscale_video(source, target, Nearest(), options=FAST).resumed == 40
    assert times(target) == times(whole)
    assert packets(target, "video") == packets(whole, "video")


def restarts(video: list[float], format: str = "mpegts", others: dict[int, list[float]] = {}):  # noqa: B006
    """Restarts found for decode times in seconds; ``others`` come before a packet of the video."""
    source = SimpleNamespace(index=0, rate=Fraction(1), restarting=True, format=format)
    finder = RestartFinder(source)
    base = Fraction(1, 10)

    def packet(index: int, time: float) -> SimpleNamespace:
        stamp = round(time / base)
        return SimpleNamespace(
            stream_index=index, pts=stamp, dts=stamp, time_base=base, size=1, is_corrupt=False
        )

    for number, time in enumerate(video):
        for other in others.get(number, []):
            finder.add(packet(1, other))
        finder.add(packet(0, time))
    return [(number, float(offset)) for number, offset in finder.restarts]


def test_which_steps_are_restarts():
    assert restarts([0, 1, 2, 3, 4]) == []
    assert restarts([5, 6, 7, 0, 1, 2]) == [(3, 8)]
    assert restarts([5, 6, 7, 0, 1, 2, 3, 0, 1]) == [(3, 8), (7, 12)]
    assert restarts([0, 1, 2, 100, 101]) == [(3, -97)]
    assert restarts([0, 1, 2, 9, 10]) == []  # a short gap
    assert restarts([0, 1, 1, 0.5, 2, 3]) == []  # disorder
    assert restarts([8, 9, 10, 2, 11, 12]) == []  # one stray time
    assert restarts([0, 1, 2, 500, 3, 4]) == []
    # A still: the sound went on, or the format is one where nothing jumps ahead.
    assert restarts([0, 1, 2, 100, 101], others={3: [2, 30, 60, 90]}) == []
    assert restarts([0, 1, 2, 100, 101], others={3: [2, 100]}) == [(3, -97)]
    assert restarts([0, 1, 2, 100, 101], format="asf") == []


def test_stays_still_for_long(tmp_path, quiet):
    pts = [512 * number for number in range(10)]
    pts += [value + 12800 * 12 for value in pts]
    options = {"max_interleave_delta": "0"}
    source = tmp_path / "in.ts"
    make_clip(source, pts=pts, audio=("eng",), options={"bf": "0"}, container_options=options)
    target = tmp_path / "out.mkv"
    assert upscale_video(source, target, Nearest(), options=FAST).frames == 20
    found = times(target)
    assert float(found[10] - found[9]) == pytest.approx(12 - 9 * 0.04, abs=0.002)


def test_reordered_frames_in_avi(tmp_path, quiet):
    """AVI has no time stamps but the order of packets, which is not that of the pictures."""
    source, target = tmp_path / "in.avi", tmp_path / "out.mp4"
    with av.open(str(source), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"bf": "2", "b-adapt": "0"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(30):
            output.mux(stream.encode(gray_frame(number)))
        output.mux(stream.encode(None))
    with av.open(str(source)) as container:
        guessed = [frame.pts for frame in container.decode(video=0)]
    assert guessed != sorted(guessed)
    assert upscale_video(source, target, Nearest(), options=FAST).frames == 30
    assert times(target) == [Fraction(number, 25) for number in range(30)]


def test_rate_that_no_encoder_takes(tmp_path, quiet):
    """Times in milliseconds without a rate: FFmpeg guesses 1000 frames per second."""
    if "libsvtav1" not in encoders():
        pytest.skip("this PyAV has no libsvtav1")
    source = tmp_path / "in.mkv"
    pts = [12800 * value // 1000 for value in (0, 1, 2, 3, 43, 81, 125, 126)]
    make_clip(source, pts=pts, size=(64, 64), options={"bf": "0"})
    facts = replace(read_source(source), rate=Fraction(1000))
    options = VideoOptions(codec="libsvtav1", preset="10")
    for declared, duration, rate in ((0, None, 60), (50, 2.0, 25), (5000, 2.0, 60)):
        facts = replace(facts, declared_frames=declared, duration=duration)
        assert make_plan(facts, (256, 256), options, "matroska").rate == rate


def test_clocks_that_jump_ahead_and_back(tmp_path, quiet):
    """Clips whose clocks begin at 0, 1000 and 5 seconds."""
    content = b""
    for start in (0, 1000, 5):
        options = {"output_ts_offset": str(start)}
        clip = tmp_path / f"{start}.ts"
        make_clip(clip, 60, size=(64, 48), audio=("eng",), container_options=options)
        assert start <= times(clip)[0] < start + 2
        content += clip.read_bytes()
    source, target = tmp_path / "in.ts", tmp_path / "out.mp4"
    source.write_bytes(content)
    assert upscale_video(source, target, Nearest(), options=FAST).frames == 180
    found = times(target)
    for number, time in enumerate(found):
        assert abs(time - found[0] - Fraction(number, 25)) <= Fraction(1, 1000)
    sound = sound_times(target)
    assert all(Fraction(0) < b - a < Fraction(1, 8) for a, b in pairwise(sound))
    assert abs(sound[-1] - found[-1]) < Fraction(1, 8)


def stamps(*given: int | None) -> tuple[list[int], int]:
    """Time stamps of frames, which are ten apart where all is well, and how many were mended."""
    clock = _Clock(SimpleNamespace(rate=Fraction(1, 10), time_base=Fraction(1)))
    clock.far = 100
    frames = [SimpleNamespace(pts=pts) for pts in given]
    return [pts for _, pts in clock.stamped(frames)], clock.mended


@pytest.mark.parametrize(
    ("given", "expected", "mended"),
    [
        ([], [], 0),
        ([5], [5], 0),
        ([0, 10, 20, 500, 510], [0, 10, 20, 500, 510], 0),  # a gap
        ([0, 10, 9999, 30, 40], [0, 10, 20, 30, 40], 1),
        ([9999, 10, 20], [0, 10, 20], 1),
        ([0, 10, 9999], [0, 10, 9999], 0),  # at the end it leaves room enough
        ([0, 10, 9999, 12, 13], [0, 10, 11, 12, 13], 1),
        ([0, 10, 9999, 11, 30], [0, 10, 11, 12, 30], 2),  # no room between
        ([0, 30, 20, 40], [0, 30, 31, 40], 1),
        ([0, 10, None, 30], [0, 10, 20, 30], 1),
        ([None, 10, 20], [0, 10, 20], 1),
        ([0, 10, 0, 30], [0, 10, 11, 30], 1),
        ([500, 510, 620, 0, 10], [500, 510, 620, 621, 622], 2),  # back for good: as before
    ],
)
def test_time_stamps_are_mended(given, expected, mended):
    assert stamps(*given) == (expected, mended)


@pytest.mark.parametrize("stray", ["video", "audio"])
def test_one_stray_time_moves_nothing_else(tmp_path, stray):
    clip = make_clip(
        *(tmp_path / "clip.mkv", 50), codec="mjpeg", pixel_format="yuvj420p", audio=("eng",)
    )
    source, target = tmp_path / "in.mkv", tmp_path / "out.mp4"
    with av.open(str(clip)) as old, av.open(str(source), "w") as new:
        streams = [new.add_stream_from_template(s, opaque=True) for s in old.streams]
        seen = {"video": 0, "audio": 0}
        for packet in old.demux():
            if packet.size:
                kind = packet.stream.type
                seen[kind] += 1
                packet.stream = streams[packet.stream_index]
                if kind == stray and seen[kind] == 8:
                    packet.pts += 3600 * 1000
                new.mux_one(packet)
    assert max(times(source) if stray == "video" else sound_times(source)) > 3600
    upscale_video(source, target, Nearest(), options=FAST)
    for found, wanted in ((times(target), times(clip)), (sound_times(target), sound_times(clip))):
        assert len(found) == len(wanted)
        moved = found[0] - wanted[0]
        assert all(abs(a - b - moved) < 0.025 for a, b in zip(found, wanted, strict=True))
