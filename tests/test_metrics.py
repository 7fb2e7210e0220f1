"""PSNR and SSIM on luma against scikit-image and a plain rendering of BasicSR's definition."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
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
