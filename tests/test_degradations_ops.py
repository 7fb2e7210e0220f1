"""Each degradation operator against a plain NumPy / SciPy / Pillow rendering of its formula."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, special, stats

from dasr_ops.train.degradations import usm_sharpen
from dasr_ops.train.degradations.blur import (
    _direct_filter,
    fast_length,
    filter_batch,
    gaussian_kernels,
    mirror_index,
    mirror_pad,
    sinc_kernels,
    spectral_filter,
    trim,
)
from dasr_ops.train.degradations.noise import gaussian_noise, poisson_counts, poisson_noise
from dasr_ops.train.degradations.resize import resize, scaled_size


def picture(*shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def smooth(height, width, channels=3, seed=0):
    noise = np.random.default_rng(seed).random((channels, height, width))
    blurred = ndimage.gaussian_filter(noise, (0, 2, 2))
    low, high = blurred.min(), blurred.max()
    return torch.from_numpy((blurred - low) / (high - low))


def gaussian_oracle(size, sigma_x, sigma_y, theta):
    turn = np.array([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]])
    inverse = np.linalg.inv(turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T)
    kernel = np.zeros((size, size))
    for row in range(size):
        for col in range(size):
            p = np.array([col - size // 2, row - size // 2], float)
            kernel[row, col] = math.exp(-0.5 * p @ inverse @ p)
    return kernel / kernel.sum()


def sinc_oracle(size, omega):
    kernel = np.zeros((size, size))
    for row in range(size):
        for col in range(size):
            r = math.hypot(row - size // 2, col - size // 2)
            kernel[row, col] = (
                omega**2 / (4 * math.pi)
                if r == 0
                else omega * special.j1(omega * r) / 2 / math.pi / r
            )
    return kernel / kernel.sum()


def embed(kernel, canvas):
    return np.pad(kernel, (canvas - kernel.shape[0]) // 2)


CASES = [(7, 0.2, 0.2, 0.0), (21, 3.0, 0.5, 0.7), (13, 0.4, 2.0, -2.5), (9, 1.1, 1.1, 0.0)]


def test_gaussian_kernels_match_the_covariance_formula():
    size, sx, sy, theta = (torch.tensor(c) for c in zip(*CASES, strict=True))
    ours = gaussian_kernels(size, torch.stack([sx, sy], 1).double(), theta.double())
    for kernel, (k, a, b, t) in zip(ours.numpy(), CASES, strict=True):
        a, b, t = (float(torch.tensor(x)) for x in (a, b, t))  # the float32 values above
        np.testing.assert_allclose(kernel, embed(gaussian_oracle(k, a, b, t), 21), atol=1e-14)


def test_zero_sigma_is_a_delta_and_leaves_the_picture_alone():
    kernel = gaussian_kernels(torch.tensor([7]), torch.zeros(1, 2), torch.zeros(1))
    assert kernel[0, 10, 10] == 1 and kernel.count_nonzero() == 1
    x = picture(1, 3, 15, 12)
    assert torch.equal(filter_batch(x, kernel), x)


@pytest.mark.parametrize(("size", "omega"), [(7, math.pi / 3), (21, 2.0), (15, math.pi)])
def test_sinc_kernels_match_the_bessel_formula(size, omega):
    ours = sinc_kernels(torch.tensor([size]), torch.tensor([omega], dtype=torch.float64))[0]
    # torch's J1 is off by up to 4.5e-7 beyond an argument of 5.
    expected = embed(sinc_oracle(size, omega), 21)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=5e-7)
    assert ours.min() < 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4, 3, 33, 26), (4, 1, 11, 40), (4, 3, 10, 2), (4, 1, 1, 1)])
def test_filter_batch_matches_scipy_with_one_kernel_per_sample(shape, dtype):
    size, sx, sy, theta = (torch.tensor(c) for c in zip(*CASES, strict=True))
    kernels = gaussian_kernels(size, torch.stack([sx, sy], 1), theta)
    kernels[2] = torch.rand(21, 21, generator=torch.Generator().manual_seed(3)).double() / 441
    x = picture(*shape, dtype=dtype)
    ours = filter_batch(x, kernels)
    assert ours.dtype == dtype
    # 441 products of weights that sum to at most 1 with values below 1.
    bound = 442 * torch.finfo(dtype).eps
    for i in range(shape[0]):
        for c in range(shape[1]):
            expected = ndimage.correlate(
                x[i, c].double().numpy(), kernels[i].numpy(), mode="mirror"
            )
            np.testing.assert_allclose(ours[i, c].double().numpy(), expected, rtol=0, atol=bound)


def test_mirror_padding_reflects_as_often_as_numpy():
    x = picture(2, 3, 3, 1)
    for before, below, right in ((0, 0, 0), (1, 1, 0), (0, 2, 3), (2, 2, 2), (7, 4, 9)):
        widths = [(0, 0), (0, 0), (before, below), (before, right)]
        expected = np.pad(x.numpy(), widths, "reflect")
        np.testing.assert_array_equal(mirror_pad(x, before, (below, right)).numpy(), expected)
    positions, lengths = torch.arange(-9, 14), torch.tensor([[1], [2], [5]])
    index = mirror_index(positions, lengths)
    for row, length in zip(index, (1, 2, 5), strict=True):
        np.testing.assert_array_equal(row, np.pad(np.arange(length), (9, 14 - length), "reflect"))
        assert torch.equal(row, mirror_index(positions, length))


def test_lengths_that_suit_an_fft():
    smooth_numbers = sorted(
        2**a * 3**b * 5**c for a in range(11) for b in range(7) for c in range(5)
    )
    for length in (1, 7, 11, 97, 420, 450, 451, 511):
        assert fast_length(length) == next(n for n in smooth_numbers if n >= length)


def test_trimming_keeps_all_that_counts():
    kernels = gaussian_kernels(
        torch.tensor([21, 21, 9]),
        torch.tensor([[0.3, 0.3], [0.5, 0.2], [3.0, 3.0]]),
        torch.zeros(3),
    )
    for dtype in (torch.float32, torch.float64):
        small = trim(kernels, dtype)
        assert small.shape[1] == small.shape[2] and small.shape[1] % 2 == 1
        assert (1 - small.sum((1, 2))).abs().max() < 4 * torch.finfo(dtype).eps
    assert trim(kernels[:1], torch.float32).shape[1] < 9 <= trim(kernels, torch.float32).shape[1]
    assert trim(kernels[:0], torch.float32).shape[0] == 0


@pytest.mark.parametrize("k", [3, 7, 21])
def test_direct_and_spectral_sums_agree(k):
    kernels = torch.rand(1, k, k, generator=torch.Generator().manual_seed(k)).double() / k**2
    x = picture(1, 3, 40, 33, dtype=torch.float32)
    direct = _direct_filter(x.double(), kernels).float()
    spectral = spectral_filter(x, kernels)
    # An FFT's error: a few roundings of numbers up to 1, far below a step of 8 bits.
    torch.testing.assert_close(spectral, direct, rtol=0, atol=32 * 2**-24)


def test_filter_batch_refuses_what_it_cannot_do():
    kernels = torch.ones(2, 21, 21)
    with pytest.raises(ValueError, match=r"kernels: expected \[3, k, k\]"):
        filter_batch(picture(3, 3, 32, 32), kernels)
    with pytest.raises(TypeError, match="images: expected float32"):
        filter_batch(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), kernels)
    with pytest.raises(ValueError, match="size: expected odd"):
        gaussian_kernels(torch.tensor([8]), torch.ones(1, 2), torch.zeros(1))
    with pytest.raises(ValueError, match="one axis only"):
        gaussian_kernels(torch.tensor([7]), torch.tensor([[0.0, 1.0]]), torch.zeros(1))
    with pytest.raises(ValueError, match="omega: expected"):
        sinc_kernels(torch.tensor([7]), torch.tensor([3.2]))


def cubic(t, a):
    t = abs(t)
    if t < 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def weights_oracle(mode, n_in, n_out):
    matrix = np.zeros((n_out, n_in))
    for i in range(n_out):
        if mode == "area":
            first, last = i * n_in // n_out, -(-(i + 1) * n_in // n_out)
            matrix[i, first:last] = 1 / (last - first)
            continue
        centre = (i + 0.5) * n_in / n_out - 0.5
        if mode == "bilinear":
            centre = max(centre, 0.0)
        base = math.floor(centre)
        for j in range(base - 1, base + 3):
            t = centre - j
            w = max(0.0, 1 - abs(t)) if mode == "bilinear" else cubic(t, -0.75)
            matrix[i, min(max(j, 0), n_in - 1)] += w
    return matrix


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(12, 9), (40, 31), (23, 17), (24, 36), (1, 1)])
def test_resize_matches_the_sampling_formula(mode, size):
    x = picture(3, 24, 18)
    expected = weights_oracle(mode, 24, size[0]) @ x.numpy() @ weights_oracle(mode, 18, size[1]).T
    np.testing.assert_allclose(resize(x, size, mode).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("mode", "filter_"),
    [("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)],
)
@pytest.mark.parametrize("size", [(12, 15), (17, 60), (50, 61)])
def test_antialiased_resize_matches_pillow(mode, filter_, size):
    x = picture(1, 48, 60, dtype=torch.float32)
    expected = np.asarray(Image.fromarray(x[0].numpy()).resize(size[::-1], filter_))
    ours = resize(x, size, mode, antialias=True)[0].numpy()
    # At most 20 taps per axis, sum of absolute weights below 1.3 per axis.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=40 * 1.7 * 2**-23)
    if min(size) < 48:
        assert np.abs(resize(x, size, mode)[0].numpy() - expected).max() > 0.01


def test_resize_refuses_bad_arguments():
    with pytest.raises(ValueError, match="mode: expected one of"):
        resize(picture(3, 8, 8), (4, 4), "nearest")
    with pytest.raises(ValueError, match="size: expected"):
        resize(picture(3, 8, 8), (0, 4), "area")
    with pytest.raises(ValueError, match="image: expected shape"):
        resize(picture(1, 3, 8, 8), (4, 4), "area")
    assert scaled_size(7, 100, 0.05) == (1, 5)
    with pytest.raises(ValueError, match="scale"):
        scaled_size(7, 7, 0.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


N = 3 * 250 * 200


@pytest.mark.parametrize("add", [gaussian_noise, poisson_noise])
def test_noise_is_a_function_of_the_seed_and_level_zero_changes_nothing(add):
    x = picture(3, 9, 13)
    assert torch.equal(add(x, 0.0, False, generator()), x)
    assert torch.equal(add(x, 2.0, False, generator(1)), add(x, 2.0, False, generator(1)))
    assert not torch.equal(add(x, 2.0, False, generator(1)), add(x, 2.0, False, generator(2)))
    out = add(x, 100.0, False, generator())
    assert out.min() == 0 and out.max() == 1


@pytest.mark.parametrize("grey", [False, True])
def test_gaussian_noise_is_sigma_over_255_times_the_generators_normals(grey):
    x = picture(3, 9, 13) / 2 + 0.25
    normals = torch.randn((1 if grey else 3, 9, 13), generator=generator(4), dtype=x.dtype)
    expected = (x.numpy() + normals.numpy() * 12.0 / 255).clip(0, 1)
    ours = gaussian_noise(x, 12.0, grey, generator(4))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-15)


def test_gaussian_noise_has_the_stated_distribution():
    noise = gaussian_noise(torch.full((3, 250, 200), 0.5).double(), 12.0, False, generator()) - 0.5
    assert stats.kstest(noise.flatten().numpy(), "norm", args=(0, 12 / 255)).pvalue > 1e-3
    red, green = noise[0].flatten().numpy(), noise[1].flatten().numpy()
    assert abs(np.corrcoef(red, green)[0, 1]) < 5 / math.sqrt(N / 3)


@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_poisson_noise_has_the_stated_distribution(scale):
    level = 0.25
    noise = poisson_noise(torch.full((3, 250, 200), level).double(), scale, False, generator())
    counts = ((noise - level) / scale + level) * 256
    whole = counts.round()
    assert (counts - whole).abs().max() < 1e-9
    observed = np.bincount(whole.flatten().long().numpy(), minlength=200)[30:100]
    expected = stats.poisson(256 * level).pmf(np.arange(30, 100)) * N
    kept = expected > 20
    chi2 = ((observed - expected)[kept] ** 2 / expected[kept]).sum()
    assert stats.chi2(kept.sum() - 1).sf(chi2) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rate", [0.0, 0.7, 15.9, 16.1, 40.0, 255.0])
def test_poisson_counts_have_their_distribution(rate, dtype):
    """Both ways to draw them, next to where they meet and at the ends."""
    n = 100_000
    counts = poisson_counts(torch.full((n,), rate, dtype=dtype), generator(5))
    assert counts.dtype == dtype and torch.equal(counts, counts.round()) and counts.min() >= 0
    observed = np.bincount(counts.long().numpy(), minlength=500)[:500]
    expected = stats.poisson(float(torch.tensor(rate, dtype=dtype))).pmf(np.arange(500)) * n
    kept = expected > 20
    if rate == 0:
        assert observed[0] == n
        return
    chi2 = ((observed - expected)[kept] ** 2 / expected[kept]).sum()
    assert stats.chi2(kept.sum() - 1).sf(chi2) > 1e-3
    assert counts.double().mean().item() == pytest.approx(rate, abs=5 * math.sqrt(rate / n))
    assert counts.double().var().item() == pytest.approx(
        rate, rel=5 * math.sqrt((2 + 1 / rate) / n)
    )


def test_poisson_counts_of_mixed_rates():
    rates = torch.linspace(0, 64, 65).repeat(400, 1)
    counts = poisson_counts(rates, generator(6)).double()
    z = (counts.mean(0)[1:] - rates[0, 1:]) / (rates[0, 1:] / 400).sqrt()
    assert z.abs().max() < 5 and not counts[:, 0].any()


@pytest.mark.parametrize("add", [gaussian_noise, poisson_noise])
def test_grey_noise_is_the_same_in_all_channels(add):
    x = torch.stack([torch.full((40, 30), v) for v in (0.3, 0.5, 0.6)]).double()
    noise = add(x, 1.0, True, generator()) - x
    assert noise[0].std() > 0
    torch.testing.assert_close(noise[0], noise[1], rtol=0, atol=1e-15)
    torch.testing.assert_close(noise[0], noise[2], rtol=0, atol=1e-15)
    colour = add(x, 1.0, False, generator()) - x
    assert (colour[0] - colour[1]).abs().max() > 1e-3


def test_grey_poisson_noise_comes_from_the_luma():
    x = torch.stack([torch.full((200, 200), v) for v in (0.2, 0.6, 0.4)]).double()
    luma = 0.299 * 0.2 + 0.587 * 0.6 + 0.114 * 0.4
    noise = (poisson_noise(x, 1.0, True, generator()) - x)[0]
    # The variance of n samples of a near-normal variable has relative deviation sqrt(2 / n).
    assert noise.var() / (luma / 256) == pytest.approx(1, abs=5 * math.sqrt(2 / 40000))


@pytest.mark.parametrize("add", [gaussian_noise, poisson_noise])
def test_noise_refuses_bad_arguments(add):
    with pytest.raises(ValueError, match="expected a number >= 0, got -1"):
        add(picture(3, 4, 4), -1.0, False, generator())
    with pytest.raises(ValueError, match="expected a number >= 0, got nan"):
        add(picture(3, 4, 4), math.nan, False, generator())
    with pytest.raises(TypeError, match="generator: expected"):
        add(picture(3, 4, 4), 1.0, False, 7)


def usm_oracle(x, weight, radius, threshold):
    taps = radius + 1 if radius % 2 == 0 else radius
    sigma = 0.3 * ((taps - 1) * 0.5 - 1) + 0.8
    kernel = np.exp(-0.5 * ((np.arange(taps) - taps // 2) / sigma) ** 2)
    kernel /= kernel.sum()

    def blur(plane):
        return ndimage.correlate1d(
            ndimage.correlate1d(plane, kernel, axis=0, mode="mirror"), kernel, axis=1, mode="mirror"
        )

    out = np.empty_like(x)
    for c, plane in enumerate(x):
        residual = plane - blur(plane)
        soft = blur((np.abs(residual) * 255 > threshold).astype(float))
        out[c] = soft * np.clip(plane + weight * residual, 0, 1) + (1 - soft) * plane
    return out


@pytest.mark.parametrize(
    ("radius", "shape"), [(50, (60, 71)), (50, (26, 26)), (7, (33, 20)), (50, (9, 13))]
)
def test_usm_matches_its_definition(radius, shape):
    x = torch.stack([smooth(*shape, seed=s) for s in (0, 1)])
    ours = usm_sharpen(x, weight=0.5, radius=radius, threshold=10)
    for mine, plain in zip(ours, x, strict=True):
        np.testing.assert_allclose(
            mine.numpy(), usm_oracle(plain.numpy(), 0.5, radius, 10), rtol=0, atol=1e-12
        )
    assert (ours - x).abs().max() > 0.02


def test_usm_leaves_flat_pictures_alone_and_refuses_bad_radii():
    flat = torch.full((1, 3, 30, 30), 0.25)
    torch.testing.assert_close(usm_sharpen(flat), flat, rtol=0, atol=2**-24)
    assert usm_sharpen(torch.zeros(0, 3, 30, 30)).shape == (0, 3, 30, 30)
    with pytest.raises(ValueError, match="radius"):
        usm_sharpen(torch.zeros(1, 3, 40, 40), radius=0)
