"""What comes out of `upscale_video` beside the pixels: times, sound, subtitles, tags, colours."""

from __future__ import annotations

import warnings
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed")

import av

from dasr_ops.models.video import (
    VideoOptions,
    VideoWarning,
    encoders,
    probe,
    upscale_video,
    work_paths,
)
from dasr_ops.models.video.mux import decode_times

from .video_tools import Plain, gray_frame, make_clip, packets, planes, times

FAST = VideoOptions(preset="ultrafast", segment_frames=7)
B_FRAMES = VideoOptions(preset="medium", segment_frames=7)


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error", VideoWarning)
        yield


def run(source, target, options=FAST, **kwargs):
    summary = upscale_video(source, target, Plain(), options=options, **kwargs)
    assert work_paths(target) == []
    assert [path.name for path in target.parent.glob(".*")] == []
    return summary


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_constant_rate(tmp_path, quiet, suffix):
    source = make_clip(tmp_path / "in.mp4", 20)
    target = tmp_path / f"out{suffix}"
    seen = []
    options = VideoOptions(preset="8", segment_frames=7) if suffix == ".webm" else B_FRAMES
    summary = run(source, target, options, progress=lambda *at: seen.append(at))
    assert summary.frames == 20 and summary.size == (128, 96) and summary.resumed == 0
    assert summary.duration == pytest.approx(0.8)
    assert times(target) == times(source)
    assert seen == [(number, 20) for number in range(1, 21)]
    facts = probe(target)
    assert (facts.size, facts.fps, facts.frames) == ((128, 96), 25, 20)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("lead", [1, 30, 48, 60, 1024])  # about a millisecond, and many
def test_sound_that_begins_before_the_first_frame(tmp_path, quiet, suffix, lead):
    """Matroska, which has no negative times, moves all streams, and rounds to milliseconds."""
    source, rate = tmp_path / "in.mov", Fraction(30000, 1001)
    with av.open(str(source), "w") as output:
        video = output.add_stream("libx264", rate=rate)
        video.width, video.height, video.pix_fmt = 128, 96, "yuv420p"
        video.codec_context.time_base = 1 / rate
        sound = output.add_stream("pcm_s16le", rate=48000, layout="mono")
        for number in range(12):
            frame = gray_frame(number, (128, 96), "yuv420p")
            frame.pts, frame.time_base = number, 1 / rate
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        for first in range(-lead, 16000, 1024):
            part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), "s16", "mono")
            part.sample_rate, part.pts, part.time_base = 48000, first, Fraction(1, 48000)
            output.mux(sound.encode(part))
        output.mux(sound.encode(None))
    target = tmp_path / f"out{suffix}"
    run(source, target)
    found, expected = times(target), times(source)
    moved = found[0] - expected[0]
    assert all(
        abs(after - before - moved) <= Fraction(1, 1000)
        for after, before in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("start", [0, 4096])
def test_variable_rate_with_gaps_and_late_start(tmp_path, quiet, suffix, start):
    """B-frames, segments whose neighbours are far apart, one frame alone in the last."""
    steps = [512, 512, 1024, 512, 300, 700, 12800, 512, 100, 100, 100, 2048, 512, 1, 3]
    pts = [start, *(start + int(value) for value in np.cumsum(steps))]
    source = make_clip(tmp_path / "in.mp4", pts=pts, audio=("eng",))
    target = tmp_path / f"out{suffix}"
    options = VideoOptions(preset="medium", segment_frames=5)
    assert run(source, target, options).frames == 16
    found, wanted = times(target), times(source)
    assert [time * 12800 for time in wanted] == pts
    if suffix == ".mp4":
        assert found == wanted
        assert _sound_start(target) == _sound_start(source)
    else:  # milliseconds, and no negative times: all streams move together
        moved = _sound_start(target) - _sound_start(source)
        assert 0 <= moved < Fraction(1, 10)
        for time, exact in zip(found, wanted, strict=True):
            assert abs(time - exact - moved) <= Fraction(1, 1000)


@pytest.mark.parametrize(
    ("codec", "suffix", "preset"),
    [("libx265", ".mp4", "fast"), ("libsvtav1", ".mp4", "10"), ("libvpx-vp9", ".webm", "8")],
)
def test_variable_rate_of_other_encoders(tmp_path, quiet, codec, suffix, preset):
    if codec not in encoders():
        pytest.skip(f"this PyAV has no {codec}")
    pts = [0, 512, 1024, 2048, 2560, 12800, 13312, 13440, 13568, 20480]
    source = make_clip(tmp_path / "in.mp4", pts=pts, size=(64, 48))
    target = tmp_path / f"out{suffix}"
    run(source, target, VideoOptions(codec=codec, preset=preset, segment_frames=4))
    for time, exact in zip(times(target), times(source), strict=True):
        assert abs(time - exact) <= (Fraction(1, 1000) if suffix == ".webm" else 0)


def test_edit_lists_and_chapters_of_mp4(tmp_path, quiet):
    """What the edit list of a trimmed clip hides stays hidden; chapters are not copied twice."""
    whole = make_clip(tmp_path / "whole.mp4", 30, audio=("eng",), options={"g": "100"})
    source = tmp_path / "in.mp4"
    chapter = {"id": 1, "start": 0, "end": 500, "time_base": Fraction(1, 1000)}
    with av.open(str(whole)) as old, av.open(str(source), "w") as new:
        new.set_chapters([{**chapter, "metadata": {"title": "A"}}])
        targets = [new.add_stream_from_template(stream, opaque=True) for stream in old.streams]
        for packet in old.demux():
            if packet.size:
                offset = int(Fraction(1, 2) / packet.time_base)
                packet.pts -= offset
                packet.dts -= offset
                packet.stream = targets[packet.stream_index]
                new.mux(packet)
    shown = [time for time in times(source) if time >= 0]
    assert len(shown) < 20
    for suffix in (".mp4", ".mkv"):
        target = tmp_path / f"out{suffix}"
        run(source, target)
        moved = times(target)[0] - shown[0]
        assert 0 <= moved <= Fraction(1, 10)  # what the audio decoder begins with
        for time, exact in zip(times(target), shown, strict=True):
            assert abs(time - exact - moved) <= Fraction(1, 1000)
        with av.open(str(target)) as result:
            assert [entry["metadata"]["title"] for entry in result.chapters()] == ["A"]
            assert len(result.streams.audio) == 1


def _sound_start(path):
    with av.open(str(path)) as container:
        packet = next(container.demux(container.streams.audio[0]))
        return packet.pts * packet.time_base


def test_all_else_is_copied(tmp_path, quiet):
    plain = make_clip(tmp_path / "plain.mkv", 20, audio=("deu", "eng"))
    source = tmp_path / "in.mkv"
    font = bytes(range(256)) * 20
    chapters = [
        {
            "id": 1,
            "start": 0,
            "end": 400,
            "time_base": Fraction(1, 1000),
            "metadata": {"title": "A"},
        },
        {
            "id": 2,
            "start": 400,
            "end": 800,
            "time_base": Fraction(1, 1000),
            "metadata": {"title": "B"},
        },
    ]
    spoken = tmp_path / "in.srt"
    spoken.write_text("1\n00:00:00,240 --> 00:00:00,640\nBonjour\n")
    with (
        av.open(str(plain)) as old,
        av.open(str(spoken)) as lines,
        av.open(str(source), "w", container_options={"default_mode": "passthrough"}) as new,
    ):
        new.metadata["title"] = "A title"
        new.metadata["artist"] = "Änne"
        targets = [new.add_stream_from_template(stream, opaque=True) for stream in old.streams]
        for stream, target in zip(old.streams, targets, strict=True):
            target.metadata.update(stream.metadata)
        targets[0].metadata["title"] = "Left camera"
        targets[2].disposition = (
            av.stream.Disposition.default | av.stream.Disposition.forced
        ).value
        words = new.add_stream_from_template(lines.streams.subtitles[0], opaque=True)
        words.metadata["language"] = "fra"
        new.add_attachment("letters.ttf", "application/x-truetype-font", font)
        new.set_chapters(chapters)
        for packet in old.demux():
            if packet.size:
                packet.stream = targets[packet.stream_index]
                new.mux(packet)
        for packet in lines.demux():
            if packet.size:
                packet.stream = words
                new.mux(packet)
    target = tmp_path / "out.mkv"
    run(source, target)
    for index in range(2):
        assert packets(target, "audio", index) == packets(source, "audio", index)
    assert packets(target, "subtitles") == packets(source, "subtitles")
    with av.open(str(source)) as old, av.open(str(target)) as new:
        assert [stream.type for stream in new.streams] == [stream.type for stream in old.streams]
        for before, after in zip(old.streams, new.streams, strict=True):
            assert after.language == before.language
            assert after.disposition == before.disposition
            assert after.metadata.get("title") == before.metadata.get("title")
        assert new.streams.attachments[0].data == font
        assert new.streams.attachments[0].mimetype == "application/x-truetype-font"
        assert new.metadata["title"] == "A title"
        assert new.metadata["ARTIST"] == "Änne"
        assert [
            (float(c["start"] * c["time_base"]), float(c["end"] * c["time_base"]), c["metadata"])
            for c in new.chapters()
        ] == [(0.0, 0.4, {"title": "A"}), (0.4, 0.8, {"title": "B"})]


def test_subtitles_that_do_not_fit_are_said(tmp_path):
    plain = make_clip(tmp_path / "plain.mkv", 5)
    source = tmp_path / "in.mkv"
    with av.open(str(plain)) as old, av.open(str(source), "w") as new:
        video = new.add_stream_from_template(old.streams.video[0], opaque=True)
        new.add_attachment("letters.ttf", "application/x-truetype-font", b"font")
        for packet in old.demux():
            if packet.size:
                packet.stream = video
                new.mux(packet)
    with pytest.warns(VideoWarning, match="attachment.*left out"):
        run(source, tmp_path / "out.mp4")


def test_audio_that_does_not_fit_is_an_error_before_the_work(tmp_path):
    source = make_clip(tmp_path / "in.mp4", 5, audio=("eng",))
    upscaler = Plain()
    with pytest.raises(ValueError, match=r"stream 1 \(audio aac, eng\).*webm.*\.mkv"):
        upscale_video(source, tmp_path / "out.webm", upscaler)
    assert upscaler.seen == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_cover_is_copied_not_enlarged(tmp_path, quiet, suffix):
    plain = make_clip(tmp_path / "plain.mp4", 6)
    cover = make_clip(
        tmp_path / "cover.mp4",
        1,
        codec="png",
        pixel_format="rgb24",
        size=(40, 40),
        make=lambda number: gray_frame(0, (40, 40), "yuv444p").reformat(format="rgb24"),
    )
    source = tmp_path / "in.mp4"
    with av.open(str(plain)) as old, av.open(str(cover)) as card, av.open(str(source), "w") as new:
        video = new.add_stream_from_template(old.streams.video[0], opaque=True)
        picture = new.add_stream_from_template(card.streams.video[0], opaque=True)
        picture.disposition = av.stream.Disposition.attached_pic.value
        for container, target in ((card, picture), (old, video)):
            for packet in container.demux():
                if packet.size:
                    packet.stream = target
                    new.mux(packet)
    target = tmp_path / f"out{suffix}"
    assert run(source, target).size == (128, 96)
    assert packets(target, "video", 1) == packets(source, "video", 1)
    with av.open(str(target)) as result:
        assert result.streams.video[1].disposition & av.stream.Disposition.attached_pic


def test_max_frames_cuts_sound_as_well(tmp_path, quiet):
    source = make_clip(tmp_path / "in.mp4", 25, audio=("eng",))
    target = tmp_path / "out.mp4"
    summary = run(source, target, VideoOptions(preset="ultrafast", max_frames=10))
    assert summary.frames == 10
    assert times(target) == times(source)[:10]
    with av.open(str(target)) as result:
        sound = result.streams.audio[0]
        assert 0.4 <= float(sound.duration * sound.time_base) < 0.5


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_clock_that_starts_late_is_set_back(tmp_path, quiet, suffix):
    """As in captures that count from when the camera was switched on."""
    plain = make_clip(tmp_path / "plain.mkv", 20, audio=("eng",))
    chapters = [
        {"id": number, "start": start, "end": end, "time_base": Fraction(1, 1000), "metadata": {}}
        for number, (start, end) in enumerate(
            [(0, 1000), (0, 3_600_400), (3_600_400, 3_600_800)], start=1
        )
    ]
    source = make_clip(
        tmp_path / "in.mkv",
        20,
        audio=("eng",),
        container_options={"output_ts_offset": "3600"},
        prepare=lambda output: output.set_chapters(chapters),
    )
    assert times(source)[0] >= 3600
    assert 0.7 < probe(source).duration < 1 and 19 <= probe(source).frames <= 25
    target = tmp_path / f"out{suffix}"
    run(source, target)
    with av.open(str(target)) as result:
        assert result.duration < 1_000_000
        assert [
            [round(float(chapter[end] * chapter["time_base"]), 1) for end in ("start", "end")]
            for chapter in result.chapters()
        ] == [[0, 0.4], [0.4, 0.8]]
    for found, wanted in zip(times(target), times(plain), strict=True):
        assert abs(found - wanted) <= Fraction(1, 20)
    distance = [_sound_start(path) - times(path)[0] for path in (target, plain)]
    assert abs(distance[0] - distance[1]) <= Fraction(2, 1000)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_stray_first_time_does_not_move_the_rest(tmp_path, suffix):
    source, target = tmp_path / "in.mkv", tmp_path / f"out{suffix}"
    clip = make_clip(tmp_path / "clip.mkv", 20, codec="mjpeg", pixel_format="yuvj420p")
    with av.open(str(clip)) as old, av.open(str(source), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for number, packet in enumerate(old.demux()):
            if packet.size:
                packet.stream = stream
                packet.pts += 3600 * 1000 * (number == 0)
                new.mux_one(packet)
    run(source, target)
    found = times(target)
    assert len(found) == 20 and found[0] < 1
    assert all(abs(b - a - Fraction(1, 25)) <= Fraction(1, 500) for a, b in pairwise(found))


def test_transport_stream_starts_at_zero_and_in_sync(tmp_path, quiet):
    source = make_clip(
        *(tmp_path / "in.ts", 20),
        audio=("eng",),
        audio_codec="mp2",
        container_options={"output_ts_offset": "10"},
    )
    target = tmp_path / "out.mp4"
    run(source, target)
    before, after = times(source), times(target)
    assert before[0] >= 10
    moved = after[0] - before[0]
    for time, old in zip(after, before, strict=True):
        assert abs(time - old - moved) <= Fraction(1, 90000)
    assert abs(_sound_start(target) - _sound_start(source) - moved) <= Fraction(2, 16000)
    assert min(after[0], _sound_start(target)) <= Fraction(1, 100)


def test_decode_times_increase_and_precede():
    pts = [0, 512, 1024, 9000, 9001, 9002, 9600]
    order = [0, 1024, 512, 9000, 9002, 9001, 9600]
    found = decode_times(pts, order, 512)
    assert all(b > a for a, b in pairwise(found))
    assert all(dts <= shown for dts, shown in zip(found, order, strict=True))
    assert decode_times(pts, pts, 512) == pts


def test_frames_without_order_get_one(tmp_path):
    """Time stamps of raw H.264 do not exist."""
    source = make_clip(tmp_path / "in.h264", 12, options={"bf": "0"})
    target = tmp_path / "out.mp4"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VideoWarning)
        assert run(source, target).frames == 12
    found = times(target)
    assert all(b > a for a, b in pairwise(found))


def test_real_clip_with_everything_default(tmp_path, quiet):
    source = make_clip(
        tmp_path / "in.mkv", 9, codec="libvpx-vp9", audio=("eng",), audio_codec="libopus"
    )
    target = tmp_path / "out.webm"
    assert run(source, target, VideoOptions(preset="8")).codec == "libvpx-vp9"
    assert packets(target, "audio") == packets(source, "audio")
    assert len(planes(target)) == 9
