"""Label scheme "official": the numbers that the released weights were trained on.

Each level maps its own ranges to 0..1 (`levels`; kernel sizes 7..21, rotation -pi..pi, omega
pi/3..pi), so the same sigma has another label in another level. What is absent:

* No second stage (weak, standard): its entries, 4-9, 14-17, 22-25 and 27-29, are 0.
* No sinc filter in a severe sample: entry 8 is -0.5 (size 0), and so is entry 9.
* Entry 9 is 1 if the second stage blurred, else the sinc filter's omega. A severe sample with a
  second blur does not tell omega.

Where the official code writes numbers that it draws and does not use (the mode of a resize that
keeps the size in stage 1: a random one-hot; the second kernel where nothing blurs), this scheme has
their medians, 0 for the modes and 4/7, 0.5, 0.5, 0.5 for the kernel. The medians are what a
regression by L1 makes of such noise.

The clean levels, which the official code has not, are labelled as the weakest of weak.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .levels import LEVELS, Level, Stage
from .params import DegradationParams, StageParams
from .resize import RESIZE_MODES
from .vector import (
    NUM_LABELS,
    Decoded,
    DecodedStage,
    argmax,
    decode_mode,
    decode_noise_kind,
    decode_order,
    from_unit,
    odd_size,
    one_hot,
    to_unit,
)

_SIZE = (7.0, 21.0)
_ROTATION = (-math.pi, math.pi)
_OMEGA = (math.pi / 3, math.pi)
_UNUSED_KERNEL = (4 / 7, 0.5, 0.5, 0.5)  # sizes 9..21: the official code never draws 7
_NO_SINC = -0.5
_SECOND_BLUR = 0.95  # from here on entry 9 is read as the flag of the second blur

_RANGES: dict[str, Level] = {
    name: LEVELS[name if LEVELS[name].stage1.blur_prob else "weak"]
    for name in ("weak", "standard", "severe", "clean", "clean_area")
}


def _level(name: str | None) -> Level:
    if name not in _RANGES:
        raise ValueError(
            f"level: scheme 'official' has ranges for {sorted(_RANGES)} only, got {name!r}"
        )
    return _RANGES[name]


def _encode_stage(
    stage: StageParams, of: Callable[[str], tuple[torch.Tensor, torch.Tensor]]
) -> tuple[torch.Tensor, ...]:
    """Return kernel [B, 4], resize [B, 4], noise [B, 4] and JPEG [B, 1] entries, all in 0..1."""
    kernel = torch.stack(
        [
            to_unit(stage.blur_size, *_SIZE),
            to_unit(stage.blur_sigma[:, 0], *of("blur_sigma")),
            to_unit(stage.blur_sigma[:, 1], *of("blur_sigma")),
            to_unit(stage.blur_rotation, *_ROTATION),
        ],
        dim=1,
    )
    scale = to_unit(stage.scale, *of("scale"))[:, None]
    scaled = torch.cat([scale, one_hot(stage.resize_mode, len(RESIZE_MODES))], dim=1)
    gaussian, poisson = stage.noise_kind == 1, stage.noise_kind == 2
    level = torch.where(
        poisson,
        to_unit(stage.noise_level, *of("poisson_scale")),
        to_unit(stage.noise_level, *of("gaussian_sigma")),
    )
    noise = torch.stack(
        [level, stage.noise_grey.double(), gaussian.double(), poisson.double()], dim=1
    )
    quality = to_unit(stage.jpeg_quality, *of("jpeg_quality"))[:, None]
    return tuple(part.clamp(0, 1) for part in (kernel, scaled, noise, quality))


def _ends(stages: list[Stage]) -> Callable[[str], tuple[torch.Tensor, torch.Tensor]]:
    def of(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        ends = torch.tensor([getattr(stage, name) for stage in stages], dtype=torch.float64)
        ends = ends.reshape(-1, 2)
        return ends[:, 0], ends[:, 1]

    return of


def encode(params: DegradationParams) -> torch.Tensor:
    """Return float32 [B, 33].

    Raises:
        ValueError: a level of one's own, whose ranges are not known here.
    """
    levels = [_level(name) for name in params.level]
    kernel1, scale1, noise1, jpeg1 = _encode_stage(
        params.stage1, _ends([level.stage1 for level in levels])
    )
    second, two = params.stage2, params.has_stage2
    kernel2, scale2, noise2, jpeg2 = _encode_stage(
        second, _ends([level.stage2 or level.stage1 for level in levels])
    )
    blurred = second.blur_sigma[:, 0] > 0
    unused = torch.tensor(_UNUSED_KERNEL, dtype=torch.float64)
    kernel2 = torch.where(blurred[:, None], kernel2, unused)
    filtered = params.sinc_size > 0
    size = torch.where(filtered, to_unit(params.sinc_size, *_SIZE), _NO_SINC)
    omega = torch.where(filtered, to_unit(params.sinc_omega, *_OMEGA), _NO_SINC)
    sinc = torch.stack([size, torch.where(blurred, 1.0, omega)], dim=1)
    order = torch.stack([params.jpeg_last, ~params.jpeg_last], dim=1).double()
    kernel2, sinc, scale2, noise2, jpeg2, order = (
        part * two[:, None] for part in (kernel2, sinc, scale2, noise2, jpeg2, order)
    )
    final = one_hot(params.final_mode, len(RESIZE_MODES))
    parts = [kernel1, kernel2, sinc, scale1, scale2, noise1, noise2, jpeg1, jpeg2, order, final]
    return torch.cat(parts, dim=1).float().reshape(-1, NUM_LABELS)


_ABSENT = DecodedStage(
    kernel_size=7,
    sigma_x=0.0,
    sigma_y=0.0,
    rotation=0.0,
    scale=1.0,
    mode=None,
    noise=None,
    noise_level=0.0,
    noise_grey=False,
    jpeg_quality=None,
)


def _decode_stage(
    stage: Stage,
    kernel: list[float] | None,
    scaled: list[float],
    noise: list[float],
    jpeg: float,
) -> DecodedStage:
    kind = decode_noise_kind(noise[2:])
    ends = stage.poisson_scale if kind == "poisson" else stage.gaussian_sigma
    blurred = kernel is not None
    return DecodedStage(
        kernel_size=odd_size(kernel[0], _SIZE) if blurred else _ABSENT.kernel_size,
        sigma_x=from_unit(kernel[1], stage.blur_sigma) if blurred else 0.0,
        sigma_y=from_unit(kernel[2], stage.blur_sigma) if blurred else 0.0,
        rotation=from_unit(kernel[3], _ROTATION) if blurred else 0.0,
        scale=from_unit(scaled[0], stage.scale),
        mode=decode_mode(scaled[1:]),
        noise=kind,
        noise_level=from_unit(noise[0], ends) if kind else 0.0,
        noise_grey=noise[1] >= 0.5,
        jpeg_quality=round(from_unit(jpeg, stage.jpeg_quality)),
    )


def decode(v: list[float], level: str | None) -> Decoded:
    """Read one row in the ranges of a level.

    A second blur counts as present from 0.95 on in entry 9, which is also where an omega close to
    pi lies.

    Raises:
        ValueError: no level, or one that the scheme does not know.
    """
    ranges = _level(level)
    final = RESIZE_MODES[argmax(v[30:33])]
    if LEVELS[level].stage1.blur_prob == 0:
        return Decoded(_ABSENT, _ABSENT, None, math.pi, None, final)
    stage1 = _decode_stage(ranges.stage1, v[0:4], v[10:14], v[18:22], v[26])
    if ranges.stage2 is None:
        return Decoded(stage1, _ABSENT, None, math.pi, None, final)
    blurred = v[9] >= _SECOND_BLUR
    filtered = v[8] > _NO_SINC / 2
    omega = None if blurred else from_unit(v[9], _OMEGA)
    return Decoded(
        stage1=stage1,
        stage2=_decode_stage(ranges.stage2, v[4:8] if blurred else None, v[14:18], v[22:26], v[27]),
        sinc_size=odd_size(v[8], _SIZE) if filtered else None,
        sinc_omega=omega if filtered else math.pi,
        order=decode_order(v[28:30]),
        final_mode=final,
    )
