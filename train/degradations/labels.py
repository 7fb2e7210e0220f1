"""The degradation vector v: parameters -> float32 [B, 33] and back to readable quantities.

Layout (DASR): `LAYOUT` names the 33 entries in order. Scheme "unified": one range per quantity
for all levels and both stages, and a step that did not happen is encoded by the values that have
no effect. Each range is the union over weak, standard and severe, extended to that value:

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
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .levels import MIN_KERNEL_SIZE, NO_JPEG
from .params import DegradationParams, StageParams
from .resize import RESIZE_MODES

LAYOUT: tuple[str, ...] = (
    *(f"kernel{s}_{name}" for s in (1, 2) for name in ("size", "sigma_x", "sigma_y", "rotation")),
    *("sinc_size", "sinc_omega"),
    *(f"resize{s}_{name}" for s in (1, 2) for name in ("scale", *RESIZE_MODES)),
    *(f"noise{s}_{name}" for s in (1, 2) for name in ("level", "grey", "gaussian", "poisson")),
    *("jpeg1_quality", "jpeg2_quality", "sinc_then_jpeg", "jpeg_then_sinc"),
    *(f"final_{mode}" for mode in RESIZE_MODES),
)
NUM_LABELS = len(LAYOUT)

_SIZE = (7.0, 21.0)
_SIGMA = (0.0, 3.0)
_ROTATION = (-math.pi, math.pi)
_OMEGA = (math.pi / 3, math.pi)
_SCALE = (0.15, 1.5)
_GAUSSIAN = (0.0, 30.0)
_POISSON = (0.0, 3.0)
_QUALITY = (30.0, float(NO_JPEG))


@dataclass(frozen=True)
class DecodedStage:
    """One round in readable units; `mode` / `noise` / `jpeg_quality` None where it is absent."""

    kernel_size: int
    sigma_x: float
    sigma_y: float
    rotation: float
    scale: float
    mode: str | None
    noise: str | None
    noise_level: float
    noise_grey: bool
    jpeg_quality: int | None


@dataclass(frozen=True)
class Decoded:
    """One label vector in readable units.

    `order` is "sinc_then_jpeg", "jpeg_then_sinc" or None; `sinc_size` is None without the filter
    (omega at its upper end).
    """

    stage1: DecodedStage
    stage2: DecodedStage
    sinc_size: int | None
    sinc_omega: float
    order: str | None
    final_mode: str


def _to_unit(value: torch.Tensor, ends: tuple[float, float]) -> torch.Tensor:
    return (value.double() - ends[0]) / (ends[1] - ends[0])


def _from_unit(value: float, ends: tuple[float, float]) -> float:
    return ends[0] + min(max(value, 0.0), 1.0) * (ends[1] - ends[0])


def _one_hot(index: torch.Tensor, count: int) -> torch.Tensor:
    """float64 [B, count]; a negative index gives zeros."""
    return (index[:, None] == torch.arange(count)).double()


def _encode_stage(stage: StageParams) -> tuple[torch.Tensor, ...]:
    """Return kernel [B, 4], resize [B, 4], noise [B, 4] and JPEG [B, 1] entries."""
    kernel = torch.stack(
        [
            _to_unit(stage.blur_size, _SIZE),
            _to_unit(stage.blur_sigma[:, 0], _SIGMA),
            _to_unit(stage.blur_sigma[:, 1], _SIGMA),
            _to_unit(stage.blur_rotation, _ROTATION),
        ],
        dim=1,
    )
    scale = _to_unit(stage.scale, _SCALE)[:, None]
    scaled = torch.cat([scale, _one_hot(stage.resize_mode, len(RESIZE_MODES))], dim=1)
    gaussian, poisson = stage.noise_kind == 1, stage.noise_kind == 2
    level = torch.where(
        poisson, _to_unit(stage.noise_level, _POISSON), _to_unit(stage.noise_level, _GAUSSIAN)
    )
    noise = torch.stack(
        [level, stage.noise_grey.double(), gaussian.double(), poisson.double()], dim=1
    )
    return kernel, scaled, noise, _to_unit(stage.jpeg_quality, _QUALITY)[:, None]


def _encode_unified(params: DegradationParams) -> torch.Tensor:
    kernel1, scale1, noise1, jpeg1 = _encode_stage(params.stage1)
    kernel2, scale2, noise2, jpeg2 = _encode_stage(params.stage2)
    sinc_size = torch.where(params.sinc_size > 0, params.sinc_size, MIN_KERNEL_SIZE)
    sinc = torch.stack([_to_unit(sinc_size, _SIZE), _to_unit(params.sinc_omega, _OMEGA)], dim=1)
    order = torch.stack([params.jpeg_last, params.has_stage2 & ~params.jpeg_last], dim=1).double()
    final = _one_hot(params.final_mode, len(RESIZE_MODES))
    parts = [kernel1, kernel2, sinc, scale1, scale2, noise1, noise2, jpeg1, jpeg2, order, final]
    return torch.cat(parts, dim=1).float()


def _argmax(values: list[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _decode_size(value: float) -> int:
    return 2 * round((_from_unit(value, _SIZE) - 1) / 2) + 1


def _decode_stage(
    kernel: list[float], scaled: list[float], noise: list[float], jpeg: float
) -> DecodedStage:
    kinds = noise[2:]
    kind = None if max(kinds) < 0.5 else ("gaussian", "poisson")[_argmax(kinds)]
    level = _from_unit(noise[0], _POISSON if kind == "poisson" else _GAUSSIAN)
    quality = round(_from_unit(jpeg, _QUALITY))
    return DecodedStage(
        kernel_size=_decode_size(kernel[0]),
        sigma_x=_from_unit(kernel[1], _SIGMA),
        sigma_y=_from_unit(kernel[2], _SIGMA),
        rotation=_from_unit(kernel[3], _ROTATION),
        scale=_from_unit(scaled[0], _SCALE),
        mode=None if sum(scaled[1:]) < 0.5 else RESIZE_MODES[_argmax(scaled[1:])],
        noise=kind,
        noise_level=level if kind else 0.0,
        noise_grey=noise[1] >= 0.5,
        jpeg_quality=None if quality >= NO_JPEG else quality,
    )


def _decode_unified(v: list[float]) -> Decoded:
    order = v[28:30]
    omega = _from_unit(v[9], _OMEGA)
    absent = v[9] >= 1 - 1e-6
    return Decoded(
        stage1=_decode_stage(v[0:4], v[10:14], v[18:22], v[26]),
        stage2=_decode_stage(v[4:8], v[14:18], v[22:26], v[27]),
        sinc_size=None if absent else _decode_size(v[8]),
        sinc_omega=omega,
        order=None if max(order) < 0.5 else ("sinc_then_jpeg", "jpeg_then_sinc")[_argmax(order)],
        final_mode=RESIZE_MODES[_argmax(v[30:33])],
    )


@dataclass(frozen=True)
class LabelScheme:
    """A pair of functions: parameters -> float32 [B, 33]; one row of 33 numbers -> `Decoded`."""

    encode: Callable[[DegradationParams], torch.Tensor]
    decode: Callable[[list[float]], Decoded]


# The scheme of the released weights (ranges per level, see `DegradationParams.level`) belongs here.
SCHEMES: dict[str, LabelScheme] = {"unified": LabelScheme(_encode_unified, _decode_unified)}


def _scheme(name: str) -> LabelScheme:
    if name not in SCHEMES:
        raise ValueError(f"scheme: expected one of {sorted(SCHEMES)}, got {name!r}")
    return SCHEMES[name]


def labels(params: DegradationParams, scheme: str = "unified") -> torch.Tensor:
    """Encode parameters as the degradation vector of DASR.

    Returns:
        float32 [B, 33] on the CPU, every entry in 0..1 for parameters within the levels' limits.

    Raises:
        ValueError: unknown scheme.
    """
    return _scheme(scheme).encode(params)


def decode(v: torch.Tensor, scheme: str = "unified") -> list[Decoded]:
    """Turn label vectors, true or predicted, into readable quantities.

    Predictions are clamped to the ranges; sizes go to the nearest odd number, quality to the
    nearest whole one, flags and kinds are decided at 0.5 and modes by the largest entry.

    Args:
        v: float [B, 33].
        scheme: the scheme that made it.

    Returns:
        One `Decoded` per row.

    Raises:
        TypeError, ValueError: not a floating tensor [B, 33], entries that are not finite, unknown
            scheme.
    """
    if not isinstance(v, torch.Tensor) or not v.is_floating_point():
        raise TypeError(f"v: expected a floating tensor, got {getattr(v, 'dtype', type(v))}")
    if v.dim() != 2 or v.shape[1] != NUM_LABELS:
        raise ValueError(f"v: expected shape [B, {NUM_LABELS}], got {list(v.shape)}")
    if not bool(torch.isfinite(v).all()):
        raise ValueError("v: expected finite numbers, got inf or nan")
    found = _scheme(scheme)
    return [found.decode(row) for row in v.detach().double().cpu().tolist()]
