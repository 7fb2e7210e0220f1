"""Blur: Gaussian and circular low-pass kernels, one kernel per sample.

Sources: the bivariate Gaussian of "Designing a Practical Degradation Model for Deep Blind Image
Super-Resolution" (Zhang et al., ICCV 2021) and the sinc filter of "Real-ESRGAN" (Wang et al.,
ICCVW 2021).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ._checks import check_images

MAX_KERNEL_SIZE = 21


def _grid(canvas: int, size: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x [1,1,S], y [1,S,1] and the support mask [B,S,S], for float64 kernels."""
    if canvas < 1 or canvas % 2 == 0:
        raise ValueError(f"canvas: expected an odd number above 0, got {canvas}")
    if size.dim() != 1 or bool(((size < 1) | (size % 2 == 0) | (size > canvas)).any()):
        raise ValueError(f"size: expected odd numbers [B] in 1..{canvas}, got {size.tolist()}")
    axis = torch.arange(canvas, dtype=torch.float64) - canvas // 2
    inside = axis.abs()[None, :] <= (size[:, None] // 2)
    return axis[None, None, :], axis[None, :, None], inside[:, None, :] & inside[:, :, None]


def gaussian_kernels(
    size: torch.Tensor,
    sigma: torch.Tensor,
    rotation: torch.Tensor,
    canvas: int = MAX_KERNEL_SIZE,
) -> torch.Tensor:
    """Build one (an)isotropic Gaussian kernel per sample on a common canvas.

    Args:
        size: int64 [B], odd support of each kernel, at most `canvas`; zero outside.
        sigma: float [B, 2], standard deviation along the two axes in pixels, 0 or above. A row of
            zeros gives a delta kernel (no blur).
        rotation: float [B], angle in radians of the first axis against x, counted from x to y
            (y points down).
        canvas: odd side of the result.

    Returns:
        float64 [B, canvas, canvas] on the CPU; every kernel is >= 0 and sums to 1.

    Raises:
        ValueError: sizes that are even, too large or not [B]; sigma negative, not [B, 2], or zero
            along one axis only; rotation not [B].
    """
    x, y, inside = _grid(canvas, size)
    batch = size.shape[0]
    if sigma.shape != (batch, 2) or bool((sigma < 0).any()):
        raise ValueError(f"sigma: expected [{batch}, 2] of numbers >= 0, got {sigma.tolist()}")
    if rotation.shape != (batch,):
        raise ValueError(f"rotation: expected shape [{batch}], got {list(rotation.shape)}")
    delta = (sigma == 0).all(dim=1)
    if bool(((sigma == 0).any(dim=1) & ~delta).any()):
        raise ValueError(f"sigma: zero along one axis only is not a kernel, got {sigma.tolist()}")
    scale = torch.where(delta[:, None], 1.0, sigma.double())[:, :, None, None]
    cos, sin = rotation.double().cos()[:, None, None], rotation.double().sin()[:, None, None]
    u = (x * cos + y * sin) / scale[:, 0]
    w = (y * cos - x * sin) / scale[:, 1]
    kernel = torch.exp(-0.5 * (u * u + w * w)) * inside
    centre = ((x == 0) & (y == 0)).to(kernel.dtype)
    kernel = torch.where(delta[:, None, None], centre, kernel)
    return kernel / kernel.sum(dim=(1, 2), keepdim=True)


def sinc_kernels(
    size: torch.Tensor, omega: torch.Tensor, canvas: int = MAX_KERNEL_SIZE
) -> torch.Tensor:
    """Build one circular low-pass (2-D sinc) kernel per sample: omega * J1(omega r) / (2 pi r).

    Args:
        size: int64 [B], odd support of each kernel.
        omega: float [B], cut-off frequency in radians per pixel, in (0, pi].
        canvas: odd side of the result.

    Returns:
        float64 [B, canvas, canvas] on the CPU; every kernel sums to 1 and rings (has negative
        lobes).

    Raises:
        ValueError: bad sizes, or omega outside (0, pi] or not [B].
    """
    x, y, inside = _grid(canvas, size)
    limit = math.pi * (1 + 1e-6)  # float32 pi is a little above pi
    if omega.shape != size.shape or bool(((omega <= 0) | (omega > limit)).any()):
        raise ValueError(f"omega: expected [{len(size)}] in (0, pi], got {omega.tolist()}")
    cut = omega.double()[:, None, None]
    radius = torch.sqrt(x * x + y * y)
    safe = torch.where(radius == 0, 1.0, radius)
    ring = cut * torch.special.bessel_j1(cut * safe) / (2 * math.pi * safe)
    kernel = torch.where(radius == 0, cut * cut / (4 * math.pi), ring) * inside
    return kernel / kernel.sum(dim=(1, 2), keepdim=True)


def filter_batch(images: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Correlate every picture with its own kernel, reflecting at the borders.

    Args:
        images: float32 / float64 [B, C, H, W], C 1 or 3.
        kernels: float [B, k, k], k odd; cast to the pictures' dtype and device.

    Returns:
        [B, C, H, W], dtype and device of `images`.

    Raises:
        TypeError, ValueError: bad pictures, kernels that do not match them, or pictures with a
            side of k // 2 or less, which cannot be reflected.
    """
    check_images(images)
    batch, channels, height, width = images.shape
    k = kernels.shape[-1]
    if kernels.shape != (batch, k, k) or k % 2 == 0:
        raise ValueError(f"kernels: expected [{batch}, k, k], k odd, got {list(kernels.shape)}")
    pad = k // 2
    if min(height, width) <= pad:
        raise ValueError(f"images: a kernel of {k} needs sides above {pad}, got {height}x{width}")
    if batch == 0:
        return images.clone()
    weight = kernels.to(images).repeat_interleave(channels, dim=0)[:, None]
    padded = F.pad(images, (pad, pad, pad, pad), mode="reflect")
    flat = padded.reshape(1, batch * channels, height + 2 * pad, width + 2 * pad)
    return F.conv2d(flat, weight, groups=batch * channels).reshape(images.shape)
