"""The sampler: ranges, distributions (fixed seeds), independence, reproducibility."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy import stats

from dasr_ops.train.degradations import (
    LEVELS,
    TRAINING_MIX,
    Level,
    Sinc,
    sample,
    sample_seeds,
)
from dasr_ops.train.degradations.levels import NO_JPEG

N = 20000

# The paper's table again: sigma, scale, up / down / keep, Gaussian, Poisson, JPEG quality, blur.
PAPER = {
    "weak": [((0.2, 0.8), (0.85, 1.2), (0.1, 0.2, 0.7), (1, 10), (0.05, 0.5), (90, 95), 1.0)],
    "standard": [((0.2, 1.5), (0.5, 1.2), (0.3, 0.4, 0.3), (1, 20), (0.05, 1.5), (50, 95), 1.0)],
    "severe": [
        ((0.2, 3.0), (0.15, 1.5), (0.2, 0.7, 0.1), (1, 30), (0.05, 3.0), (30, 95), 1.0),
        ((0.2, 1.5), (0.3, 1.2), (0.3, 0.4, 0.3), (1, 25), (0.05, 2.5), (30, 95), 0.8),
    ],
}
STAGES = [(name, number) for name, stages in PAPER.items() for number in range(len(stages))]
TWO_STAGES = Level(
    replace(LEVELS["standard"].stage1, blur_sigma=(0.2, 3.0)),
    replace(LEVELS["weak"].stage1, blur_prob=0.8, scale=(0.3, 1.2)),
    Sinc(),
)


def draw(level, n=N, seed=0):
    return sample(torch.Generator().manual_seed(seed), n, level)


def assert_share(flags, expected):
    """The share of a fixed-seed sample lies within 4 standard deviations."""
    n = flags.numel()
    assert abs(flags.double().mean().item() - expected) <= 4 * math.sqrt(
        expected * (1 - expected) / n
    )


def assert_uniform(values, low, high):
    values = values.double().numpy()
    assert values.min() >= low - 1e-6 and values.max() <= high + 1e-6
    assert stats.kstest(values, "uniform", args=(low, high - low)).pvalue > 1e-3


def assert_equally_often(values, expected):
    found, counts = np.unique(values.numpy(), return_counts=True)
    np.testing.assert_array_equal(found, expected)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("name", "number"), STAGES)
def test_a_level_has_the_distributions_of_the_paper(name, number):
    sigma, scale, directions, gaussian, poisson, quality, blurs = PAPER[name][number]
    params = draw(name)
    s = (params.stage1, params.stage2)[number]
    assert bool((params.has_stage2 == (len(PAPER[name]) == 2)).all())

    blurred = s.blur_sigma[:, 0] > 0
    assert_share(blurred, blurs)
    assert bool((s.blur_size[~blurred] == 7).all()) and not s.blur_sigma[~blurred].any()
    assert_equally_often(s.blur_size[blurred], np.arange(7, 22, 2))
    assert_uniform(s.blur_sigma[blurred, 0], *sigma)
    isotropic = s.blur_sigma[:, 0] == s.blur_sigma[:, 1]
    assert_share(isotropic[blurred], 0.65)
    assert bool((s.blur_rotation[isotropic] == 0).all())
    assert_uniform(s.blur_sigma[~isotropic, 1], *sigma)
    assert_uniform(s.blur_rotation[~isotropic], -math.pi, math.pi)

    for flags, share in zip((s.scale > 1, s.scale < 1, s.scale == 1), directions, strict=True):
        assert_share(flags, share)
    assert_uniform(s.scale[s.scale > 1], 1, scale[1])
    assert_uniform(s.scale[s.scale < 1], scale[0], 1)
    if number == 0:
        assert bool(((s.resize_mode == -1) == (s.scale == 1)).all())
        assert_equally_often(s.resize_mode[s.scale != 1], [0, 1, 2])
    else:  # to a multiple of the final size, even where the scale is kept
        assert_equally_often(s.resize_mode, [0, 1, 2])

    assert_share(s.noise_kind == 1, 0.5)
    assert_share(s.noise_kind == 2, 0.5)
    assert_uniform(s.noise_level[s.noise_kind == 1], *gaussian)
    assert_uniform(s.noise_level[s.noise_kind == 2], *poisson)
    assert_share(s.noise_grey, 0.4)
    assert_equally_often(s.jpeg_quality, np.arange(quality[0], quality[1] + 1))
    assert len(s.noise_seed.unique()) == N
    assert_equally_often(params.final_mode, [0, 1, 2])
    assert not params.final_antialias.any()


def test_one_stage_levels_have_no_second_stage():
    params = draw({"weak": 1, "standard": 1}, 200)
    assert not params.has_stage2.any() and not params.jpeg_last.any()
    assert not params.sinc_size.any() and bool((params.sinc_omega == np.float32(math.pi)).all())
    second = params.stage2
    assert not second.blur_sigma.any() and not second.noise_kind.any()
    assert not second.noise_level.any() and not second.noise_grey.any()
    assert bool((second.jpeg_quality == NO_JPEG).all())
    assert bool((second.scale == 1).all()) and bool((second.resize_mode == -1).all())
    assert_equally_often(params.final_mode, [0, 1, 2])


@pytest.mark.parametrize(
    ("name", "mode", "antialias"), [("clean", 2, True), ("clean_area", 0, False)]
)
def test_clean_levels_do_nothing_but_the_final_resize(name, mode, antialias):
    params = draw(name, 50)
    first = params.stage1
    assert not first.blur_sigma.any() and not first.noise_kind.any()
    assert bool((first.resize_mode == -1).all()) and bool((first.jpeg_quality == NO_JPEG).all())
    assert bool((params.final_mode == mode).all())
    assert bool((params.final_antialias == antialias).all())


@pytest.mark.parametrize("level", [TWO_STAGES, "severe"], ids=["custom", "severe"])
def test_a_level_with_two_stages_and_sinc(level):
    params = draw(level)
    name = level if isinstance(level, str) else "custom"
    assert params.level[0] == name and bool(params.has_stage2.all())
    blurred = params.stage2.blur_sigma[:, 0] > 0
    assert_share(blurred, 0.8)
    assert bool((params.stage2.blur_size[~blurred] == 7).all())
    assert_share(params.sinc_size > 0, 0.8)
    assert_equally_often(params.sinc_size[params.sinc_size > 0], np.arange(7, 22, 2))
    assert_uniform(params.sinc_omega[params.sinc_size > 0], math.pi / 3, math.pi)
    assert bool((params.sinc_omega[params.sinc_size == 0] == np.float32(math.pi)).all())
    assert_share(params.jpeg_last, 0.5)
    assert_share(params.jpeg_last[params.sinc_size > 0], 0.5)
    # Stage 2 resizes to a multiple of the final size even when it keeps the scale.
    assert_equally_often(params.stage2.resize_mode, [0, 1, 2])


def test_a_mixture_draws_the_level_per_sample_with_relative_weights():
    params = draw({"weak": 1.0, "standard": 3.0, "clean": 0.0})
    weak = torch.tensor([name == "weak" for name in params.level])
    assert_share(weak, 0.25)
    assert set(params.level) == {"weak", "standard"}
    assert params.stage1.blur_sigma[weak].max() <= 0.8
    assert params.stage1.blur_sigma[~weak].max() > 1.4
    assert params.stage1.jpeg_quality[weak].min() == 90
    assert params.stage1.jpeg_quality[~weak].min() == 50


def test_the_training_mix_is_that_of_the_paper():
    names = np.array(draw(TRAINING_MIX).level)
    for name, share in (("weak", 0.3), ("standard", 0.3), ("severe", 0.4)):
        assert_share(torch.from_numpy(names == name), share)


def test_quantities_are_drawn_per_sample_and_independently():
    params = draw("severe")
    columns = [params.sinc_size, params.jpeg_last]
    for s in (params.stage1, params.stage2):
        columns += [s.blur_size, s.scale, s.noise_kind, s.noise_grey, s.jpeg_quality]
    columns += [params.stage1.blur_sigma[:, 0], params.final_mode]
    table = torch.stack([c.double() for c in columns])
    shifted = table.roll(1, dims=1)  # the neighbour in the batch
    n = len(columns)
    across = torch.corrcoef(torch.cat([table, shifted]))[:n]
    across[:, :n] -= torch.eye(n)
    assert across.abs().max() < 5 / math.sqrt(N)


def flat(record):
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, (torch.Tensor, tuple)):
            yield field.name, value
        else:
            yield from flat(value)


def assert_same(a, b):
    for (name, x), (_, y) in zip(flat(a), flat(b), strict=True):
        same = torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        assert same, name


def test_a_seed_reproduces_a_batch_and_the_generator_advances():
    assert_same(draw(TWO_STAGES, 16, seed=5), draw(TWO_STAGES, 16, seed=5))
    generator = torch.Generator().manual_seed(5)
    first, second = sample(generator, 16), sample(generator, 16)
    assert not torch.equal(first.stage1.blur_sigma, second.stage1.blur_sigma)
    state = torch.get_rng_state()
    sample(generator, 16)
    assert torch.equal(state, torch.get_rng_state())


def test_the_generator_advances_alike_whatever_the_level():
    states = []
    for level in ("clean", "weak", TWO_STAGES, {"weak": 1, "standard": 1}):
        generator = torch.Generator().manual_seed(1)
        sample(generator, 5, level)
        states.append(generator.get_state())
    assert all(torch.equal(states[0], state) for state in states)


@pytest.mark.parametrize("level", ["clean", TWO_STAGES, TRAINING_MIX], ids=["clean", "own", "mix"])
def test_one_sample_for_each_seed(level):
    seeds = [5, 0, 2**63 - 1, 5, 2**40]
    together = sample_seeds(seeds, level)
    alone = [sample(torch.Generator().manual_seed(seed), 1, level) for seed in seeds]
    assert_same(together, type(together).cat(alone))
    state = torch.get_rng_state()
    assert len(sample_seeds([], level)) == 0
    assert torch.equal(state, torch.get_rng_state())
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match=r"seeds: expected numbers in 0 \.\. 2\^63 - 1"):
            sample_seeds([1, seed], level)


def test_selecting_and_joining():
    params = draw(TWO_STAGES, 7)
    assert len(params) == 7 and len(params[2]) == 1 and len(params[1:4]) == 3
    assert_same(type(params).cat([params[0], params[1:5], params[[5, 6]]]), params)
    assert_same(params[torch.tensor([3])], params[3])
    with pytest.raises(IndexError):
        params[7]
    with pytest.raises(ValueError, match="parts: expected"):
        type(params).cat([])
    assert len(draw("weak", 0)) == 0


def test_bad_arguments_are_named():
    generator = torch.Generator()
    with pytest.raises(TypeError, match=r"generator: expected a torch\.Generator, got int"):
        sample(0, 4)
    with pytest.raises(TypeError, match="batch_size: expected an int, got float"):
        sample(generator, 4.0)
    with pytest.raises(ValueError, match="batch_size: expected 0 or more, got -1"):
        sample(generator, -1)
    with pytest.raises(ValueError, match=r"level: expected names among .* got \['heavy'\]"):
        sample(generator, 4, "heavy")
    with pytest.raises(ValueError, match="level: expected weights"):
        sample(generator, 4, {"weak": 0.0})
    with pytest.raises(ValueError, match="level: expected weights"):
        sample(generator, 4, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blur_sigma": (0.8, 0.2)}, "blur_sigma"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma"),
        ({"scale": (1.1, 1.2)}, "contains 1"),
        ({"jpeg_quality": (90, 100)}, "jpeg_quality"),
        ({"gaussian_sigma": (1, 40)}, "gaussian_sigma"),
        ({"blur_size": (8, 21)}, "blur_size: expected odd"),
        ({"blur_size": (7, 23)}, "blur_size"),
        ({"grey_prob": 1.5}, "grey_prob: expected a probability"),
        ({"resize_weights": (0, 0, 0)}, "resize_weights"),
        ({"resize_modes": (1, 1)}, "resize_modes: expected 3 weights"),
    ],
)
def test_a_faulty_table_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(LEVELS["weak"].stage1, **change)


def test_a_faulty_level_is_refused():
    with pytest.raises(ValueError, match="sinc: expected a level with two stages"):
        Level(LEVELS["weak"].stage1, sinc=Sinc())
    with pytest.raises(ValueError, match="omega"):
        Sinc(omega=(1.0, 4.0))
