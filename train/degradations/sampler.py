"""Drawing parameters: every quantity of every sample on its own, from one explicit generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from ._checks import check_generator
from .levels import LEVELS, MIN_KERNEL_SIZE, NO_JPEG, TRAINING_MIX, Level, Sinc, Stage
from .params import NO_RESIZE, DegradationParams, StageParams

_SEED_RANGE = 2**62


class _Draw:
    """Uniform draws for a batch whose samples have different tables."""

    def __init__(self, generator: torch.Generator, batch: int) -> None:
        self.generator, self.batch = generator, batch

    def unit(self) -> torch.Tensor:
        return torch.rand(self.batch, generator=self.generator, dtype=torch.float64)

    def between(self, ends: torch.Tensor) -> torch.Tensor:
        """Draw float64 [B] from the ranges [B, 2]."""
        return ends[:, 0] + self.unit() * (ends[:, 1] - ends[:, 0])

    def whole(self, ends: torch.Tensor, step: int = 1) -> torch.Tensor:
        """Draw int64 [B] from low, low + step, ..., high, ends included."""
        count = (ends[:, 1] - ends[:, 0]) / step + 1
        return (ends[:, 0] + step * torch.floor(self.unit() * count)).long()

    def choice(self, weights: torch.Tensor) -> torch.Tensor:
        """Draw int64 [B] from the rows of weights [B, N]; a weight of 0 is never chosen."""
        edges = (weights / weights.sum(dim=1, keepdim=True)).cumsum(dim=1)
        index = (self.unit()[:, None] >= edges).sum(dim=1)
        last = weights.shape[1] - 1 - (weights.flip(1) > 0).int().argmax(dim=1)
        return torch.minimum(index, last)  # the last edge may round to just below 1

    def chance(self, probability: torch.Tensor) -> torch.Tensor:
        return self.unit() < probability


def _table(stages: list[Stage | None], index: torch.Tensor) -> Callable[[str], torch.Tensor]:
    """Return a lookup: field name -> float64 [B] or [B, N], row i from stage index[i]."""
    some = next(stage for stage in stages if stage is not None)
    rows = [stage or some for stage in stages]  # rows of absent stages are masked by the caller

    def column(name: str) -> torch.Tensor:
        return torch.tensor([getattr(r, name) for r in rows], dtype=torch.float64)[index]

    return column


def _sample_stage(
    draw: _Draw, stages: list[Stage | None], index: torch.Tensor
) -> tuple[StageParams, torch.Tensor]:
    present = torch.tensor([stage is not None for stage in stages])[index]
    if all(stage is None for stage in stages):
        stages = [LEVELS["clean"].stage1] * len(stages)  # values without effect
    of = _table(stages, index)

    blur = draw.chance(of("blur_prob")) & present
    size = draw.whole(of("blur_size"), step=2)
    sigma_x, sigma_y = draw.between(of("blur_sigma")), draw.between(of("blur_sigma"))
    isotropic = draw.chance(of("isotropic_prob"))
    rotation = (2 * draw.unit() - 1) * math.pi
    sigma = torch.stack([sigma_x, torch.where(isotropic, sigma_x, sigma_y)], dim=1)

    direction = draw.choice(of("resize_weights"))  # up, down, keep
    scale_ends = of("scale")
    unit = draw.unit()
    up = 1 + unit * (scale_ends[:, 1] - 1)
    down = scale_ends[:, 0] + unit * (1 - scale_ends[:, 0])
    scale = torch.where(direction == 0, up, torch.where(direction == 1, down, 1.0))
    mode = draw.choice(of("resize_modes"))

    noise = draw.chance(of("noise_prob")) & present
    gaussian = draw.chance(of("gaussian_prob"))
    sigma_noise, poisson = draw.between(of("gaussian_sigma")), draw.between(of("poisson_scale"))
    grey = draw.chance(of("grey_prob"))
    seed = torch.randint(_SEED_RANGE, (draw.batch,), generator=draw.generator)

    jpeg = draw.chance(of("jpeg_prob")) & present
    quality = draw.whole(of("jpeg_quality"))

    zero = torch.zeros((), dtype=torch.float64)
    params = StageParams(
        blur_size=torch.where(blur, size, MIN_KERNEL_SIZE),
        blur_sigma=torch.where(blur[:, None], sigma, zero).float(),
        blur_rotation=torch.where(blur & ~isotropic, rotation, zero).float(),
        scale=torch.where(present, scale, 1.0).float(),
        resize_mode=torch.where(present, mode, NO_RESIZE),
        noise_kind=torch.where(noise, torch.where(gaussian, 1, 2), 0),
        noise_level=torch.where(noise, torch.where(gaussian, sigma_noise, poisson), zero).float(),
        noise_grey=noise & grey,
        noise_seed=seed,
        jpeg_quality=torch.where(jpeg, quality, NO_JPEG),
    )
    return params, direction


def _resolve(
    level: str | Level | Mapping[str, float],
) -> tuple[list[str], list[Level], list[float]]:
    if isinstance(level, Level):
        return ["custom"], [level], [1.0]
    weights = {level: 1.0} if isinstance(level, str) else dict(level)
    unknown = [name for name in weights if name not in LEVELS]
    if unknown:
        raise ValueError(f"level: expected names among {sorted(LEVELS)}, got {unknown}")
    values = [float(w) for w in weights.values()]
    if not values or min(values) < 0 or not 0 < sum(values) < math.inf:
        raise ValueError(f"level: expected weights >= 0, not all 0, got {dict(weights)}")
    return list(weights), [LEVELS[name] for name in weights], values


def sample(
    generator: torch.Generator,
    batch_size: int,
    level: str | Level | Mapping[str, float] = TRAINING_MIX,
) -> DegradationParams:
    """Draw the degradation of a batch, independently per sample.

    Args:
        generator: a CPU generator, so that a seed gives the same parameters on every device. It
            advances by an amount that depends on `batch_size` alone.
        batch_size: 0 or more.
        level: a name in `LEVELS`, a `Level` of your own, or relative weights of names; the level
            is drawn per sample too.

    Returns:
        The parameters, on the CPU.

    Raises:
        TypeError: not a generator, or a batch size that is not a whole number.
        ValueError: a generator on another device, a negative size, an unknown level, bad weights.
    """
    check_generator(generator)
    if generator.device.type != "cpu":
        raise ValueError(f"generator: expected one on the CPU, got {generator.device}")
    if not isinstance(batch_size, int):
        raise TypeError(f"batch_size: expected an int, got {type(batch_size).__name__}")
    if batch_size < 0:
        raise ValueError(f"batch_size: expected 0 or more, got {batch_size}")
    names, levels, weights = _resolve(level)
    draw = _Draw(generator, batch_size)
    index = draw.choice(torch.tensor(weights, dtype=torch.float64).expand(batch_size, -1))

    stage1, direction = _sample_stage(draw, [entry.stage1 for entry in levels], index)
    # Stage 1 starts from the ground truth, so "keep" leaves nothing to resize; stage 2 always
    # resizes to a multiple of the final size.
    stage1.resize_mode = torch.where(direction == 2, NO_RESIZE, stage1.resize_mode)
    stage2, _ = _sample_stage(draw, [entry.stage2 for entry in levels], index)
    has_stage2 = torch.tensor([entry.stage2 is not None for entry in levels])[index]

    def of(values: list[object]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)[index]

    sincs = [entry.sinc or Sinc(prob=0.0) for entry in levels]
    sinc = draw.chance(of([s.prob for s in sincs]))
    sinc_size = draw.whole(of([s.size for s in sincs]), step=2)
    omega = draw.between(of([s.omega for s in sincs]))
    half = torch.full((batch_size,), 0.5, dtype=torch.float64)
    jpeg_last = draw.chance(half) & has_stage2
    return DegradationParams(
        level=tuple(names[i] for i in index.tolist()),
        stage1=stage1,
        stage2=stage2,
        has_stage2=has_stage2,
        sinc_size=torch.where(sinc, sinc_size, 0),
        sinc_omega=torch.where(sinc, omega, math.pi).float(),
        jpeg_last=jpeg_last,
        final_mode=draw.choice(of([entry.final_modes for entry in levels])),
        final_antialias=torch.tensor([entry.final_antialias for entry in levels])[index],
    )
