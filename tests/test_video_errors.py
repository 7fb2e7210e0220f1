"""Bad input: one clear line, and nothing left behind."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("av", reason="PyAV is not installed")

import av

from dasr_ops.models.video import (
    VIDEO_SUFFIXES,
    VideoError,
    VideoOptions,
    VideoWarning,
    encoders,
    probe,
    target_suffix,
    upscale_video,
    work_paths,
)

from .video_tools import Nearest, gray_frame, make_clip, times

FAST = VideoOptions(preset="ultrafast")


def fails(source: Path, message: str, target: Path | None = None, **kwargs) -> None:
    before = sorted(source.parent.iterdir()) if source.parent.is_dir() else []
    upscaler = Nearest()
    target = target or source.parent / "out.mp4"
    with pytest.raises(VideoError, match=message) as caught:
        upscale_video(source, target, upscaler, options=FAST, **kwargs)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert upscaler.seen == []
    if before:
        assert sorted(source.parent.iterdir()) == before


def test_missing_source(tmp_path):
    fails(tmp_path / "none.mp4", "none.mp4 does not exist")
    with pytest.raises(VideoError, match="does not exist"):
        probe(tmp_path / "none.mp4")


def test_folder_as_source_or_target(tmp_path):
    fails(tmp_path, "is a folder")
    source = make_clip(tmp_path / "in.mp4", 2)
    (tmp_path / "folder.mp4").mkdir()
    fails(source, "is a folder", tmp_path / "folder.mp4")


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100, bytes(5000)])
def test_no_video_file(tmp_path, content):
    source = tmp_path / "in.mp4"
    source.write_bytes(content)
    fails(source, "in.mp4.*empty" if not content else r"in\.mp4 is no video, or broken")


def test_header_missing(tmp_path):
    """An MP4 whose index at the end is cut off."""
    whole = make_clip(tmp_path / "whole.mp4", 20)
    source = tmp_path / "in.mp4"
    source.write_bytes(whole.read_bytes()[:-2000])
    fails(source, "no video, or broken")


def test_only_audio(tmp_path):
    source = tmp_path / "in.mka"
    clip = make_clip(tmp_path / "clip.mkv", 3, audio=("eng",))
    with av.open(str(clip)) as old, av.open(str(source), "w", format="matroska") as new:
        stream = new.add_stream_from_template(old.streams.audio[0])
        for packet in old.demux(old.streams.audio[0]):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    fails(source, "has no video, only audio")


def test_no_frames(tmp_path):
    source = tmp_path / "in.avi"
    with av.open(str(source), "w") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 32, 24
        output.start_encoding()
    fails(source, "without a single frame|no video, or broken")


def test_encrypted(tmp_path):
    source = make_clip(
        tmp_path / "in.mp4",
        10,
        container_options={
            "encryption_scheme": "cenc-aes-ctr",
            "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
            "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
        },
    )
    fails(source, "encrypted")


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".mp4"])
def test_cut_off_file_gives_what_can_be_decoded(tmp_path, suffix):
    options = {"movflags": "+faststart"} if suffix == ".mp4" else {}
    whole = make_clip(
        tmp_path / f"whole{suffix}", 60, size=(64, 48), container_options=options, audio=("eng",)
    )
    source = tmp_path / f"in{suffix}"
    source.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    target = tmp_path / "out.mkv"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        summary = upscale_video(source, target, Nearest(), options=FAST)
    # A transport stream may end anywhere.
    said = [str(entry.message) for entry in caught]
    assert suffix == ".ts" or any("cut off" in text or "broken" in text for text in said)
    assert 10 < summary.frames < 55
    assert len(times(target)) == summary.frames


def test_broken_in_the_middle(tmp_path):
    whole = make_clip(tmp_path / "whole.ts", 60, size=(64, 48), options={"g": "10"})
    content = bytearray(whole.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = bytes(300)
    source = tmp_path / "in.ts"
    source.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        summary = upscale_video(source, tmp_path / "out.mkv", Nearest(), options=FAST)
    assert summary.frames == len(times(tmp_path / "out.mkv")) >= 30
    assert all(entry.category is VideoWarning for entry in caught)


def test_damage_that_the_decoder_conceals(tmp_path):
    """Bits of pictures are wrong in a file that is whole."""
    whole = make_clip(
        tmp_path / "whole.mp4",
        20,
        size=(160, 128),
        options={"g": "100", "bf": "0", "crf": "10"},
        make=lambda number: gray_frame(number, (160, 128)),
    )
    content = bytearray(whole.read_bytes())
    with av.open(str(whole)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        hit = [(packet.pos, packet.size) for packet in packets[5:15:5]]
    for position, size in hit:
        for at in range(position + size // 3, position + size - 1, 7):
            content[at] ^= 0x5A
    source = tmp_path / "in.mp4"
    source.write_bytes(content)
    with pytest.warns(VideoWarning, match=r"of \d+ frames are damaged in the source"):
        summary = upscale_video(source, tmp_path / "out.mkv", Nearest(), options=FAST)
    assert summary.frames == len(times(tmp_path / "out.mkv"))


def test_opacity_beside_the_pictures_is_said(tmp_path):
    """VP9 with opacity: the usual decoder gives the colours alone."""
    if "libvpx-vp9" not in encoders():
        pytest.skip("this PyAV has no libvpx-vp9")
    source = tmp_path / "in.webm"

    def frame(number: int):
        return gray_frame(number).reformat(format="yuva420p")

    make_clip(source, 4, codec="libvpx-vp9", pixel_format="yuva420p", make=frame)
    with av.open(str(source)) as container:
        tags = {key.lower() for key in container.streams.video[0].metadata}
    assert "alpha_mode" in tags
    target = tmp_path / "out.mkv"
    with pytest.warns(VideoWarning, match="opacity is left out"):
        upscale_video(source, target, Nearest(), options=FAST)
    with av.open(str(target)) as container:
        tags = {key.lower() for key in container.streams.video[0].metadata}
    assert "alpha_mode" not in tags


def test_size_that_changes_on_the_way(tmp_path):
    """Two raw streams one behind the other."""
    a = make_clip(tmp_path / "a.h264", 6, options={"bf": "0"})
    b = make_clip(tmp_path / "b.h264", 6, size=(48, 32), options={"bf": "0"})
    source = tmp_path / "in.h264"
    source.write_bytes(a.read_bytes() + b.read_bytes())
    with pytest.warns(VideoWarning, match="48x32.*32x24"):
        summary = upscale_video(source, tmp_path / "out.mp4", Nearest(), options=FAST)
    assert summary.frames == 12 and summary.size == (128, 96)


def test_source_is_target(tmp_path):
    source = make_clip(tmp_path / "in.mp4", 2)
    fails(source, "is the source itself", source, replace=True)
    (tmp_path / "link.mp4").symlink_to(source)
    fails(source, "is the source itself", tmp_path / "link.mp4", replace=True)


@pytest.mark.parametrize("name", ["out.avi", "out", "out.png"])
def test_target_of_another_format(tmp_path, name):
    source = make_clip(tmp_path / "in.mp4", 2)
    fails(source, r"written as one of \.mp4", tmp_path / name)


def test_target_in_a_file(tmp_path):
    source = make_clip(tmp_path / "in.mp4", 2)
    fails(source, "cannot be written", source / "folder" / "out.mp4")


def test_folder_of_the_target_is_made(tmp_path):
    source = make_clip(tmp_path / "in.mp4", 2)
    target = tmp_path / "new" / "folder" / "out.mp4"
    upscale_video(source, target, Nearest(), options=FAST)
    assert len(times(target)) == 2


def test_names_that_look_like_addresses(tmp_path):
    source = make_clip(tmp_path / "in.mp4", 2)
    odd = tmp_path / "a:b%03d ü [1].mp4"
    source.rename(odd)
    target = tmp_path / "http:c%d'x\".mp4"
    upscale_video(odd, target, Nearest(), options=FAST)
    assert target.is_file() and probe(odd).size == (32, 24)


def test_wrong_result_of_an_upscaler(tmp_path):
    class Wrong(Nearest):
        def output_size(self, width, height):
            return 2 * width, 2 * height

    source = make_clip(tmp_path / "in.mp4", 2)
    with pytest.raises(VideoError, match=r"upscaler: expected a result \[1, 3, 48, 64\]"):
        upscale_video(source, tmp_path / "out.mp4", Wrong(), options=FAST)
    assert work_paths(tmp_path / "out.mp4") == []


def test_errors_of_the_network_pass(tmp_path):
    class Failing(Nearest):
        def __call__(self, image, *, degradation):
            raise RuntimeError("the network returns NaN")

    source = make_clip(tmp_path / "in.mp4", 2)
    with pytest.raises(RuntimeError, match="NaN"):
        upscale_video(source, tmp_path / "out.mp4", Failing(), options=FAST)
    assert work_paths(tmp_path / "out.mp4") == []


def test_missing_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoError, match=r"video needs PyAV.*pip install 'dasr-ops\[video\]'"):
        upscale_video(tmp_path / "in.mp4", tmp_path / "out.mp4", Nearest())
    with pytest.raises(VideoError, match="video needs PyAV"):
        probe(tmp_path / "in.mp4")


def test_old_pyav(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "__version__", "12.3.0")
    with pytest.raises(VideoError, match=r"PyAV 16\.0 or later, got 12\.3\.0"):
        probe(tmp_path / "in.mp4")


def test_second_video_is_copied_and_said(tmp_path):
    clip = make_clip(tmp_path / "clip.mkv", 4)
    source = tmp_path / "in.mkv"
    with av.open(str(clip)) as old, av.open(str(source), "w") as new:
        streams = [new.add_stream_from_template(old.streams.video[0]) for _ in range(2)]
        for packet in old.demux():
            for stream in streams if packet.size else ():
                copy = av.Packet(bytes(packet))
                copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
                copy.is_keyframe, copy.stream = packet.is_keyframe, stream
                new.mux(copy)
    with pytest.warns(VideoWarning, match=r"stream 1 \(video h264\) is a second video"):
        upscale_video(source, tmp_path / "out.mkv", Nearest(), options=FAST)
    with av.open(str(tmp_path / "out.mkv")) as result:
        assert [stream.width for stream in result.streams.video] == [128, 32]


def test_tiny_and_long_pictures(tmp_path):
    for size in ((2, 2), (16, 2), (2, 300)):
        source = make_clip(
            tmp_path / "in.mkv",
            2,
            codec="ffv1",
            size=size,
            pixel_format="yuv444p",
            make=lambda number, size=size: gray_frame(number, (64, 320), "yuv444p").reformat(*size),
        )
        target = tmp_path / "out.mkv"
        options = VideoOptions(codec="ffv1")
        summary = upscale_video(source, target, Nearest(), options=options, replace=True)
        assert summary.size == (4 * size[0], 4 * size[1])


def test_too_large_for_the_encoder(tmp_path):
    source = make_clip(
        tmp_path / "in.mkv",
        1,
        codec="ffv1",
        size=(5000, 4),
        make=lambda number: gray_frame(number, (5000, 16)).reformat(5000, 4),
    )
    fails(source, "libx264 refuses 20000x16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crf": -1}, "crf: expected at least 0, got -1"),
        ({"crf": float("nan")}, "crf"),
        ({"smoothing": -0.1}, "smoothing"),
        ({"segment_frames": 0}, "segment_frames: expected at least 1, got 0"),
        ({"predict_every": 0}, "predict_every"),
        ({"max_frames": 0}, "max_frames"),
        ({"threads": -1}, "threads"),
    ],
)
def test_options_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        VideoOptions(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"codec": None},
        {"codec": ""},
        {"crf": "18"},
        {"segment_frames": 1.5},
        {"threads": True},
        {"encoder_options": "a=b"},
        {"preset": 1.5},
    ],
)
def test_options_of_wrong_types(arguments):
    with pytest.raises(TypeError, match=f"VideoOptions: {next(iter(arguments))}"):
        VideoOptions(**arguments)


def test_lists():
    assert {".mp4", ".mkv", ".mov", ".webm", ".avi"} <= VIDEO_SUFFIXES
    assert target_suffix(Path("a.MP4")) == ".mp4" and target_suffix(Path("a.avi")) == ".mkv"
    assert "ffv1" in encoders() and len(set(encoders())) == len(encoders())
