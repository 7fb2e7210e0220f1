"""PSNR and SSIM on luma against scikit-image and a plain rendering of BasicSR's definition."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, signal
from skimage import color, metrics

from dasr_ops.train.metrics import psnr_y, rgb_to_y, ssim_y


def pair(batch=3, height=40, width=53, seed=0, spread=0.1):
    rng = np.random.default_rng(seed)
    target = ndimage.gaussian_filter(rng.random((batch, 3, height, width)), (0, 0, 1.5, 1.5))
    target = (target - target.min()) / (target.max() - target.min())
    pred = np.clip(target + rng.normal(0, spread, target.shape), 0, 1)
    return torch.from_numpy(pred), torch.from_numpy(target)


def luma(x, rounded=True):
    """uint8-scaled luma [H, W] by BasicSR's formula, from [3, H, W]."""
    x = np.rint(x.numpy() * 255) / 255 if rounded else x.numpy()
    return 65.481 * x[0] + 128.553 * x[1] + 24.966 * x[2] + 16.0


def ssim_oracle(a, b):
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(x):
        return ndimage.correlate(x, window, mode="constant")[5:-5, 5:-5]

    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return np.mean((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))


def test_luma_is_that_of_scikit_image():
    x, _ = pair()
    for i in range(3):
        expected = color.rgb2ycbcr(x[i].permute(1, 2, 0).numpy())[..., 0]
        np.testing.assert_allclose(rgb_to_y(x, False)[i, 0].numpy(), expected, atol=1e-10)
    ends = rgb_to_y(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)).flatten()
    assert ends.tolist() == pytest.approx([16, 235])


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("border", [0, 4])
def test_psnr_and_ssim_match_the_definition_and_scikit_image(border, rounded):
    pred, target = pair()
    psnr = psnr_y(pred, target, border, rounded)
    ssim = ssim_y(pred, target, border, rounded)
    assert psnr.shape == ssim.shape == (3,) and psnr.dtype == ssim.dtype == torch.float64
    for i in range(3):
        inner = slice(border, 40 - border), slice(border, 53 - border)
        a, b = luma(pred[i], rounded)[inner], luma(target[i], rounded)[inner]
        expected = metrics.peak_signal_noise_ratio(b, a, data_range=255)
        assert psnr[i].item() == pytest.approx(expected, abs=1e-9)
        assert ssim[i].item() == pytest.approx(ssim_oracle(a, b), abs=1e-10)
        theirs = metrics.structural_similarity(
            a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ssim[i].item() == pytest.approx(theirs, abs=1e-10)


def basicsr(pred, target, border):
    """PSNR and SSIM as BasicSR defines them for saved pictures, from [3, H, W] in 0..1.

    uint8 pictures, the border cut, luma through float32 / 255, then float64 and an 11x11 window.
    """
    lumas = []
    for x in (pred, target):
        saved = np.rint(x.numpy().clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)[..., ::-1]
        height, width = saved.shape[:2]
        bgr = saved[border : height - border, border : width - border].astype(np.float32) / 255
        y = (np.dot(bgr, [24.966, 128.553, 65.481]) + 16.0) / 255
        lumas.append((y.astype(np.float32) * 255).astype(np.float64))
    a, b = lumas
    mse = np.mean((a - b) ** 2)
    psnr = math.inf if mse == 0 else 10 * math.log10(255 * 255 / mse)
    offsets = np.arange(11) - 5.0
    taps = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(taps / taps.sum(), taps / taps.sum())

    def filtered(x):
        return signal.correlate2d(x, window, mode="valid")

    mu_a, mu_b = filtered(a), filtered(b)
    var_a, var_b = filtered(a**2) - mu_a**2, filtered(b**2) - mu_b**2
    cov = filtered(a * b) - mu_a * mu_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ssim = (2 * mu_a * mu_b + c1) * (2 * cov + c2)
    return psnr, (ssim / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))).mean()


@pytest.mark.parametrize("border", [0, 4])
@pytest.mark.parametrize(
    ("size", "spread"),
    [((40, 53), 0.1), ((64, 31), 0.02), ((19, 19), 0.3), ((33, 47), 0.0), ((48, 48), 1.0)],
)
def test_both_are_those_of_basicsr(size, spread, border):
    """BasicSR rounds luma to float32: 3e-5 of 235, next to differences of at least 0.1."""
    pred, target = pair(2, *size, seed=size[0], spread=spread)
    psnr, ssim = psnr_y(pred, target, border), ssim_y(pred, target, border)
    for i in range(2):
        expected = basicsr(pred[i], target[i], border)
        assert psnr[i].item() == pytest.approx(expected[0], abs=1e-4)
        assert ssim[i].item() == pytest.approx(expected[1], abs=1e-6)


@pytest.mark.parametrize(
    ("a", "b"), [((0, 0, 0), (255, 255, 255)), ((255, 0, 0), (0, 0, 255)), ((9, 9, 9), (10, 9, 9))]
)
def test_flat_pictures(a, b):
    pred, target = (
        (torch.tensor(colour, dtype=torch.float64) / 255).view(1, 3, 1, 1).expand(1, 3, 11, 11)
        for colour in (a, b)
    )
    expected = basicsr(pred[0], target[0], 0)
    assert psnr_y(pred, target, 0).item() == pytest.approx(expected[0], abs=1e-3)
    assert ssim_y(pred, target, 0).item() == pytest.approx(expected[1], abs=1e-6)


def test_values_out_of_range_and_half_precision():
    pred, target = pair(1, spread=0.0)
    wide = pred * 1.5 - 0.25
    assert psnr_y(wide, target).item() == pytest.approx(psnr_y(wide.clamp(0, 1), target).item())
    assert psnr_y(pred.float(), target.float()).dtype == torch.float64
    assert math.isnan(psnr_y(pred * math.nan, target).item())


def test_the_least_size():
    x, y = pair(1, 11, 11)
    assert math.isfinite(ssim_y(x, y, border=0).item())
    with pytest.raises(ValueError, match="border: expected at least 11 pixels"):
        ssim_y(x[..., :10], y[..., :10], border=0)
    assert math.isfinite(psnr_y(x[..., :1, :1], y[..., :1, :1], border=0).item())


def test_known_values():
    target = torch.full((1, 3, 20, 20), 100 / 255)
    pred = torch.full((1, 3, 20, 20), 110 / 255)
    step = 10 / 255 * (65.481 + 128.553 + 24.966)
    assert psnr_y(pred, target).item() == pytest.approx(20 * math.log10(255 / step), abs=1e-9)
    x, _ = pair(1)
    assert psnr_y(x, x).item() == math.inf
    assert ssim_y(x, x).item() == pytest.approx(1, abs=1e-12)


def test_rounding_to_8_bits_is_a_choice():
    target = torch.full((1, 3, 20, 20), 100 / 255)
    pred = target + 0.4 / 255
    assert psnr_y(pred, target).item() == math.inf
    assert psnr_y(pred, target, round_to_8bit=False).item() < 60


def test_the_border_is_cut():
    x, _ = pair(1)
    spoiled = x.clone()
    spoiled[..., :4, :] = 0
    spoiled[..., -4:] = 0
    assert psnr_y(spoiled, x, 4).item() == math.inf
    assert psnr_y(spoiled, x, 3).item() < 40


def test_bad_arguments_are_named():
    x = torch.zeros(1, 3, 18, 18)
    with pytest.raises(ValueError, match=r"pred: expected \[1, 3, 18, 18\] as target"):
        psnr_y(torch.zeros(1, 3, 18, 19), x)
    with pytest.raises(ValueError, match=r"pred: expected shape \[B, 3, H, W\]"):
        psnr_y(x[:, :1], x)
    with pytest.raises(TypeError, match="target: expected a floating tensor"):
        psnr_y(x, x.byte())
    with pytest.raises(ValueError, match="border: expected at least 11 pixels"):
        ssim_y(x, x, border=4)
    with pytest.raises(ValueError, match="border: expected 0 or more, got -1"):
        psnr_y(x, x, border=-1)
