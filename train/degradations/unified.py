"""Label scheme "unified": one range per quantity for all levels and both stages.

A step that did not happen is encoded by the values that have no effect. Each range is the union
over weak, standard and severe, extended to that value:

    entries             range             no effect
    0, 4    kernel size      7 .. 21           7 -> 0
    1-2, 5-6  sigma x, y       0 .. 3 pixels     0 (delta kernel) -> 0
    3, 7    rotation         -pi .. pi         0 -> 0.5
    8       sinc size        7 .. 21           7 -> 0
    9       sinc omega       pi/3 .. pi        pi (highest cut-off) -> 1
    10, 14  scale            0.15 .. 1.5       1 -> 0.6296
    11-13, 15-17  mode one-hot                 all 0 (nothing resized)
    18, 22  noise level      0 .. 30 (Gaussian, 8-bit steps), 0 .. 3 (Poisson)   0 -> 0
    19, 23  grey             0 / 1             0
    20-21, 24-25  is-gaussian, is-poisson      0, 0
    26, 27  JPEG quality     30 .. 100         100 (not compressed) -> 1
    28, 29  sinc then JPEG, JPEG then sinc     0, 0 (no second stage)
    30-32   mode of the final resize, one-hot  (always happens)

Without a sinc filter but with a second stage, 28-29 still tell whether the JPEG came last.
"""

from __future__ import annotations

import math

import torch

from .levels import MIN_KERNEL_SIZE, NO_JPEG
from .params import DegradationParams, StageParams
from .resize import RESIZE_MODES
from .vector import (
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
_SIGMA = (0.0, 3.0)
_ROTATION = (-math.pi, math.pi)
_OMEGA = (math.pi / 3, math.pi)
_SCALE = (0.15, 1.5)
_GAUSSIAN = (0.0, 30.0)
_POISSON = (0.0, 3.0)
_QUALITY = (30.0, float(NO_JPEG))


def _encode_stage(stage: StageParams) -> tuple[torch.Tensor, ...]:
    """Return kernel [B, 4], resize [B, 4], noise [B, 4] and JPEG [B, 1] entries."""
    kernel = torch.stack(
        [
            to_unit(stage.blur_size, *_SIZE),
            to_unit(stage.blur_sigma[:, 0], *_SIGMA),
            to_unit(stage.blur_sigma[:, 1], *_SIGMA),
            to_unit(stage.blur_rotation, *_ROTATION),
        ],
        dim=1,
    )
    scale = to_unit(stage.scale, *_SCALE)[:, None]
    scaled = torch.cat([scale, one_hot(stage.resize_mode, len(RESIZE_MODES))], dim=1)
    gaussian, poisson = stage.noise_kind == 1, stage.noise_kind == 2
    level = torch.where(
        poisson, to_unit(stage.noise_level, *_POISSON), to_unit(stage.noise_level, *_GAUSSIAN)
    )
    noise = torch.stack(
        [level, stage.noise_grey.double(), gaussian.double(), poisson.double()], dim=1
    )
    return kernel, scaled, noise, to_unit(stage.jpeg_quality, *_QUALITY)[:, None]


def encode(params: DegradationParams) -> torch.Tensor:
    """Return float32 [B, 33]."""
    kernel1, scale1, noise1, jpeg1 = _encode_stage(params.stage1)
    kernel2, scale2, noise2, jpeg2 = _encode_stage(params.stage2)
    sinc_size = torch.where(params.sinc_size > 0, params.sinc_size, MIN_KERNEL_SIZE)
    sinc = torch.stack([to_unit(sinc_size, *_SIZE), to_unit(params.sinc_omega, *_OMEGA)], dim=1)
    order = torch.stack([params.jpeg_last, params.has_stage2 & ~params.jpeg_last], dim=1).double()
    final = one_hot(params.final_mode, len(RESIZE_MODES))
    parts = [kernel1, kernel2, sinc, scale1, scale2, noise1, noise2, jpeg1, jpeg2, order, final]
    return torch.cat(parts, dim=1).float()


def _decode_stage(
    kernel: list[float], scaled: list[float], noise: list[float], jpeg: float
) -> DecodedStage:
    kind = decode_noise_kind(noise[2:])
    level = from_unit(noise[0], _POISSON if kind == "poisson" else _GAUSSIAN)
    quality = round(from_unit(jpeg, _QUALITY))
    return DecodedStage(
        kernel_size=odd_size(kernel[0], _SIZE),
        sigma_x=from_unit(kernel[1], _SIGMA),
        sigma_y=from_unit(kernel[2], _SIGMA),
        rotation=from_unit(kernel[3], _ROTATION),
        scale=from_unit(scaled[0], _SCALE),
        mode=decode_mode(scaled[1:]),
        noise=kind,
        noise_level=level if kind else 0.0,
        noise_grey=noise[1] >= 0.5,
        jpeg_quality=None if quality >= NO_JPEG else quality,
    )


def decode(v: list[float], level: str | None = None) -> Decoded:
    """Read one row; the level plays no part."""
    omega = from_unit(v[9], _OMEGA)
    absent = v[9] >= 1 - 1e-6
    return Decoded(
        stage1=_decode_stage(v[0:4], v[10:14], v[18:22], v[26]),
        stage2=_decode_stage(v[4:8], v[14:18], v[22:26], v[27]),
        sinc_size=None if absent else odd_size(v[8], _SIZE),
        sinc_omega=omega,
        order=decode_order(v[28:30]),
        final_mode=RESIZE_MODES[argmax(v[30:33])],
    )
