"""Control of the degradation: what moves, how far, that nothing else does; vectors from files."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dasr_ops.models import (
    DASR,
    Controls,
    Degradation_Predictor,
    DegradationError,
    MSRResNetDynamic,
    Upscaler,
    load_degradation,
)
from dasr_ops.models.controls import AXES, compose
from dasr_ops.train.degradations import LAYOUT, LEVELS, NO_JPEG, decode, labels, sample

pytestmark = pytest.mark.usefixtures("one_thread")

NOISE = range(18, 26)
BLUR = range(0, 10)
JPEG = range(26, 28)
MOVED = {"denoise": NOISE, "deblur": BLUR, "dejpeg": JPEG}
SCHEMES = ("unified", "official")


def drawn(level: str, count: int = 64, scheme: str = "unified") -> torch.Tensor:
    return labels(sample(torch.Generator().manual_seed(3), count, level), scheme)


def predicted(count: int = 64) -> torch.Tensor:
    """What P may say: soft flags, entries outside of 0..1."""
    return torch.rand(count, 33, generator=torch.Generator().manual_seed(1)) * 1.5 - 0.25


def column(v: torch.Tensor, name: str) -> torch.Tensor:
    return v[:, LAYOUT.index(name)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_neutral_controls_change_no_bit(scheme, dtype):
    v = predicted().to(dtype)
    controls = Controls(scheme=scheme)
    assert controls.neutral and not Controls(deblur=-0.1).neutral
    result = controls(v)
    assert result.dtype == dtype and result is not v and torch.equal(result, v)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("amount", [-1, -0.3, 0.3, 1])
def test_an_axis_moves_its_entries_alone(scheme, axis, amount):
    v = predicted()
    moved = Controls(**{axis: amount}, scheme=scheme)(v)
    others = [i for i in range(33) if i not in MOVED[axis]]
    assert torch.equal(moved[:, others], v[:, others])
    assert not torch.equal(moved, v)


@pytest.mark.parametrize("level", list(LEVELS))
def test_at_the_low_end_there_is_none(level):
    """The entries are those of samples that were drawn without noise, blur or JPEG."""
    params = sample(torch.Generator().manual_seed(5), 50, level)
    v = labels(params)
    for stage in (params.stage1, params.stage2):
        for field, value in (("noise_kind", 0), ("noise_level", 0), ("noise_grey", False)):
            getattr(stage, field).fill_(value)
    torch.testing.assert_close(Controls(denoise=-1)(v), labels(params), rtol=0, atol=0)
    for stage in (params.stage1, params.stage2):
        for field, value in (("blur_size", 7), ("blur_sigma", 0), ("blur_rotation", 0)):
            getattr(stage, field).fill_(value)
    params.sinc_size.fill_(0)
    params.sinc_omega.fill_(math.pi)
    both = Controls(denoise=-1, deblur=-1)
    torch.testing.assert_close(both(v), labels(params), rtol=0, atol=0)
    for stage in (params.stage1, params.stage2):
        stage.jpeg_quality.fill_(NO_JPEG)
    every = Controls(-1, -1, -1)
    torch.testing.assert_close(every(v), labels(params), rtol=0, atol=0)


def _strongest(params, fields):
    """Set what a control is about to the strongest that the levels have."""
    stages = [(params.stage1, "stage1", torch.ones(len(params), dtype=torch.bool))]
    stages.append((params.stage2, "stage2", params.has_stage2))
    for stage, name, present in stages:
        tables = [t for level in LEVELS.values() if (t := getattr(level, name)) is not None]
        values = {
            "blur_sigma": max(t.blur_sigma[1] for t in tables),
            "blur_size": max(t.blur_size[1] for t in tables),
            "blur_rotation": 0,
            "noise_level": max(t.gaussian_sigma[1] for t in tables),
            "noise_kind": 1,
            "jpeg_quality": min(t.jpeg_quality[0] for t in tables),
        }
        for field in fields:
            getattr(stage, field)[present] = values[field]


@pytest.mark.parametrize("level", list(LEVELS))
@pytest.mark.parametrize(
    ("axis", "fields"),
    [
        ("denoise", ("noise_kind", "noise_level")),
        ("deblur", ("blur_sigma", "blur_size", "blur_rotation")),
        ("dejpeg", ("jpeg_quality",)),
    ],
)
def test_at_the_high_end_it_is_the_strongest_that_is_drawn(level, axis, fields):
    params = sample(torch.Generator().manual_seed(5), 50, level)
    v = labels(params)
    _strongest(params, fields)
    # 25 / 30 in float32, after one subtraction.
    torch.testing.assert_close(Controls(**{axis: 1})(v), labels(params), rtol=0, atol=2**-23)


def test_the_official_scheme_goes_to_the_ends_of_its_ranges():
    for level in ("weak", "standard", "severe"):
        v = drawn(level, scheme="official")
        two = v[:, 28:30].sum(1)
        most = Controls(1, 1, 1, scheme="official")(v)
        least = Controls(-1, -1, -1, scheme="official")(v)
        for name, high, low in (
            ("noise1_level", 1, 0),
            ("kernel1_sigma_x", 1, 0),
            ("kernel1_sigma_y", 1, 0),
            ("jpeg1_quality", 0, 1),
        ):
            assert bool((column(most, name) == high).all())
            assert bool((column(least, name) == low).all())
        assert torch.equal(column(most, "noise1_gaussian"), torch.ones_like(two))
        assert torch.equal(column(most, "noise1_poisson"), torch.zeros_like(two))
        for kind in ("gaussian", "poisson", "grey"):  # there is noise of some kind, always
            assert torch.equal(column(least, f"noise1_{kind}"), column(v, f"noise1_{kind}"))
        # The second stage where there is one; else all zeros, as they were.
        assert torch.equal(column(most, "kernel2_sigma_x"), two)
        assert torch.equal(column(most, "sinc_omega"), two)
        assert torch.equal(column(most, "noise2_level"), two)
        assert torch.equal(column(least, "sinc_omega"), -0.5 * two)
        assert torch.equal(column(least, "kernel2_size"), torch.tensor(4 / 7) * two)
        assert torch.equal(column(least, "jpeg2_quality"), two)
        read = decode(least, "official", level)
        assert all(r.stage2.sigma_x == 0 and r.sinc_size is None for r in read)


SEVERITY = {
    "denoise": ("noise{}_level", "noise{}_gaussian"),
    "deblur": ("kernel{}_sigma_x", "kernel{}_sigma_y", "kernel{}_size"),
    "dejpeg": ("jpeg{}_quality",),
}


@pytest.mark.parametrize("axis", AXES)
def test_more_is_never_less_and_nothing_jumps(axis):
    v = predicted(200)
    amounts = np.linspace(-1, 1, 81)
    moved = torch.stack([Controls(**{axis: a})(v) for a in amounts])
    sign = -1 if axis == "dejpeg" else 1
    for name in SEVERITY[axis]:
        for stage in (1, 2):
            path = sign * moved[:, :, LAYOUT.index(name.format(stage))]
            assert bool((path.diff(dim=0) >= -2e-7).all()), name
    # Within a step of 1/40 no entry moves by more than a 40th of the largest distance, 1.25.
    assert moved.diff(dim=0).abs().max() <= 1.25 / 40 + 1e-6
    # Straight lines on either side: the mixing weights, affine in v, are straight as well.
    for half in (moved[:41], moved[40:]):
        middle = (half[0] + half[-1]) / 2
        torch.testing.assert_close(half[20], middle, rtol=0, atol=1e-6)


def test_predictions_beyond_the_ends_stay():
    v = torch.full((1, 33), 0.5)
    v[0, [1, 18]] = 1.1  # more than any sigma, any noise
    v[0, 26] = -0.1  # worse than any quality
    most = Controls(1, 1, 1)(v)
    assert torch.equal(most[0, [1, 18, 26]], v[0, [1, 18, 26]])
    least = Controls(-1, -1, -1)(1 - v)
    assert torch.equal(least[0, [1, 18, 26]], (1 - v)[0, [1, 18, 26]])


def test_a_second_round_counts_as_much_as_it_is_believed_in():
    v = drawn("weak", 5)
    v[:, 28] = torch.tensor([-0.2, 0.0, 0.25, 1.3, 0.0])
    v[:, 29] = torch.tensor([0.0, 0.0, 0.25, 0.4, 0.0])
    most = Controls(1, 1, 1)(v)
    share = torch.tensor([0, 0, 0.5, 1, 0])
    torch.testing.assert_close(column(most, "noise2_level"), share * 25 / 30)
    torch.testing.assert_close(column(most, "kernel2_sigma_y"), share * 0.5)
    torch.testing.assert_close(column(most, "jpeg2_quality"), 1 - share)


def test_types_and_gradients_are_kept():
    v = predicted(5).double().requires_grad_()
    controls = Controls(0.5, -0.5, 0.25)
    assert controls(v).dtype == torch.float64
    assert torch.autograd.gradcheck(controls, (v,))
    half = controls(v.detach().half())
    torch.testing.assert_close(half.double(), controls(v.detach()), rtol=0, atol=2e-3)
    assert controls(torch.zeros(0, 33)).shape == (0, 33)
    elsewhere = controls(torch.zeros(2, 33, device="meta"))  # nothing is read, nothing is mixed up
    assert elsewhere.device.type == "meta" and elsewhere.shape == (2, 33)


def test_bad_controls_are_named():
    for axis in AXES:
        for value in (1.01, -2, math.nan, math.inf):
            with pytest.raises(ValueError, match=rf"{axis}: expected a number in -1\.\.1"):
                Controls(**{axis: value})
        for value in ("1", True, None, torch.tensor(0.5)):
            with pytest.raises(TypeError, match=rf"{axis}: expected a number in -1\.\.1"):
                Controls(**{axis: value})
    with pytest.raises(ValueError, match=r"scheme: expected one of .*, got 'other'"):
        Controls(scheme="other")
    assert Controls(np.float32(0.5), deblur=1) == Controls(0.5, 1.0)
    controls = Controls(0.5)
    with pytest.raises(TypeError, match="v: expected a Tensor, got list"):
        controls([0.0] * 33)
    with pytest.raises(TypeError, match=r"v: expected a floating-point tensor, got torch\.int64"):
        controls(torch.zeros(1, 33, dtype=torch.int64))
    for shape in ((33,), (1, 32), (1, 1, 33)):
        with pytest.raises(ValueError, match=r"v: expected \[B, 33\], got"):
            controls(torch.zeros(shape))


def test_compose():
    v, controls = predicted(3), Controls(0.5)
    assert compose(None, None) is None and compose(None, Controls()) is None
    assert compose(v, None) is v and compose(v, Controls()) is v
    assert compose(None, controls) is controls
    assert torch.equal(compose(v, controls), controls(v))
    chained = compose(lambda v: v / 2, controls)
    assert torch.equal(chained(v), controls(v / 2))


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    torch.manual_seed(0)
    net_g = MSRResNetDynamic(num_feat=8, num_block=1, num_models=3, upscale=2)
    return Upscaler(DASR(net_g, Degradation_Predictor(nf=4, num_networks=3)), tile=0)


def test_an_upscaler_takes_controls_and_files(upscaler, tmp_path):
    image = torch.rand(1, 3, 20, 24)
    plain = upscaler(image)
    assert torch.equal(upscaler(image, degradation=Controls()), plain)
    controls = Controls(denoise=1, dejpeg=-0.5)
    changed = upscaler(image, degradation=controls)
    v = upscaler.predict(image).v
    assert torch.equal(changed, upscaler(image, degradation=controls(v)))
    assert not torch.equal(changed, plain)
    (tmp_path / "v.json").write_text(json.dumps(v[0].tolist()))
    told = upscaler(image, degradation=load_degradation(tmp_path / "v.json"))
    assert torch.equal(told, plain)


def test_files_of_all_kinds(tmp_path):
    v = drawn("severe", 1)
    path = tmp_path / "v.json"
    numbers = v[0].tolist()
    named = dict(zip(LAYOUT, numbers, strict=True))
    for content in (
        numbers,
        [numbers],
        {"v": numbers, "scheme": "unified", "level": "severe"},
        {"v": named},
        {"v": dict(reversed(named.items()))},
        {"scheme": "unified", "pictures": [{"v": named, "path": "a.png"}]},
    ):
        path.write_text(json.dumps(content))
        for scheme in (None, "unified"):
            found = load_degradation(path, scheme)
            assert found.shape == (1, 33) and found.dtype == torch.float32
            assert torch.equal(found, v)
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(numbers).encode())  # by an editor on Windows
    assert torch.equal(load_degradation(path), v)


def test_files_of_dasr_degrade(tmp_path):
    pytest.importorskip("tyro", reason="the commands parse their arguments by tyro")
    from dasr_ops.cli import main

    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photos / "a.png")
    assert main(["degrade", str(photos), "-o", str(out), "--scheme", "official", "--quiet"]) == 0
    path = out / "severe" / "lr" / "a.json"
    found = load_degradation(path, "official")
    assert found[0].tolist() == json.loads(path.read_text())["v"]
    with pytest.raises(DegradationError, match="label scheme 'official', the network's is"):
        load_degradation(path, "unified")
    with pytest.raises(DegradationError, match='expected a key "v"'):
        load_degradation(out / "degrade.json")


GOOD = [0.5] * 33


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("null", "expected a list of 33 numbers, found NoneType"),
        ("0.5", "expected a list of 33 numbers, found float"),
        ("{}", 'expected a key "v"'),
        ('{"pictures": []}', "found none"),
        (json.dumps({"pictures": [{"v": GOOD}] * 2}), "of one picture, found those of 2"),
        (json.dumps({"pictures": ["a.png"]}), 'expected a key "v"'),
        (json.dumps(GOOD[1:]), "expected 33 numbers, found 32"),
        (json.dumps([GOOD, GOOD]), "expected 33 numbers, found 2"),
        (json.dumps({"v": [*GOOD, 1]}), "expected 33 numbers, found 34"),
        (json.dumps([*GOOD[:2], None, *GOOD[3:]]), "kernel1_sigma_y: expected a finite number"),
        (json.dumps([True, *GOOD[1:]]), "kernel1_size: expected a finite number, found true"),
        (json.dumps(["1", *GOOD[1:]]), 'kernel1_size: expected a finite number, found "1"'),
        (json.dumps([*GOOD[1:], math.nan]), "final_bicubic: expected a finite number, found NaN"),
        (json.dumps([*GOOD[1:], -math.inf]), "final_bicubic: expected a finite number"),
        (json.dumps([*GOOD[1:], 10**400]), "final_bicubic: expected a finite number, found 1000"),
        (json.dumps({"v": {"kernel1_size": 1}}), "without kernel1_sigma_x, .* and 28 more"),
        (json.dumps({"v": dict.fromkeys([*LAYOUT, "blur"], 0)}), "with unknown blur"),
        (json.dumps({"v": GOOD, "scheme": "official"}), "scheme 'official', .* is 'unified'"),
    ],
)
def test_bad_files_are_told_in_one_line(tmp_path, content, message):
    path = tmp_path / "v.json"
    path.write_text(content)
    with pytest.raises(DegradationError, match=message) as error:
        load_degradation(path, "unified")
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DegradationError, match="no such file"):
        load_degradation(tmp_path / "none.json")
    with pytest.raises(DegradationError, match="directory"):
        load_degradation(tmp_path)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    with pytest.raises(DegradationError, match="not JSON"):
        load_degradation(tmp_path / "a.png")


def test_importing_the_networks_imports_no_training():
    code = (
        "import sys, dasr_ops.models.controls; "
        "print(sorted(m for m in sys.modules if m.startswith(('dasr_ops.train', 'matplotlib'))))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert output.stdout.strip() == "[]"
