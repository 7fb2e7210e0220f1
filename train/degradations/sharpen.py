"""Unsharp masking of the ground truth, as in Real-ESRGAN and DASR."""

from __future__ import annotations

import torch

from ._checks import check_images, upload
from .blur import spectral_filter


def usm_sharpen(
    images: torch.Tensor, weight: float = 0.5, radius: int = 50, threshold: float = 10.0
) -> torch.Tensor:
    """Sharpen where the picture differs from its blur by more than a threshold.

    The blur is a Gaussian of radius + 1 taps for an even radius (odd: radius) with OpenCV's sigma
    for that size, 0.3 * ((taps - 1) / 2 - 1) + 0.8 (8 for radius 50); borders are reflected. The
    mask of the changed pixels is blurred with the same Gaussian and blends the two.

    Args:
        images: float32 / float64 [B, C, H, W], 0..1.
        weight: strength of the sharpening.
        radius: 1 or more.
        threshold: in 8-bit steps.

    Returns:
        [B, C, H, W], 0..1 for pictures in 0..1.

    Raises:
        TypeError, ValueError: bad pictures, or radius below 1.
    """
    check_images(images)
    if radius < 1:
        raise ValueError(f"radius: expected 1 or more, got {radius}")
    taps = radius + 1 - radius % 2
    if images.shape[0] == 0:
        return images.clone()
    sigma = 0.3 * ((taps - 1) * 0.5 - 1) + 0.8
    axis = torch.arange(taps, dtype=torch.float64) - taps // 2
    kernel = torch.exp(-0.5 * (axis / sigma) ** 2)
    kernel = upload((kernel / kernel.sum()).to(images.dtype), images.device)
    # One by one on the CPU: no picture's result depends on the others, and the cache holds it.
    parts = images.split(1) if images.device.type == "cpu" else (images,)
    return torch.cat([_sharpen(part, kernel, weight, threshold) for part in parts])


def _sharpen(
    images: torch.Tensor, taps: torch.Tensor, weight: float, threshold: float
) -> torch.Tensor:
    residual = images - spectral_filter(images, taps)
    mask = (residual.abs() * 255 > threshold).to(images.dtype)
    soft = spectral_filter(mask, taps)
    sharp = (images + weight * residual).clamp_(0, 1)
    return sharp.sub_(images).mul_(soft).add_(images)
