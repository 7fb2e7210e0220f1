"""Degradation vectors in words: they say what was drawn, and what a prediction can mean."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from scipy import ndimage

from dasr_ops.models import describe_prediction
from dasr_ops.train.degradations import LAYOUT, LEVELS, describe, labels, sample
from dasr_ops.train.degradations.noise import poisson_noise
from dasr_ops.train.degradations.vector import second_stage_belief

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(level, count=60, seed=7):
    return sample(torch.Generator().manual_seed(seed), count, level)


def number(text: str) -> float:
    return float(re.search(r"-?\d+(\.\d+)?", text)[0])


def as_gaussian(noise: dict) -> float:
    """Standard deviation in 8-bit steps; of shot noise, scale * Poisson(256 x) / 256, at 1/2."""
    if noise["kind"] == "gaussian":
        return noise["sigma"]
    return 255 * noise["scale"] * math.sqrt(0.5 * 256) / 256


def assert_says(readable, said, index):
    """The summary of one stage within its rounding, and each step of it in the details."""
    blur, noise, jpeg = said["blur"], said["noise"], said["jpeg"]
    details = dict(readable.details)
    if blur is None:
        assert readable.blur is None and "blur" not in details
    else:
        exact = math.sqrt((blur["sigma_x"] ** 2 + blur["sigma_y"] ** 2) / 2)
        assert readable.blur_sigma == pytest.approx(exact, abs=2e-6)
        assert number(readable.blur) == pytest.approx(exact, abs=0.05 + 1e-6)
        assert f"kernel {blur['size']}x{blur['size']}" in details["blur"]
        sigmas = details["blur"].split(" px")[0].removeprefix("sigma ").split(" x ")
        assert float(sigmas[0]) == pytest.approx(blur["sigma_x"], abs=0.05 + 1e-6)
        assert float(sigmas[-1]) == pytest.approx(blur["sigma_y"], abs=0.05 + 1e-6)
    if noise is None:
        assert readable.noise is None and "noise" not in details
    else:
        exact = as_gaussian(noise)
        assert readable.noise_sigma == pytest.approx(exact, abs=1e-5)
        kind = {"gaussian": "(Gaussian)", "poisson": "(shot noise)"}[noise["kind"]]
        assert kind in readable.noise
        if exact >= 0.5001:
            assert number(readable.noise) == pytest.approx(exact, abs=0.5 + 1e-5)
        else:
            assert readable.noise.startswith("below 1/255")
        assert details["noise"].endswith("grey" if noise["grey"] else "coloured")
    if jpeg is None:
        assert readable.jpeg is None and "JPEG" not in details
    else:
        assert readable.jpeg_quality == jpeg["quality"]
        assert abs(int(readable.jpeg.removeprefix("about q")) - jpeg["quality"]) <= 2
        assert details["JPEG"] == f"q{jpeg['quality']}"
    resize = said["resize"]
    if resize is None:
        assert "resize" not in details
    else:
        assert f"({resize['mode']})" in details["resize"]
        if "kept" not in details["resize"]:
            assert number(details["resize"]) == pytest.approx(resize["scale"], abs=0.005 + 1e-6)
            way = "shrunk" if resize["scale"] < 1 else "enlarged"
            assert details["resize"].startswith(way)


@pytest.mark.parametrize(
    ("scheme", "level"),
    [
        *(("unified", level) for level in ("clean", "weak", "standard")),
        *(("official", level) for level in ("weak", "standard")),
    ],
)
def test_one_round_is_told_as_it_was_drawn(scheme, level):
    params = draw(level)
    given = level if scheme == "official" else None
    rows = describe_prediction(labels(params, scheme), scheme, given)
    assert len(rows) == len(params)
    for index, readable in enumerate(rows):
        said = describe(params[index])
        assert_says(readable, said["stage1"], index)
        assert dict(readable.details)["final resize"] == said["final_resize"]["mode"]
        assert readable.level == given


@pytest.mark.parametrize("scheme", ["unified", "official"])
def test_two_rounds_add_up(scheme):
    params = draw("severe")
    for index, readable in enumerate(describe_prediction(labels(params, scheme), scheme)):
        said = describe(params[index])
        first, second = said["stage1"], said["stage2"]
        scale = first["resize"]["scale"] if first["resize"] else 1.0
        blur = second["blur"] or {"sigma_x": 0.0, "sigma_y": 0.0}
        if scheme == "official" and not second["blur"] and readable.decoded.stage2.sigma_x:
            continue  # an omega that reads as the flag of the second blur
        variance = (first["blur"]["sigma_x"] ** 2 + first["blur"]["sigma_y"] ** 2) / 2
        variance += (blur["sigma_x"] ** 2 + blur["sigma_y"] ** 2) / 2 / scale**2
        assert readable.blur_sigma == pytest.approx(math.sqrt(variance), rel=1e-4)
        damping = max(1.0, 4 * math.pi * blur["sigma_x"] * blur["sigma_y"])
        noise = as_gaussian(first["noise"]) ** 2 / damping + as_gaussian(second["noise"]) ** 2
        assert readable.noise_sigma == pytest.approx(math.sqrt(noise), rel=1e-4)
        qualities = [stage["jpeg"]["quality"] for stage in (first, second)]
        assert readable.jpeg_quality == min(qualities)
        details = dict(readable.details)
        assert [details["first JPEG"], details["second JPEG"]] == [f"q{q}" for q in qualities]
        assert ("sinc filter" in details) == (said["sinc"] is not None)
        if said["sinc"] and scheme == "unified":
            assert number(details["sinc filter"]) * math.pi == pytest.approx(
                said["sinc"]["omega"], abs=0.005 * math.pi + 1e-5
            )
        steps = {"sinc_then_jpeg": "sinc filter, then JPEG"}
        steps["jpeg_then_sinc"] = "JPEG, then sinc filter"
        assert details["last steps"] == steps[said["order"]]
        assert readable.level == ("severe" if scheme == "official" else None)


@pytest.mark.parametrize("sigma", [1.0, 1.5, 3.0])
def test_what_a_blur_leaves_of_noise(sigma):
    """Against SciPy's Gaussian filter on white noise; the continuous formula is off by < 1 %."""
    noise = np.random.default_rng(0).standard_normal((600, 600))
    left = ndimage.gaussian_filter(noise, sigma, mode="wrap").std()
    v = labels(draw("severe", 1))
    v[0, [18, 20, 21]] = torch.tensor([1.0, 1.0, 0.0])  # 30 steps in the first round
    v[0, [22, 24, 25]] = 0.0  # none in the second
    v[0, [5, 6]] = sigma / 3
    found = describe_prediction(v)[0].noise_sigma
    # The deviation of n independent-ish numbers: n ~ pixels / (4 pi sigma^2).
    count = noise.size / (4 * math.pi * sigma**2)
    assert found / 30 == pytest.approx(left, rel=0.01 + 3 / math.sqrt(2 * count))


def test_shot_noise_at_medium_grey():
    grey = torch.full((1, 500, 500), 0.5)
    v = labels(draw("clean", 1))
    for entry in (0.02, 0.1, 0.3):
        v[0, [18, 21]] = torch.tensor([entry, 1.0])
        noisy = poisson_noise(grey, 3 * entry, True, torch.Generator().manual_seed(0))
        found = describe_prediction(v)[0]
        assert found.noise_sigma == pytest.approx(255 * (noisy - grey).std().item(), rel=0.01)


def test_predictions_that_cannot_tell_kinds_apart():
    """P, trained by L1, says the median of each flag: 0, though it is sure that there is one."""
    v = labels(draw("clean", 1))
    v[0, 18] = 0.4
    readable = describe_prediction(v)[0]
    assert readable.noise == "about 12/255 (kind unclear)"
    assert dict(readable.details)["noise"] == "about 12/255 (kind unclear)"
    v[0, [20, 21]] = torch.tensor([0.3, 0.35])  # sure of noise, and a little of its kind
    assert describe_prediction(v)[0].noise == "about 14/255 (shot noise)"
    v[0, 18], v[0, 20:22] = 0.016, 0.0  # below half a step
    assert describe_prediction(v)[0].noise is None
    v[0, 10] = (0.5 - 0.15) / 1.35
    assert dict(describe_prediction(v)[0].details)["resize"] == "shrunk to 0.50 (method unclear)"
    v[0, 30:33] = 0.1
    assert dict(describe_prediction(v)[0].details)["final resize"] == "method unclear"


def test_the_belief_in_a_second_round():
    for scheme in ("unified", "official"):
        for level in LEVELS:
            params = draw(level)
            v = labels(params, scheme)
            assert torch.equal(second_stage_belief(v, scheme), params.has_stage2.float())
        # What L1 makes of severe samples whose order nobody can tell.
        median = labels(draw("severe", 2000), scheme).median(0, keepdim=True).values
        median[0, 28:30] = 0
        assert second_stage_belief(median, scheme) > 0.7
        details = dict(describe_prediction(median, scheme)[0].details)
        assert details["last steps"] == "order unclear" and "second JPEG" in details


def test_the_line_and_json():
    v = labels(draw("clean", 1))
    assert str(describe_prediction(v)[0]) == "no blur, no noise, no JPEG"
    v[0, 1:3], v[0, [18, 20]], v[0, 26] = 0.4, torch.tensor([8 / 30, 1.0]), 30 / 70
    readable = describe_prediction(v)[0]
    line = "blur sigma about 1.2 px, noise about 8/255 (Gaussian), JPEG about q60"
    assert str(readable) == line
    content = json.loads(json.dumps(readable.as_json(), allow_nan=False))
    assert content["summary"] == line and content["jpeg_quality"] == 60
    assert content["decoded"]["stage1"]["sigma_x"] == pytest.approx(1.2)
    assert {"what": "JPEG", "text": "q60"} in content["details"]


def test_any_finite_vector_can_be_told():
    generator = torch.Generator().manual_seed(0)
    for v in (torch.randn(300, 33, generator=generator), torch.zeros(1, 33), torch.ones(1, 33)):
        for scheme, level in (("unified", None), *(("official", n) for n in (None, *LEVELS))):
            for dtype in (torch.float16, torch.float32, torch.float64):
                for readable in describe_prediction(v.to(dtype), scheme, level):
                    assert "None" not in str(readable) and "nan" not in str(readable)
                    json.dumps(readable.as_json(), allow_nan=False)
    assert describe_prediction(torch.zeros(0, 33)) == []


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"v: expected shape \[B, 33\], got \[33\]"):
        describe_prediction(torch.zeros(33))
    with pytest.raises(TypeError, match="v: expected a floating tensor"):
        describe_prediction(torch.zeros(1, len(LAYOUT), dtype=torch.int32))
    with pytest.raises(ValueError, match="finite"):
        describe_prediction(torch.full((1, 33), math.nan), "official")
    with pytest.raises(ValueError, match=r"scheme: expected one of .*, got 'other'"):
        describe_prediction(torch.zeros(1, 33), "other")
    with pytest.raises(ValueError, match="got 'heavy'"):
        describe_prediction(torch.zeros(1, 33), "official", "heavy")
