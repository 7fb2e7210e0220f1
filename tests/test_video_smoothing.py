"""The degradation over time."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dasr_ops.models.video.smoothing import CutDetector, DegradationTrack


def scene(seed: int, level: float = 0.5) -> torch.Tensor:
    """A picture of large blobs, [1, 3, 48, 64]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 8, generator=generator)
    blobs = torch.nn.functional.interpolate(coarse, (48, 64), mode="bicubic").clamp(0, 1)
    return (level * 2 * blobs).clamp(0, 1)


def noisy(picture: torch.Tensor, seed: int, sigma: float = 0.1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (picture + sigma * torch.randn(picture.shape, generator=generator)).clamp(0, 1)


def cuts(frames: list[torch.Tensor]) -> list[int]:
    detector = CutDetector()
    return [number for number, frame in enumerate(frames) if detector(frame)]


def test_cuts_are_found_and_nothing_else():
    shots = [[noisy(scene(shot), 10 * shot + i) for i in range(6)] for shot in range(4)]
    assert cuts([frame for shot in shots for frame in shot]) == [0, 6, 12, 18]


def test_motion_is_no_cut():
    wide = torch.nn.functional.interpolate(scene(0), (48, 256), mode="bilinear")
    assert cuts([wide[..., 8 * i : 8 * i + 64] for i in range(24)]) == [0]


def test_flash_and_fade_are_no_cut():
    flash = [scene(3, 0.3)] * 5 + [(scene(3, 0.3) * 1.5 + 0.1).clamp(0, 1)] + [scene(3, 0.3)] * 5
    assert cuts(flash) == [0]
    assert cuts([scene(4) * (1 - i / 25) for i in range(24)]) == [0]


def test_black_to_picture_is_a_cut_and_black_to_black_is_none():
    black = torch.zeros(1, 3, 48, 64)
    assert cuts([black, black, scene(1), scene(1)]) == [0, 2]


def test_average_is_the_exponentially_weighted_mean():
    values = np.random.default_rng(0).random((8, 33))
    times = np.cumsum([0, 0.04, 0.04, 0.04, 0.5, 0.04, 0.04, 0.04])
    supply = iter(torch.from_numpy(values).float()[:, None])
    track = DegradationTrack(lambda rgb: next(supply), smoothing=0.3, every=1)
    for number, time in enumerate(times):
        v = track.update(scene(0), float(time))
        weights = np.exp(-(time - times[: number + 1]) / 0.3)
        wanted = (weights[:, None] * values[: number + 1]).sum(0) / weights.sum()
        assert v.shape == (1, 33) and v.dtype == torch.float32
        np.testing.assert_allclose(v[0].numpy(), wanted, atol=1e-6)


def test_cut_begins_anew():
    supply = iter([torch.full((1, 33), float(i)) for i in (0, 0, 5, 5)])
    track = DegradationTrack(lambda rgb: next(supply), smoothing=100, every=1)
    frames = [scene(0), scene(0), scene(1), scene(1)]
    seen = [track.update(frame, i / 25)[0, 0].item() for i, frame in enumerate(frames)]
    assert seen == [0, 0, 5, 5]
    assert track.cuts == 1


def test_flicker_shrinks():
    generator = torch.Generator().manual_seed(0)
    raw = [torch.rand(1, 33, generator=generator) for _ in range(50)]
    for smoothing, factor in ((0.0, 1.0), (1.0, 0.2)):
        supply = iter(raw)
        track = DegradationTrack(lambda rgb, supply=supply: next(supply), smoothing, 1)
        v = torch.cat([track.update(scene(0), i / 25) for i in range(50)])
        flicker = v[25:].diff(dim=0).abs().mean()
        before = torch.cat(raw)[25:].diff(dim=0).abs().mean()
        assert flicker <= factor * before + 1e-6
        assert factor < 1 or torch.equal(v, torch.cat(raw))


def test_every_nth_frame_of_a_shot_is_predicted():
    asked = []

    def predict(rgb: torch.Tensor) -> torch.Tensor:
        asked.append(rgb)
        return torch.zeros(1, 33)

    track = DegradationTrack(predict, smoothing=1, every=3)
    frames = [scene(0) for _ in range(7)] + [scene(1) for _ in range(4)]
    for number, frame in enumerate(frames):
        track.update(frame, number / 25)
    numbers = [next(i for i, frame in enumerate(frames) if frame is seen) for seen in asked]
    assert numbers == [0, 3, 6, 7, 10]


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_state_goes_on_exactly(stop):
    frames = [noisy(scene(i // 5), i) for i in range(12)]

    def track() -> DegradationTrack:
        return DegradationTrack(lambda rgb: rgb.mean((2, 3)).repeat(1, 11), 0.5, 2)

    whole = track()
    wanted = [whole.update(frame, i / 25) for i, frame in enumerate(frames)]
    first, second = track(), track()
    for i in range(stop):
        first.update(frames[i], i / 25)
    second.restore(json.loads(json.dumps(first.state())))
    for i in range(stop, 12):
        assert torch.equal(second.update(frames[i], i / 25), wanted[i])
    assert second.cuts == whole.cuts
