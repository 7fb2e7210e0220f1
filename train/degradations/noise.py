"""Gaussian and Poisson noise for one picture, in colour or in grey."""

from __future__ import annotations

import torch

from ._checks import check_generator, check_picture

POISSON_LEVELS = 256


def _check(image: torch.Tensor, amount: float, name: str, generator: torch.Generator) -> None:
    check_picture(image)
    check_generator(generator)
    if not amount >= 0:
        raise ValueError(f"{name}: expected a number >= 0, got {amount}")
    if generator.device.type != image.device.type:
        raise ValueError(
            f"generator: expected one on {image.device.type}, got {generator.device.type}"
        )


def _to_grey(image: torch.Tensor) -> torch.Tensor:
    if image.shape[0] == 1:
        return image
    red, green, blue = image  # no tensor of weights: on a GPU its copy would be waited for
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)[None]


def gaussian_noise(
    image: torch.Tensor, sigma: float, grey: bool, generator: torch.Generator
) -> torch.Tensor:
    """Add white Gaussian noise and clamp to 0..1.

    Args:
        image: float32 / float64 [C, H, W], 0..1.
        sigma: standard deviation in 8-bit steps (so / 255).
        grey: the same noise for all channels.
        generator: on the device of `image`; the only source of randomness.

    Returns:
        [C, H, W] in 0..1.

    Raises:
        TypeError, ValueError: bad picture, sigma below 0, generator on another device.
    """
    _check(image, sigma, "sigma", generator)
    shape = (1 if grey else image.shape[0], *image.shape[1:])
    noise = torch.randn(shape, generator=generator, dtype=image.dtype, device=image.device)
    return (image + noise * (sigma / 255)).clamp(0, 1)


# From this rate on a count comes from a normal number; it is off, by one, for at most 1 in 3000.
_NORMAL_FROM = 16.0


def poisson_counts(rate: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw Poisson counts.

    On a GPU by torch.poisson. On a CPU that takes most of the time of a whole degradation, so
    rates from 16 on are served by the quantile function: with w normal, the count is the floor of
    r + sqrt(r) w + 1/3 + w^2 / 6 - (w / 36 + w^3 / 72) / sqrt(r) (Giles, "Approximation of the
    inverse Poisson cumulative distribution function", ACM TOMS 2016), within a total variation
    distance of 3e-4 of the exact distribution.

    Args:
        rate: float32 / float64, any shape, 0 or more.
        generator: on the device of `rate`.

    Returns:
        Whole numbers, shape and dtype of `rate`.
    """
    if rate.device.type != "cpu":
        return torch.poisson(rate, generator=generator)
    w = torch.randn(rate.shape, generator=generator, dtype=rate.dtype)
    low = rate < _NORMAL_FROM
    root = rate.clamp(min=_NORMAL_FROM).sqrt_()
    square = w * w
    correction = (square / 72).add_(1 / 36).div_(root)
    counts = root.sub_(correction).mul_(w).add_(square, alpha=1 / 6).add_(rate).add_(1 / 3)
    counts = counts.floor_().clamp_(min=0)
    counts[low] = torch.poisson(rate[low], generator=generator)
    return counts


def poisson_noise(
    image: torch.Tensor, scale: float, grey: bool, generator: torch.Generator
) -> torch.Tensor:
    """Add scaled shot noise, scale * (Poisson(256 x) / 256 - x), and clamp to 0..1.

    BasicSR takes the number of distinct grey levels of the crop, rounded up to a power of two, in
    place of 256. On photographs that is 256; on flat crops it falls to 1 and the noise explodes.
    The constant gives one scale one meaning.

    Args:
        image: float32 / float64 [C, H, W], 0..1 (clamped for the rate).
        scale: factor on the noise; its variance is scale**2 * x / 256.
        grey: noise of the luma, the same for all channels.
        generator: on the device of `image`; the only source of randomness.

    Returns:
        [C, H, W] in 0..1.

    Raises:
        TypeError, ValueError: bad picture, scale below 0, generator on another device.
    """
    _check(image, scale, "scale", generator)
    source = (_to_grey(image) if grey else image).clamp(0, 1)
    counts = poisson_counts(source * POISSON_LEVELS, generator)
    return (image + (counts / POISSON_LEVELS - source) * scale).clamp(0, 1)
