"""Blur: Gaussian and circular low-pass kernels, one kernel per sample.

Sources: the bivariate Gaussian of "Designing a Practical Degradation Model for Deep Blind Image
Super-Resolution" (Zhang et al., ICCV 2021) and the sinc filter of "Real-ESRGAN" (Wang et al.,
ICCVW 2021).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ._checks import check_images, no_autocast, upload

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


def mirror_index(positions: torch.Tensor, length: int | torch.Tensor) -> torch.Tensor:
    """Map positions on a line to 0 .. length - 1, reflecting at the ends as often as needed.

    The end samples are not repeated (NumPy's pad mode "reflect", SciPy's "mirror"); a single
    sample is a constant.

    Args:
        positions: int64, any shape.
        length: 1 or more; a tensor broadcasts against `positions`.

    Returns:
        int64, the broadcast shape.
    """
    last = length - 1
    if isinstance(length, int):
        period = max(2 * last, 1)
        folded = positions.remainder(period)
        return torch.minimum(folded, (period - folded) if last else folded)
    period = (2 * last).clamp(min=1)
    folded = positions.remainder(period)
    return torch.where(folded > last, period - folded, folded)


def mirror_pad(images: torch.Tensor, before: int, after: tuple[int, int]) -> torch.Tensor:
    """Widen [B, C, H, W], reflecting as `mirror_index` does.

    Args:
        images: floating, H and W 1 or more.
        before: pixels above and to the left.
        after: pixels below, and to the right.

    Returns:
        [B, C, before + H + after[0], before + W + after[1]].
    """
    if not before and not any(after):
        return images
    height, width = images.shape[-2:]
    if max(before, after[0]) < height and max(before, after[1]) < width:
        return F.pad(images, (before, after[1], before, after[0]), mode="reflect")
    for dim, more in ((-2, after[0]), (-1, after[1])):
        length = images.shape[dim]
        positions = torch.arange(-before, length + more, device=images.device)
        images = images.index_select(dim, mirror_index(positions, length))
    return images


def fast_length(length: int) -> int:
    """Return the least number from `length` on with no prime factor above 5, quick for an FFT."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1


def spectral_filter(images: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Correlate pictures with kernels by FFT, reflecting at the borders.

    The cost hardly depends on the size of the kernel. Errors are a few roundings of the largest
    pixel, spread over the whole picture.

    Args:
        images: float32 / float64 [B, C, H, W].
        kernels: [B or 1, k, k], or taps [k] of a separable kernel, k odd; on the same device.

    Returns:
        [B, C, H, W].
    """
    height, width = images.shape[-2:]
    margin = kernels.shape[-1] // 2
    size = (fast_length(height + 2 * margin), fast_length(width + 2 * margin))
    after = (size[0] - margin - height, size[1] - margin - width)
    spectrum = torch.fft.rfft2(mirror_pad(images, margin, after))
    # A flipped kernel turns the convolution into a correlation; its delay is cut off below.
    kernels = kernels.to(images.dtype)
    if kernels.dim() == 1:
        taps = kernels.flip(0)
        response = torch.fft.fft(taps, size[0])[:, None] * torch.fft.rfft(taps, size[1])
    else:
        response = torch.fft.rfft2(kernels.flip(-1, -2), s=size)[:, None]
    filtered = torch.fft.irfft2(spectrum.mul_(response), s=size)
    start = 2 * margin
    return filtered[..., start : start + height, start : start + width]


def trim(kernels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cut kernels [B, k, k] down to the smallest odd square that holds all of them.

    Weights that cannot change a sum of `dtype` (below 1/128 of its rounding) count as zero. Reads
    the values, so keep the kernels on the CPU.
    """
    centre = kernels.shape[-1] // 2
    axis = (torch.arange(kernels.shape[-1]) - centre).abs()
    large = (kernels.abs() > torch.finfo(dtype).eps / 128).any(dim=0)
    margin = int((torch.maximum(axis[:, None], axis[None, :]) * large).max())
    kept = slice(centre - margin, centre + margin + 1)
    return kernels[:, kept, kept]


_DIRECT = 5  # up to this side a direct sum on the CPU is quicker than an FFT


def filter_batch(images: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Correlate every picture with its own kernel, reflecting at the borders.

    Pictures may be smaller than the kernel; they are then reflected as often as needed. On the
    CPU large kernels are applied by FFT.

    Args:
        images: float32 / float64 [B, C, H, W], C 1 or 3.
        kernels: float [B, k, k], k odd, on the CPU or the pictures' device; cast to their dtype.

    Returns:
        [B, C, H, W], dtype and device of `images`. A picture's result does not depend on the
        others on the CPU.

    Raises:
        TypeError, ValueError: bad pictures, or kernels that do not match them.
    """
    check_images(images)
    batch, k = images.shape[0], kernels.shape[-1]
    if kernels.shape != (batch, k, k) or k % 2 == 0:
        raise ValueError(f"kernels: expected [{batch}, k, k], k odd, got {list(kernels.shape)}")
    if batch == 0:
        return images.clone()
    if images.device.type != "cpu":
        if kernels.device.type == "cpu":
            kernels = upload(trim(kernels, images.dtype).to(images.dtype), images.device)
        return _direct_filter(images, kernels)
    out, kernels = torch.empty_like(images), kernels.cpu()
    for i in range(batch):  # one by one: kernels differ in size, and no picture sees another
        kernel = trim(kernels[i : i + 1], images.dtype)
        if kernel.shape[-1] > _DIRECT:
            out[i] = spectral_filter(images[i : i + 1], kernel)[0]
        else:
            out[i] = _direct_filter(images[i : i + 1], kernel)[0]
    return out


def _direct_filter(images: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Correlate [B, C, H, W] with [B, k, k] by a direct sum."""
    batch, channels = images.shape[:2]
    margin = kernels.shape[-1] // 2
    padded = mirror_pad(images, margin, (margin, margin)).flatten(0, 1)[None]
    weight = kernels.to(images).repeat_interleave(channels, dim=0)[:, None]
    with no_autocast(images.device):
        return F.conv2d(padded, weight, groups=batch * channels).reshape(images.shape)
