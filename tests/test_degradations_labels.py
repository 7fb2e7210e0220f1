"""The label vector: layout, values written out by hand, no-effect values, round trip."""

import math
from dataclasses import replace

import pytest
import torch

from dasr_ops.train.degradations import (
    LAYOUT,
    LEVELS,
    DegradationParams,
    Level,
    Sinc,
    StageParams,
    decode,
    labels,
    sample,
)

TWO_STAGES = Level(
    replace(LEVELS["standard"].stage1, scale=(0.15, 1.5), blur_sigma=(0.2, 3.0)),
    replace(LEVELS["standard"].stage1, blur_prob=0.5, noise_prob=0.5, jpeg_prob=0.5),
    Sinc(prob=0.5),
)


def draw(level, n, seed=0):
    return sample(torch.Generator().manual_seed(seed), n, level)


def test_layout_is_that_of_dasr():
    assert len(LAYOUT) == 33 and len(set(LAYOUT)) == 33
    places = {
        "kernel1_size": 0,
        "kernel1_rotation": 3,
        "kernel2_size": 4,
        "sinc_size": 8,
        "sinc_omega": 9,
        "resize1_scale": 10,
        "resize1_area": 11,
        "resize2_scale": 14,
        "resize2_bicubic": 17,
        "noise1_level": 18,
        "noise1_grey": 19,
        "noise1_gaussian": 20,
        "noise1_poisson": 21,
        "noise2_level": 22,
        "jpeg1_quality": 26,
        "jpeg2_quality": 27,
        "sinc_then_jpeg": 28,
        "jpeg_then_sinc": 29,
        "final_area": 30,
        "final_bicubic": 32,
    }
    for name, index in places.items():
        assert LAYOUT[index] == name


def one_stage(size, sigma, rotation, scale, mode, kind, level, grey, quality):
    return StageParams(
        blur_size=torch.tensor([size]),
        blur_sigma=torch.tensor([sigma]),
        blur_rotation=torch.tensor([rotation]),
        scale=torch.tensor([scale]),
        resize_mode=torch.tensor([mode]),
        noise_kind=torch.tensor([kind]),
        noise_level=torch.tensor([level]),
        noise_grey=torch.tensor([grey]),
        noise_seed=torch.tensor([1]),
        jpeg_quality=torch.tensor([quality]),
    )


NOTHING = one_stage(7, (0.0, 0.0), 0.0, 1.0, -1, 0, 0.0, False, 100)


def params(stage1, stage2=NOTHING, two=False, sinc=(0, math.pi), last=False, final=0):
    return DegradationParams(
        level=("test",),
        stage1=stage1,
        stage2=stage2,
        has_stage2=torch.tensor([two]),
        sinc_size=torch.tensor([sinc[0]]),
        sinc_omega=torch.tensor([sinc[1]]),
        jpeg_last=torch.tensor([last]),
        final_mode=torch.tensor([final]),
        final_antialias=torch.tensor([False]),
    )


ONE = (1 - 0.15) / 1.35


def assert_labels(record, expected):
    v = labels(record)
    assert v.shape == (1, 33) and v.dtype == torch.float32
    flat = torch.tensor([x for group in expected for x in group])
    torch.testing.assert_close(v[0], flat, rtol=0, atol=2**-23)


def test_no_effect_has_its_own_values():
    expected = [
        [0, 0, 0, 0.5],
        [0, 0, 0, 0.5],
        [0, 1],
        [ONE, 0, 0, 0],
        [ONE, 0, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [1, 1],
        [0, 0],
        [1, 0, 0],
    ]
    assert_labels(params(NOTHING), expected)
    decoded = decode(labels(params(NOTHING)))[0]
    assert decoded.sinc_size is None and decoded.order is None and decoded.final_mode == "area"
    for stage in (decoded.stage1, decoded.stage2):
        assert stage.mode is None and stage.noise is None and stage.jpeg_quality is None
        assert stage.sigma_x == stage.sigma_y == stage.noise_level == 0
        assert stage.scale == pytest.approx(1, abs=1e-6)
        assert stage.rotation == pytest.approx(0, abs=1e-6)


def test_every_entry_of_a_full_vector():
    first = one_stage(21, (3.0, 1.5), math.pi / 2, 0.15, 1, 1, 15.0, True, 30)
    second = one_stage(9, (0.6, 0.6), 0.0, 1.5, 2, 2, 1.5, False, 65)
    expected = [
        [1, 1, 0.5, 0.75],
        [1 / 7, 0.2, 0.2, 0.5],
        [3 / 7, 0.25],
        [0, 0, 1, 0],
        [1, 0, 0, 1],
        [0.5, 1, 1, 0],
        [0.5, 0, 0, 1],
        [0, 0.5],
        [0, 1],
        [0, 1, 0],
    ]
    record = params(first, second, True, (13, math.pi / 2), False, 1)
    assert_labels(record, expected)
    expected[8] = [1, 0]
    record.jpeg_last = torch.tensor([True])
    assert_labels(record, expected)


def test_a_quantity_has_one_label_whatever_the_level():
    tables = [LEVELS["weak"].stage1, LEVELS["standard"].stage1]
    same = {
        "blur_sigma": (0.7, 0.7),
        "isotropic_prob": 1.0,
        "gaussian_prob": 1.0,
        "gaussian_sigma": (5.0, 5.0),
        "jpeg_quality": (92, 92),
    }
    a, b = (labels(draw(Level(replace(t, **same)), 1)) for t in tables)
    for index in (1, 2, 18, 26):
        assert a[0, index] == b[0, index]


@pytest.mark.parametrize("level", ["clean", "weak", "standard", "severe", TWO_STAGES])
def test_labels_lie_in_the_unit_range_and_one_hots_are_one_hot(level):
    v = labels(draw(level, 500))
    assert v.min() >= 0 and v.max() <= 1
    assert bool((v[:, 30:33].sum(1) == 1).all())
    for start in (11, 15):
        assert bool((v[:, start : start + 3].sum(1) <= 1).all())
    # The kind of noise is either none, and then the level is 0, or one of two.
    kinds = v[:, 20:22].sum(1)
    assert bool((kinds <= 1).all()) and bool((v[kinds == 0, 18] == 0).all())


MODES = ("area", "bilinear", "bicubic")


def assert_stage(mine, stage, i, close):
    assert mine.kernel_size == stage.blur_size[i]
    assert mine.sigma_x == pytest.approx(stage.blur_sigma[i, 0].item(), **close)
    assert mine.sigma_y == pytest.approx(stage.blur_sigma[i, 1].item(), **close)
    assert mine.rotation == pytest.approx(stage.blur_rotation[i].item(), **close)
    assert mine.scale == pytest.approx(stage.scale[i].item(), **close)
    mode = stage.resize_mode[i].item()
    assert mine.mode == (None if mode < 0 else MODES[mode])
    assert mine.noise == (None, "gaussian", "poisson")[stage.noise_kind[i]]
    assert mine.noise_level == pytest.approx(stage.noise_level[i].item(), **close)
    assert mine.noise_grey == stage.noise_grey[i].item()
    quality = stage.jpeg_quality[i].item()
    assert mine.jpeg_quality == (None if quality == 100 else quality)


@pytest.mark.parametrize(
    ("scheme", "level"),
    [
        *(("unified", level) for level in ("clean", "weak", "standard", "severe", TWO_STAGES)),
        *(("official", level) for level in ("clean", "clean_area", "weak", "standard", "severe")),
    ],
)
def test_decode_gives_the_parameters_back(scheme, level):
    record = draw(level, 400, seed=3)
    close = dict(rel=0, abs=2e-6 * math.pi)  # one float32 rounding of a range of up to 2 pi
    v = labels(record, scheme)
    given = level if scheme == "official" else None
    for i, decoded in enumerate(decode(v, scheme, given)):
        second_blur = record.stage2.blur_sigma[i, 0].item() > 0
        if scheme == "official" and record.has_stage2[i]:
            if not second_blur and v[i, 9] >= 0.95:
                continue  # an omega that reads as the flag of the second blur
            if second_blur and record.sinc_size[i]:
                assert decoded.sinc_omega is None
                record.sinc_omega[i] = math.pi
                decoded = replace(decoded, sinc_omega=math.pi)
        assert_stage(decoded.stage1, record.stage1, i, close)
        assert_stage(decoded.stage2, record.stage2, i, close)
        size = record.sinc_size[i].item()
        assert decoded.sinc_size == (size or None)
        assert decoded.sinc_omega == pytest.approx(record.sinc_omega[i].item(), **close)
        if record.has_stage2[i]:
            last = record.jpeg_last[i].item()
            assert decoded.order == ("sinc_then_jpeg" if last else "jpeg_then_sinc")
        else:
            assert decoded.order is None
        assert decoded.final_mode == MODES[record.final_mode[i]]


def test_decode_bounds_predictions():
    high, low = decode(torch.tensor([[7.0] * 33, [-7.0] * 33]))
    assert (high.stage1.kernel_size, low.stage1.kernel_size) == (21, 7)
    assert (high.stage1.sigma_x, low.stage1.sigma_x) == (3, 0)
    assert (high.stage2.jpeg_quality, low.stage2.jpeg_quality) == (None, 30)
    between = torch.full((1, 33), 0.0)
    between[0, 0], between[0, 4] = 2.4 / 14, 13.4 / 14  # sizes 9.4 and 20.4
    decoded = decode(between)[0]
    assert (decoded.stage1.kernel_size, decoded.stage2.kernel_size) == (9, 21)
    between[0, 0], between[0, 8] = 3.2 / 14, 1.4 / 14  # 10.2 and 8.4
    decoded = decode(between)[0]
    assert (decoded.stage1.kernel_size, decoded.sinc_size) == (11, 9)
    assert low.stage1.noise is None and low.stage1.noise_level == 0 and low.order is None


def official(*arguments, level, **options):
    record = params(*arguments, **options)
    record.level = (level,)
    return labels(record, "official")


def assert_row(v, expected):
    flat = torch.tensor([x for group in expected for x in group])
    torch.testing.assert_close(v[0], flat, rtol=0, atol=2**-22)


def test_official_labels_of_one_stage_have_zeros_for_the_second():
    first = one_stage(14 + 7, (0.5, 0.2), math.pi / 2, 1.2, 2, 1, 5.5, True, 90)
    expected = [
        [1, 0.5, 0, 0.75],
        [0, 0, 0, 0],
        [0, 0],
        [1, 0, 0, 1],
        [0, 0, 0, 0],
        [0.5, 1, 1, 0],
        [0, 0, 0, 0],
        [0, 0],
        [0, 0],
        [0, 1, 0],
    ]
    assert_row(official(first, final=1, level="weak"), expected)
    # The same quantities, read by the ranges of another level.
    expected[0] = [1, 0.3 / 1.3, 0, 0.75]
    expected[5][0] = 4.5 / 19
    expected[7] = [40 / 45, 0]
    assert_row(official(first, final=1, level="standard"), expected)


def test_official_labels_of_two_stages():
    first = one_stage(9, (3.0, 1.6), 0.0, 0.15, 0, 2, 3.0, False, 30)
    second = one_stage(21, (0.2, 1.5), -math.pi, 1.0, 1, 1, 13.0, True, 95)
    expected = [
        [1 / 7, 1, 0.5, 0.5],
        [1, 0, 1, 0],
        [3 / 7, 1],  # the flag of the second blur in place of omega
        [0, 1, 0, 0],
        [0.7 / 0.9, 0, 1, 0],
        [1, 0, 0, 1],
        [0.5, 1, 1, 0],
        [0, 1],
        [1, 0],
        [0, 0, 1],
    ]
    common = dict(two=True, last=True, final=2, level="severe")
    assert_row(official(first, second, sinc=(13, math.pi / 2), **common), expected)
    expected[2] = [-0.5, 1]
    assert_row(official(first, second, **common), expected)
    second.blur_sigma, second.blur_size = torch.zeros(1, 2), torch.tensor([7])
    expected[1], expected[2] = [4 / 7, 0.5, 0.5, 0.5], [-0.5, -0.5]
    assert_row(official(first, second, **common), expected)
    expected[2] = [3 / 7, 0.25]
    assert_row(official(first, second, sinc=(13, math.pi / 2), **common), expected)
    expected[8] = [0, 1]
    common["last"] = False
    assert_row(official(first, second, sinc=(13, math.pi / 2), **common), expected)


def test_official_labels_need_a_known_level():
    with pytest.raises(ValueError, match=r"scheme 'official' has ranges for .*, got 'custom'"):
        labels(draw(TWO_STAGES, 1), "official")
    v = labels(draw({"weak": 1, "severe": 1}, 4), "official")
    with pytest.raises(ValueError, match="level: expected the level whose ranges"):
        decode(v, "official")
    with pytest.raises(ValueError, match="level: expected 4 names, one for each row, got 3"):
        decode(v, "official", ["weak"] * 3)
    with pytest.raises(ValueError, match="got 'heavy'"):
        decode(v, "official", "heavy")
    assert labels(draw("severe", 0), "official").shape == (0, 33)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"v: expected shape \[B, 33\], got \[33\]"):
        decode(torch.zeros(33))
    with pytest.raises(TypeError, match="v: expected a floating tensor"):
        decode(torch.zeros(1, 33, dtype=torch.int64))
    with pytest.raises(ValueError, match="finite"):
        decode(torch.full((1, 33), math.nan))
    with pytest.raises(
        ValueError, match=r"scheme: expected one of \['official', 'unified'\], got 'other'"
    ):
        labels(draw("weak", 1), scheme="other")
