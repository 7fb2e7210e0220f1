"""PSNR and SSIM on the luma channel, as the super-resolution literature reports them.

Luma is that of BT.601 in studio range (MATLAB's rgb2ycbcr, BasicSR): 16..235 in 8-bit steps.
Pictures are rounded to 8 bits first by default, because published numbers are measured on saved
files; the luma itself is not rounded (as in BasicSR; MATLAB rounds it for integer pictures).
Everything is computed in float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_LUMA = (65.481, 128.553, 24.966)
_SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5


def _check(pred: torch.Tensor, target: torch.Tensor, border: int, least: int) -> None:
    for name, value in (("pred", pred), ("target", target)):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            kind = getattr(value, "dtype", type(value).__name__)
            raise TypeError(f"{name}: expected a floating tensor in 0..1, got {kind}")
        if value.dim() != 4 or value.shape[1] != 3:
            raise ValueError(f"{name}: expected shape [B, 3, H, W], got {list(value.shape)}")
    if pred.shape != target.shape:
        raise ValueError(f"pred: expected {list(target.shape)} as target, got {list(pred.shape)}")
    if border < 0:
        raise ValueError(f"border: expected 0 or more, got {border}")
    if min(pred.shape[2:]) - 2 * border < least:
        raise ValueError(
            f"border: expected at least {least} pixels between the borders, got a border of "
            f"{border} on {list(pred.shape)}"
        )


def rgb_to_y(images: torch.Tensor, round_to_8bit: bool = True) -> torch.Tensor:
    """Return the BT.601 luma of RGB pictures, in 8-bit steps.

    Args:
        images: floating [B, 3, H, W] in 0..1 (clamped).
        round_to_8bit: round the RGB values to multiples of 1/255 first.

    Returns:
        float64 [B, 1, H, W] in 16..235.
    """
    images = images.double().clamp(0, 1)
    if round_to_8bit:
        images = (images * 255).round() / 255
    weight = torch.tensor(_LUMA, dtype=torch.float64, device=images.device)
    return torch.einsum("c,bchw->bhw", weight, images)[:, None] + 16


def _luma_pair(
    pred: torch.Tensor, target: torch.Tensor, border: int, round_to_8bit: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    height, width = pred.shape[2:]
    inner = (..., slice(border, height - border), slice(border, width - border))
    return rgb_to_y(pred[inner], round_to_8bit), rgb_to_y(target[inner], round_to_8bit)


def psnr_y(
    pred: torch.Tensor, target: torch.Tensor, border: int = 4, round_to_8bit: bool = True
) -> torch.Tensor:
    """Peak signal-to-noise ratio on luma, 10 log10(255^2 / MSE), per picture.

    Args:
        pred: floating [B, 3, H, W] in 0..1.
        target: the same shape, same device.
        border: pixels cut from each side.
        round_to_8bit: as in `rgb_to_y`.

    Returns:
        float64 [B] in dB; inf for equal pictures.

    Raises:
        TypeError, ValueError: not floating, shapes that differ, or nothing left after the cut.
    """
    _check(pred, target, border, 1)
    a, b = _luma_pair(pred, target, border, round_to_8bit)
    mse = ((a - b) ** 2).mean(dim=(1, 2, 3))
    return 10 * torch.log10(255.0**2 / mse)


def ssim_y(
    pred: torch.Tensor, target: torch.Tensor, border: int = 4, round_to_8bit: bool = True
) -> torch.Tensor:
    """Structural similarity on luma, per picture (Wang et al. 2004, as in BasicSR).

    An 11x11 Gaussian window with sigma 1.5, positions where it lies wholly inside the picture,
    population (not sample) covariance, C1 = (0.01 * 255)^2, C2 = (0.03 * 255)^2.

    Args:
        pred: floating [B, 3, H, W] in 0..1.
        target: the same shape, same device.
        border: pixels cut from each side, before the window.
        round_to_8bit: as in `rgb_to_y`.

    Returns:
        float64 [B], 1 for equal pictures.

    Raises:
        TypeError, ValueError: not floating, shapes that differ, or fewer than 11 pixels per side
            left after the cut.
    """
    _check(pred, target, border, _SSIM_WINDOW)
    a, b = _luma_pair(pred, target, border, round_to_8bit)
    axis = torch.arange(_SSIM_WINDOW, dtype=torch.float64, device=a.device) - _SSIM_WINDOW // 2
    taps = torch.exp(-0.5 * (axis / _SSIM_SIGMA) ** 2)
    taps = taps / taps.sum()

    def mean(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(x, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))

    mean_a, mean_b = mean(a), mean(b)
    var_a = mean(a * a) - mean_a**2
    var_b = mean(b * b) - mean_b**2
    cov = mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))
