"""The whole synthesis: against a NumPy / SciPy / Pillow chain, per sample, odd shapes."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from dasr_ops.train.degradations import (
    LEVELS,
    TRAINING_MIX,
    Level,
    Sinc,
    apply,
    degrade,
    labels,
    sample,
)
from dasr_ops.train.degradations.blur import gaussian_kernels, sinc_kernels
from dasr_ops.train.degradations.resize import resize

NO_NOISE = {"noise_prob": 0.0}
SEVERE_LIKE = Level(
    replace(LEVELS["standard"].stage1, blur_sigma=(0.2, 3.0), scale=(0.4, 1.5)),
    replace(LEVELS["standard"].stage1, blur_prob=0.8),
    Sinc(),
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(*shape, seed=0):
    """Smooth random pictures in float64: rounding to 8 bits meets no ties by arithmetic noise."""
    noise = np.random.default_rng(seed).random(shape)
    x = ndimage.gaussian_filter(noise, (0, 0, 1, 1))
    return torch.from_numpy((x - x.min()) / (x.max() - x.min()))


def correlate(x, kernel):
    return torch.stack(
        [torch.from_numpy(ndimage.correlate(p.numpy(), kernel.numpy(), mode="mirror")) for p in x]
    )


def jpeg(x, quality):
    pixels = np.rint(np.clip(x.numpy(), 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality)
    return torch.from_numpy(np.asarray(Image.open(buffer)).transpose(2, 0, 1) / 255.0)


def chain(params, i, x, scale):
    """One sample without noise, step by step as the paper lists them. resize has its own test."""
    modes = ("area", "bilinear", "bicubic")
    height, width = x.shape[1:]
    final = (height // scale, width // scale)
    for number, stage in enumerate((params.stage1, params.stage2)):
        if number == 1 and not params.has_stage2[i]:
            break
        if stage.blur_sigma[i].sum() > 0:
            kernel = gaussian_kernels(
                stage.blur_size[i : i + 1],
                stage.blur_sigma[i : i + 1],
                stage.blur_rotation[i : i + 1],
            )
            x = correlate(x, kernel[0])
        if stage.resize_mode[i] >= 0:
            base = (height, width) if number == 0 else final
            size = tuple(round(side * stage.scale[i].item()) for side in base)
            x = resize(x, size, modes[stage.resize_mode[i]])
        quality = stage.jpeg_quality[i].item()
        if quality < 100 and not (number == 1 and params.jpeg_last[i]):
            x = jpeg(x, quality)
    x = resize(x, final, modes[params.final_mode[i]])
    if params.sinc_size[i] > 0:
        x = correlate(x, sinc_kernels(params.sinc_size[i : i + 1], params.sinc_omega[i : i + 1])[0])
    if params.jpeg_last[i] and params.stage2.jpeg_quality[i] < 100:
        x = jpeg(x, params.stage2.jpeg_quality[i].item())
    return np.rint(np.clip(x.numpy(), 0, 1) * 255)


@pytest.mark.parametrize("level", ["weak", "standard", "severe", SEVERE_LIKE])
@pytest.mark.parametrize("scale", [2, 4])
def test_the_chain_without_noise(level, scale):
    table = LEVELS[level] if isinstance(level, str) else level
    stage2 = table.stage2 and replace(table.stage2, **NO_NOISE)
    quiet = replace(table, stage1=replace(table.stage1, **NO_NOISE), stage2=stage2)
    params = sample(generator(7), 12, quiet)
    x = pictures(12, 3, 64, 56)
    ours = apply(params, x, scale)
    assert ours.shape == (12, 3, 64 // scale, 56 // scale)
    for i in range(12):
        np.testing.assert_array_equal(
            (ours[i] * 255).round().numpy(), chain(params, i, x[i], scale)
        )


@pytest.mark.parametrize("codec", ["pillow", "batched"])
def test_pictures_smaller_than_their_kernels(codec):
    """Down to one pixel between the stages."""
    params = sample(generator(3), 60, "severe")
    for height, width in ((4, 4), (4, 40), (16, 12)):
        x = pictures(60, 3, height, width).float()
        out = apply(params, x, codec=codec)
        assert out.shape == (60, 3, height // 4, width // 4)
        assert out.isfinite().all() and out.min() >= 0 and out.max() <= 1
    assert (params.stage1.scale * 4 < 1.5).any()


def test_clean_is_pillows_bicubic():
    x = pictures(2, 3, 64, 48)
    ours = (apply(sample(generator(), 2, "clean"), x) * 255).round().numpy()
    for i in range(2):
        for c in range(3):
            plane = Image.fromarray(x[i, c].float().numpy())
            expected = np.asarray(plane.resize((12, 16), Image.Resampling.BICUBIC)) * 255
            # Rounding to the nearest step, plus float32 arithmetic inside Pillow.
            assert np.abs(ours[i, c] - np.clip(expected, 0, 255)).max() <= 0.5 + 1e-3


def test_noise_enters_between_resize_and_jpeg_at_the_stated_strength():
    only_noise = replace(
        LEVELS["clean"].stage1,
        noise_prob=1.0,
        gaussian_prob=1.0,
        gaussian_sigma=(8.0, 8.0),
        grey_prob=0.0,
    )
    params = sample(generator(), 4, Level(only_noise))
    flat = torch.full((4, 3, 200, 200), 0.5, dtype=torch.float64)
    noise = (apply(params, flat, scale=1) - 0.5) * 255
    n = noise.numel()
    # Rounding to 8 bits adds 1/12 to the variance.
    assert noise.var().item() == pytest.approx(64 + 1 / 12, rel=5 * math.sqrt(2 / n))
    assert abs(noise.mean().item()) < 5 * 8 / math.sqrt(n)
    assert not torch.equal(noise[0], noise[1])


@pytest.mark.parametrize("level", ["weak", "standard", "severe", TRAINING_MIX])
@pytest.mark.parametrize("shape", [(5, 3, 64, 60), (3, 1, 44, 92), (1, 3, 48, 48)])
def test_a_sample_does_not_depend_on_its_neighbours(level, shape):
    params = sample(generator(11), shape[0], level)
    x = pictures(*shape)
    together = apply(params, x)
    alone = torch.cat([apply(params[i], x[i : i + 1]) for i in range(shape[0])])
    assert torch.equal(together, alone)
    backwards = list(range(shape[0]))[::-1]
    assert torch.equal(apply(params[backwards], x[backwards]), together[backwards])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("height", "width", "scale"), [(44, 52, 4), (33, 39, 3), (23, 25, 1), (30, 22, 2)]
)
def test_shapes_types_and_the_8_bit_grid(height, width, scale, dtype):
    x = pictures(3, 3, height, width).to(dtype)
    out = apply(sample(generator(2), 3, "weak"), x, scale)
    assert out.shape == (3, 3, height // scale, width // scale) and out.dtype == dtype
    assert out.min() >= 0 and out.max() <= 1
    assert torch.equal(out, (out * 255).round() / 255)


def test_a_seed_reproduces_a_batch_bit_for_bit_and_global_state_is_untouched():
    x = pictures(4, 3, 64, 64).float()
    state = torch.get_rng_state()
    first, v1 = degrade(x, generator(9))
    torch.rand(3)
    second, v2 = degrade(x, generator(9))
    other, _ = degrade(x, generator(10))
    assert torch.equal(first, second) and torch.equal(v1, v2)
    assert not torch.equal(first, other)
    torch.set_rng_state(state)
    degrade(x, generator(9))
    assert torch.equal(state, torch.get_rng_state())


def test_degrade_is_sample_apply_labels():
    x = pictures(4, 3, 48, 48).float()
    before = x.clone()
    low, v = degrade(x, generator(1), "standard")
    params = sample(generator(1), 4, "standard")
    assert torch.equal(low, apply(params, x)) and torch.equal(v, labels(params))
    assert torch.equal(x, before)


def test_stronger_levels_lose_more():
    x = pictures(24, 3, 64, 64).float()
    clean = apply(sample(generator(), 24, "clean"), x)
    loss = [
        (apply(sample(generator(4), 24, level), x) - clean).abs().mean().item()
        for level in ("clean", "weak", "standard", "severe")
    ]
    assert loss[0] == 0 < loss[1] < loss[2] < loss[3]


def test_low_resolution_stays_aligned_with_the_ground_truth():
    """The centroid of a blob stays put whatever the intermediate size."""
    rows, cols = np.mgrid[0:96, 0:96]
    blob = np.exp(-((rows - 61.3) ** 2 + (cols - 30.6) ** 2) / (2 * 8.0**2))
    x = torch.from_numpy(np.broadcast_to(blob, (40, 3, 96, 96)).copy())
    # "area" between sizes that do not divide moves edges by itself, so it stays out here.
    modes = (0.0, 1.0, 1.0)
    quiet = replace(
        LEVELS["standard"].stage1, noise_prob=0.0, jpeg_prob=0.0, blur_prob=0.0, resize_modes=modes
    )
    low = apply(sample(generator(), 40, Level(quiet, final_modes=modes)), x)[:, 0].numpy()
    axis = (np.arange(24) + 0.5) * 4 - 0.5
    weight = low.sum((1, 2))
    row, col = (low.sum(2) @ axis) / weight, (low.sum(1) @ axis) / weight
    assert np.abs(row - 61.3).max() < 0.08 and np.abs(col - 30.6).max() < 0.08


def test_empty_batch_and_bad_arguments():
    none = sample(generator(), 0, "weak")
    assert apply(none, torch.zeros(0, 3, 32, 32)).shape == (0, 3, 8, 8)
    two = sample(generator(), 2, "weak")
    with pytest.raises(ValueError, match="params: expected 3 samples, as in images, got 2"):
        apply(two, torch.zeros(3, 3, 32, 32))
    with pytest.raises(ValueError, match="images: expected sides divisible by 4, got 32x30"):
        apply(two, torch.zeros(2, 3, 32, 30))
    with pytest.raises(ValueError, match="scale: expected a whole number"):
        apply(two, torch.zeros(2, 3, 32, 32), scale=0)
    with pytest.raises(ValueError, match=r"images: expected shape \[B, 1 or 3, H, W\]"):
        apply(two, torch.zeros(2, 4, 32, 32))
    with pytest.raises(TypeError, match="images: expected float32 or float64"):
        apply(two, torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
