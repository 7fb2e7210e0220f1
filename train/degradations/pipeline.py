"""From ground truth and parameters to low-resolution pictures."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ._checks import check_images, upload
from .blur import filter_batch, gaussian_kernels, sinc_kernels
from .jpeg import Codec, jpeg_compress
from .labels import labels
from .levels import NO_JPEG, TRAINING_MIX, Level
from .noise import gaussian_noise, poisson_noise
from .params import NOISE_KINDS, DegradationParams, StageParams, mode_name
from .resize import RESIZE_MODES, resize, scaled_size
from .sampler import sample

# Inside, a batch is a list of [C, h, w]: after the first resize every sample has its own size.
Pictures = list[torch.Tensor]


def _filter(pictures: Pictures, kernels: torch.Tensor, active: torch.Tensor) -> Pictures:
    """Correlate the active pictures with their kernels, pictures of one size together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in torch.nonzero(active).flatten().tolist():
        groups.setdefault(tuple(pictures[i].shape), []).append(i)
    out = list(pictures)
    for members in groups.values():
        filtered = filter_batch(torch.stack([pictures[i] for i in members]), kernels[members])
        for i, picture in zip(members, filtered, strict=True):
            out[i] = picture
    return out


def _blur(pictures: Pictures, stage: StageParams) -> Pictures:
    kernels = gaussian_kernels(stage.blur_size, stage.blur_sigma, stage.blur_rotation)
    return _filter(pictures, kernels, (stage.blur_sigma > 0).all(dim=1))


def _resize(pictures: Pictures, stage: StageParams, base: list[tuple[int, int]]) -> Pictures:
    out = []
    for picture, mode, scale, (height, width) in zip(
        pictures, stage.resize_mode.tolist(), stage.scale.tolist(), base, strict=True
    ):
        name = mode_name(mode)
        size = scaled_size(height, width, scale)
        unchanged = name is None or size == tuple(picture.shape[1:])
        out.append(picture if unchanged else resize(picture, size, name))
    return out


def _noise(pictures: Pictures, stage: StageParams) -> Pictures:
    out = []
    for picture, kind, level, grey, seed in zip(
        pictures,
        stage.noise_kind.tolist(),
        stage.noise_level.tolist(),
        stage.noise_grey.tolist(),
        stage.noise_seed.tolist(),
        strict=True,
    ):
        if NOISE_KINDS[kind] != "none":
            generator = torch.Generator(picture.device).manual_seed(seed)
            add = gaussian_noise if NOISE_KINDS[kind] == "gaussian" else poisson_noise
            picture = add(picture, level, grey, generator)
        out.append(picture)
    return out


def _jpeg(
    pictures: Pictures, quality: torch.Tensor, active: torch.Tensor, codec: Codec
) -> Pictures:
    chosen = torch.nonzero(active & (quality < NO_JPEG)).flatten().tolist()
    out = list(pictures)
    compressed = jpeg_compress([pictures[i] for i in chosen], quality[chosen].tolist(), codec)
    for i, picture in zip(chosen, compressed, strict=True):
        out[i] = picture
    return out


def _final(pictures: Pictures, params: DegradationParams, size: tuple[int, int]) -> Pictures:
    out = [
        resize(picture, size, RESIZE_MODES[mode], antialias=antialias)
        for picture, mode, antialias in zip(
            pictures, params.final_mode.tolist(), params.final_antialias.tolist(), strict=True
        )
    ]
    active = params.sinc_size > 0
    if not bool(active.any()):
        return out
    kernels = sinc_kernels(torch.where(active, params.sinc_size, 1), params.sinc_omega)
    return _filter(out, kernels, active)


@torch.no_grad()
def apply(
    params: DegradationParams, images: torch.Tensor, scale: int = 4, codec: Codec = "auto"
) -> torch.Tensor:
    """Degrade a batch: blur, resize, noise, JPEG, a second round where drawn, resize to 1/scale.

    The result is a function of the arguments: the noise fields come from the seeds in `params`
    (through the generator of the pictures' device, so CPU and GPU fields differ). A sample does
    not depend on its neighbours in the batch. Pictures on a GPU are never waited for: all that
    decides what is computed is in `params`.

    Args:
        params: B samples.
        images: float32 / float64 [B, C, H, W] in 0..1, C 1 or 3, H and W multiples of `scale`.
        scale: 1 or more.
        codec: what compresses, see `jpeg_compress`.

    Returns:
        [B, C, H / scale, W / scale], dtype and device of `images`, multiples of 1/255 in 0..1.

    Raises:
        TypeError, ValueError: bad pictures, sizes that do not divide, or another batch size.
    """
    check_images(images)
    batch, channels, height, width = images.shape
    if len(params) != batch:
        raise ValueError(f"params: expected {batch} samples, as in images, got {len(params)}")
    if scale < 1 or scale != int(scale):
        raise ValueError(f"scale: expected a whole number, 1 or more, got {scale}")
    if height % scale or width % scale:
        raise ValueError(f"images: expected sides divisible by {scale}, got {height}x{width}")
    size = (height // scale, width // scale)
    if batch == 0:
        return images.new_zeros((0, channels, *size))

    two = params.has_stage2
    pictures = _blur(list(images), params.stage1)
    pictures = _resize(pictures, params.stage1, [(height, width)] * batch)
    pictures = _noise(pictures, params.stage1)
    pictures = _jpeg(pictures, params.stage1.jpeg_quality, torch.ones_like(two), codec)
    if bool(two.any()):
        pictures = _blur(pictures, params.stage2)
        pictures = _resize(pictures, params.stage2, [size] * batch)
        pictures = _noise(pictures, params.stage2)
        pictures = _jpeg(pictures, params.stage2.jpeg_quality, ~params.jpeg_last, codec)
    pictures = _final(pictures, params, size)
    pictures = _jpeg(pictures, params.stage2.jpeg_quality, params.jpeg_last, codec)
    return (torch.stack(pictures) * 255).round().clamp(0, 255) / 255


def degrade(
    images: torch.Tensor,
    generator: torch.Generator,
    level: str | Level | Mapping[str, float] = TRAINING_MIX,
    scale: int = 4,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw parameters, degrade, label: `sample`, `apply` and `labels` in one call.

    Returns:
        Low-resolution pictures [B, C, H / scale, W / scale] and float32 labels [B, 33], both on
        the device of `images`.

    Raises:
        TypeError, ValueError: as `sample` and `apply`.
    """
    check_images(images)
    params = sample(generator, images.shape[0], level)
    return apply(params, images, scale), upload(labels(params), images.device)
