"""Batches of training pairs: against the single steps, alone and in company, never read back."""

import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from dasr_ops.train.config import DegradationConfig, LevelWeights, TrainConfig
from dasr_ops.train.degradations import (
    LEVELS,
    TRAINING_MIX,
    Level,
    apply,
    labels,
    sample,
    usm_sharpen,
)
from dasr_ops.train.degradations.params import StageParams
from dasr_ops.train.synthesis import Synthesis

pytestmark = pytest.mark.usefixtures("one_thread")


def sources(batch, side=96, seed=0):
    noise = np.random.default_rng(seed).random((batch, 3, side, side))
    x = ndimage.gaussian_filter(noise, (0, 0, 1.5, 1.5))
    x = (x - x.min()) / (x.max() - x.min())
    return torch.from_numpy(np.rint(x * 255).astype(np.uint8))


def corners(*pairs):
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def assert_same(a, b):
    for name in ("lr", "gt", "sharp", "v"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("scheme", ["unified", "official"])
def test_a_batch_is_sharpened_degraded_labelled_and_cut(scale, scheme):
    synthesis = Synthesis(TRAINING_MIX, scale, 48, scheme=scheme)
    x, at = sources(5), corners((0, 0), (1, 2), (5, 3), (12, 12), (0, 12))
    params = synthesis.draw(range(5))
    batch = synthesis(x, at, params)

    unit = x.numpy() / np.float32(255)
    sharp = np.rint(usm_sharpen(torch.from_numpy(unit)).numpy() * 255).astype(np.uint8)
    low = apply(params, torch.from_numpy(sharp / np.float32(255)), scale).numpy()
    low = np.rint(low * 255).astype(np.uint8)
    assert [batch.lr.dtype, batch.gt.dtype, batch.sharp.dtype] == [torch.uint8] * 3
    assert torch.equal(batch.v, labels(params, scheme))
    small = 48 // scale
    for i, (top, left) in enumerate(at.tolist()):
        fine = (i, slice(None), slice(scale * top, scale * top + 48))
        fine = (*fine, slice(scale * left, scale * left + 48))
        np.testing.assert_array_equal(batch.gt[i], x.numpy()[fine])
        np.testing.assert_array_equal(batch.sharp[i], sharp[fine])
        np.testing.assert_array_equal(
            batch.lr[i], low[i, :, top : top + small, left : left + small]
        )
    assert (batch.sharp != batch.gt).any()


def test_pairs_stay_aligned():
    """The low-resolution patch shows the same place as the ground truth."""
    synthesis = Synthesis({"clean_area": 1}, 4, 32, sharpen=False)
    x = sources(3)
    batch = synthesis(x, corners((2, 9), (16, 0), (16, 16)), synthesis.draw([1, 2, 3]))
    means = batch.gt.float().reshape(3, 3, 8, 4, 8, 4).mean((3, 5))
    assert (batch.lr - means).abs().max() <= 0.5 + 1e-4


def test_without_sharpening_the_ground_truth_is_degraded_itself():
    synthesis = Synthesis({"weak": 1}, 4, 64, sharpen=False)
    x, at, params = sources(2), corners((0, 0), (8, 8)), synthesis.draw([3, 4])
    batch = synthesis(x, at, params)
    assert batch.sharp is batch.gt
    low = apply(params, x.float() / 255)
    assert torch.equal(batch.lr[1].float(), (low[1, :, 8:, 8:] * 255).round())


def test_a_pair_depends_on_nothing_but_its_own_seed_picture_and_place():
    synthesis = Synthesis(TRAINING_MIX, 4, 64)
    x, at, seeds = sources(6), corners((0, 8), (1, 7), (2, 6), (3, 5), (4, 4), (5, 3)), range(9, 15)
    together = synthesis(x, at, synthesis.draw(seeds))
    for i, seed in enumerate(seeds):
        alone = synthesis(x[i : i + 1], at[i : i + 1], synthesis.draw([seed]))
        assert_same(alone, together[i : i + 1])
    order = [4, 2, 5, 0, 3, 1]
    turned = synthesis(x[order], at[order], synthesis.draw([seeds[i] for i in order]))
    assert_same(turned, together[torch.tensor(order)])


def test_draw_is_the_sampler_with_the_seed():
    synthesis = Synthesis(TRAINING_MIX, 4, 64)
    drawn = synthesis.draw([7, 8])
    expected = sample(torch.Generator().manual_seed(8), 1, TRAINING_MIX)
    assert drawn[1].level == expected.level
    assert torch.equal(labels(drawn[1]), labels(expected))
    assert torch.equal(drawn[1].stage1.noise_seed, expected.stage1.noise_seed)


def test_corners_on_the_device_give_the_same():
    """Corners that cannot be read take another way; `meta` stands for a device here."""
    from dasr_ops.train import synthesis as module

    pictures, at = sources(3), corners((0, 4), (3, 2), (8, 8))
    ours = module._crop(pictures, at, 48)

    class Elsewhere(torch.Tensor):
        @property
        def device(self):
            return torch.device("meta")

        def tolist(self):
            raise AssertionError("reads back")

    other = module._crop(pictures, at.as_subclass(Elsewhere), 48)
    assert torch.equal(ours, other.as_subclass(torch.Tensor))


def test_nothing_is_read_back_from_the_device():
    """On `meta` tensors, which hold no data, whatever reads a value raises."""

    def silent(stage):
        return replace(stage, noise_prob=0.0)  # there is no generator for meta

    severe = LEVELS["severe"]
    level = Level(silent(severe.stage1), silent(severe.stage2), severe.sinc)
    params = sample(torch.Generator().manual_seed(0), 8, level)
    out = apply(params, torch.empty(8, 3, 96, 96, device="meta"))
    assert out.shape == (8, 3, 24, 24) and out.device.type == "meta"
    assert usm_sharpen(torch.empty(2, 3, 40, 40, device="meta")).device.type == "meta"

    synthesis = Synthesis({"clean": 1}, 4, 64)
    source = torch.empty(2, 3, 96, 96, device="meta", dtype=torch.uint8)
    for place in ("cpu", "meta"):
        at = corners((0, 0), (8, 8)).to(place)
        batch = synthesis(source, at, synthesis.draw([0, 1]))
        assert batch.lr.shape == (2, 3, 16, 16) and batch.sharp.shape == (2, 3, 64, 64)
        assert {t.device.type for t in batch.state_dict().values()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_nothing_is_waited_for_and_the_result_is_that_of_the_cpu():
    synthesis = Synthesis(TRAINING_MIX, 4, 64)
    x, at, params = sources(6), corners(*[(i, 8 - i) for i in range(6)]), synthesis.draw(range(6))
    synthesis(x.cuda(), at, params)  # constants are copied once
    moved = x.cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        synthesis(moved, at, params)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for stage in (params.stage1, params.stage2):  # the devices' noise fields differ
        stage.noise_kind.zero_()
    ours, expected = synthesis(moved, at, params), synthesis(x, at, params)
    assert torch.equal(ours.gt.cpu(), expected.gt) and torch.equal(ours.v.cpu(), expected.v)
    for name in ("sharp", "lr"):
        steps = (getattr(ours, name).cpu().int() - getattr(expected, name).int()).abs().float()
        # Ties that float32 noise decides, and what a coefficient of JPEG makes of one.
        assert (steps > 1).float().mean() < 0.02 and steps.mean() < 0.1


def test_both_codecs_give_the_same_pictures():
    synthesis = Synthesis(TRAINING_MIX, 4, 64)
    params = synthesis.draw(range(8))
    x = sources(8).double() / 255
    assert torch.equal(apply(params, x, codec="batched"), apply(params, x, codec="pillow"))


def test_mixed_precision_of_the_training_changes_nothing():
    synthesis = Synthesis({"weak": 1}, 4, 64)
    x, at, params = sources(2), corners((0, 0), (8, 8)), synthesis.draw([3, 4])
    expected = synthesis(x, at, params)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(synthesis(x, at, params), expected)


def test_settings_of_a_run():
    levels = LevelWeights(weak=0.0, standard=1.0, severe=0.0, clean=1.0)
    settings = DegradationConfig(levels=levels, labels="official", sharpen=False)
    synthesis = Synthesis.from_config(TrainConfig(degradation=settings))
    assert (synthesis.scale, synthesis.patch_size) == (4, 256)
    assert (synthesis.scheme, synthesis.sharpen) == ("official", False)
    assert set(synthesis.draw(range(60)).level) == {"clean", "standard"}
    again = pickle.loads(pickle.dumps(synthesis))
    for field in fields(StageParams):
        first, second = (getattr(s.draw([5]).stage1, field.name) for s in (synthesis, again))
        assert torch.equal(first, second)


def test_an_empty_batch():
    synthesis = Synthesis(TRAINING_MIX, 4, 64)
    batch = synthesis(sources(1)[:0], corners(), synthesis.draw([]))
    assert batch.lr.shape == (0, 3, 16, 16) and batch.gt.shape == (0, 3, 64, 64)
    assert batch.v.shape == (0, 33) and len(batch) == 0


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="patch_size: expected a multiple of 4, got 30"):
        Synthesis(TRAINING_MIX, 4, 30)
    with pytest.raises(ValueError, match="scale: expected a whole number"):
        Synthesis(TRAINING_MIX, 0, 32)
    with pytest.raises(ValueError, match="scheme: expected one of"):
        Synthesis(TRAINING_MIX, 4, 32, scheme="other")
    with pytest.raises(ValueError, match=r"level: expected names among .* got \['heavy'\]"):
        Synthesis({"heavy": 1}, 4, 32)
    synthesis = Synthesis(TRAINING_MIX, 4, 64)
    x, at, params = sources(2), corners((0, 0), (8, 8)), synthesis.draw([0, 1])
    with pytest.raises(TypeError, match=r"sources: expected uint8, got torch\.float32"):
        synthesis(x.float(), at, params)
    with pytest.raises(ValueError, match=r"sources: expected shape \[B, 3, S, S\]"):
        synthesis(x[:, :1], at, params)
    with pytest.raises(ValueError, match=r"sources: expected sides of 64 or more.* got 60x96"):
        synthesis(x[:, :, :60], at, params)
    with pytest.raises(TypeError, match=r"corners: expected int64, got torch\.int32"):
        synthesis(x, at.int(), params)
    with pytest.raises(ValueError, match=r"corners: expected shape \[2, 2\], got \[1, 2\]"):
        synthesis(x, at[:1], params)
    with pytest.raises(ValueError, match=r"corners: expected 0 \.\. 8 and 0 \.\. 8, got"):
        synthesis(x, corners((0, 0), (8, 9)), params)
    with pytest.raises(ValueError, match="params: expected 2 samples, as in sources, got 1"):
        synthesis(x, at, params[0])
    with pytest.raises(ValueError, match=r"seeds: expected numbers in 0"):
        synthesis.draw([-1])
