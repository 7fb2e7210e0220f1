"""Animations: every frame, its time, and one degradation for all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dasr_ops.models import DASR, Degradation_Predictor, MSRResNetDynamic, Upscaler
from dasr_ops.models.animation import upscale_animation
from dasr_ops.models.pictures import Picture, PictureError, open_animation, write_animation

DURATIONS = [100, 40, 250]


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    torch.manual_seed(0)
    net_g = MSRResNetDynamic(num_feat=4, num_block=1, num_models=2, upscale=2)
    return Upscaler(DASR(net_g, Degradation_Predictor(nf=4, num_networks=2)), tile=20, overlap=2)


@pytest.fixture
def frames() -> list[Picture]:
    noise = np.random.default_rng(0).integers(0, 256, (3, 24, 30, 3), dtype=np.uint8)
    return [Picture(np.ascontiguousarray(frame)) for frame in noise]


@pytest.mark.parametrize("suffix", [".png", ".webp", ".gif"])
def test_frames_times_and_loops(upscaler, frames, tmp_path, suffix):
    source, target = tmp_path / "a.png", tmp_path / f"b{suffix}"
    write_animation(frames, source, durations=DURATIONS, loop=2)
    seen = []
    pixels = upscale_animation(source, target, upscaler, progress=lambda *now: seen.append(now))
    assert pixels == 3 * 60 * 48
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    result = open_animation(target)
    assert (result.num_frames, result.loop, list(result.durations)) == (3, 2, DURATIONS)
    v = torch.stack([upscaler.predict_picture(frame).v for frame in frames]).mean(0)
    for got, frame in zip(result, frames, strict=True):
        assert got.size == (60, 48)
        if suffix == ".png":  # the one without loss
            expected = upscaler(frame, degradation=v)
            np.testing.assert_array_equal(got.color, expected.color)


def test_a_degradation_may_be_given_or_edited(upscaler, frames, tmp_path):
    source, target = tmp_path / "a.png", tmp_path / "b.png"
    write_animation(frames, source, durations=DURATIONS, loop=0)
    v = torch.full((1, 33), 0.3)
    upscale_animation(source, target, upscaler, degradation=v)
    first = next(iter(open_animation(target)))
    np.testing.assert_array_equal(first.color, upscaler(frames[0], degradation=v).color)
    upscale_animation(source, target, upscaler, degradation=lambda predicted: predicted * 0 + 0.3)
    np.testing.assert_array_equal(next(iter(open_animation(target))).color, first.color)


def test_what_is_no_animation_and_what_exists(upscaler, frames, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "still.png")
    with pytest.raises(PictureError, match="not an animation"):
        upscale_animation(tmp_path / "still.png", tmp_path / "b.png", upscaler)
    write_animation(frames, tmp_path / "a.png", durations=DURATIONS, loop=0)
    (tmp_path / "b.png").write_text("mine")
    with pytest.raises(FileExistsError):
        upscale_animation(tmp_path / "a.png", tmp_path / "b.png", upscaler, replace=False)
    assert (tmp_path / "b.png").read_text() == "mine"
