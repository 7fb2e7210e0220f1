"""Drawing parameters: every quantity of every sample on its own, from explicit generators.

All arithmetic is NumPy's: on a handful of numbers its calls cost a fraction of PyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch

from ._checks import check_generator
from .levels import LEVELS, MIN_KERNEL_SIZE, NO_JPEG, TRAINING_MIX, Level, Sinc, Stage
from .params import NO_RESIZE, DegradationParams, StageParams

_SEED_RANGE = 2**62
_MANTISSA = 2**53 - 1  # torch.rand's float64 is the low 53 bits of a 64-bit number


class _Draw:
    """Uniform draws for a batch whose samples have different tables."""

    def __init__(self, generator: torch.Generator, batch: int) -> None:
        self.generator, self.batch = generator, batch

    def unit(self) -> np.ndarray:
        return torch.rand(self.batch, generator=self.generator, dtype=torch.float64).numpy()

    def seed(self) -> np.ndarray:
        return torch.randint(_SEED_RANGE, (self.batch,), generator=self.generator).numpy()

    def between(self, ends: np.ndarray) -> np.ndarray:
        """Draw float64 [B] from the ranges [B, 2]."""
        return ends[:, 0] + self.unit() * (ends[:, 1] - ends[:, 0])

    def whole(self, ends: np.ndarray, step: int = 1) -> np.ndarray:
        """Draw int64 [B] from low, low + step, ..., high, ends included."""
        count = (ends[:, 1] - ends[:, 0]) / step + 1
        return (ends[:, 0] + step * np.floor(self.unit() * count)).astype(np.int64)

    def choice(self, weights: np.ndarray) -> np.ndarray:
        """Draw int64 [B] from the rows of weights [B, N]; a weight of 0 is never chosen."""
        edges = (weights / weights.sum(axis=1, keepdims=True)).cumsum(axis=1)
        index = (self.unit()[:, None] >= edges).sum(axis=1)
        last = weights.shape[1] - 1 - (weights[:, ::-1] > 0).argmax(axis=1)
        return np.minimum(index, last)  # the last edge may round to just below 1

    def chance(self, probability: np.ndarray) -> np.ndarray:
        return self.unit() < probability


class _SeededDraw(_Draw):
    """The draws of many generators, one for each sample: as `_Draw` with a batch of one each."""

    def __init__(self, seeds: Sequence[int], count: int) -> None:
        self.batch = len(seeds)
        raw = torch.empty(self.batch, count, dtype=torch.int64)
        generator = torch.Generator()
        for row, seed in zip(raw, seeds, strict=True):
            # 63 random bits each, of which torch.rand and torch.randint use the low ones.
            row.random_(generator=generator.manual_seed(seed))
        self.raw = raw.numpy().T
        self.units = (self.raw & _MANTISSA) * 2.0**-53
        self.next = 0

    def unit(self) -> np.ndarray:
        self.next += 1
        return self.units[self.next - 1]

    def seed(self) -> np.ndarray:
        self.next += 1
        return self.raw[self.next - 1] % _SEED_RANGE


class _Columns(dict[str, np.ndarray]):
    """The fields of some tables side by side: float64 [N] or [N, n], made when first asked for."""

    def __init__(self, rows: tuple[Stage | Sinc | Level, ...]) -> None:
        self.rows = rows

    def __missing__(self, name: str) -> np.ndarray:
        self[name] = np.array([getattr(row, name) for row in self.rows], dtype=np.float64)
        return self[name]


_columns = lru_cache(maxsize=64)(_Columns)


def _table(rows: Sequence[Stage | Sinc | Level], index: np.ndarray) -> Callable[[str], np.ndarray]:
    """Return a lookup: field name -> float64 [B] or [B, n], row i from rows[index[i]]."""
    columns = _columns(tuple(rows))
    return lambda name: columns[name][index]


def _sample_stage(
    draw: _Draw, stages: list[Stage | None], index: np.ndarray
) -> tuple[StageParams, np.ndarray]:
    present = np.array([stage is not None for stage in stages])[index]
    # Rows of absent stages have no effect but the scale and mode, which are masked below.
    of = _table([stage or LEVELS["clean"].stage1 for stage in stages], index)

    blur = draw.chance(of("blur_prob")) & present
    size = draw.whole(of("blur_size"), step=2)
    sigma_x, sigma_y = draw.between(of("blur_sigma")), draw.between(of("blur_sigma"))
    isotropic = draw.chance(of("isotropic_prob"))
    rotation = (2 * draw.unit() - 1) * math.pi
    sigma = np.stack([sigma_x, np.where(isotropic, sigma_x, sigma_y)], axis=1)

    direction = draw.choice(of("resize_weights"))  # up, down, keep
    scale_ends = of("scale")
    unit = draw.unit()
    up = 1 + unit * (scale_ends[:, 1] - 1)
    down = scale_ends[:, 0] + unit * (1 - scale_ends[:, 0])
    scale = np.where(direction == 0, up, np.where(direction == 1, down, 1.0))
    mode = draw.choice(of("resize_modes"))

    noise = draw.chance(of("noise_prob")) & present
    gaussian = draw.chance(of("gaussian_prob"))
    sigma_noise, poisson = draw.between(of("gaussian_sigma")), draw.between(of("poisson_scale"))
    grey = draw.chance(of("grey_prob"))
    seed = draw.seed()

    jpeg = draw.chance(of("jpeg_prob")) & present
    quality = draw.whole(of("jpeg_quality"))

    params = StageParams(
        blur_size=_whole(np.where(blur, size, MIN_KERNEL_SIZE)),
        blur_sigma=_real(np.where(blur[:, None], sigma, 0.0)),
        blur_rotation=_real(np.where(blur & ~isotropic, rotation, 0.0)),
        scale=_real(np.where(present, scale, 1.0)),
        resize_mode=_whole(np.where(present, mode, NO_RESIZE)),
        noise_kind=_whole(np.where(noise, np.where(gaussian, 1, 2), 0)),
        noise_level=_real(np.where(noise, np.where(gaussian, sigma_noise, poisson), 0.0)),
        noise_grey=torch.from_numpy(noise & grey),
        noise_seed=_whole(seed),
        jpeg_quality=_whole(np.where(jpeg, quality, NO_JPEG)),
    )
    return params, direction


def _whole(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64))


def _real(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


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
    return _sample(_Draw(generator, batch_size), level)


def sample_seeds(
    seeds: Sequence[int], level: str | Level | Mapping[str, float] = TRAINING_MIX
) -> DegradationParams:
    """Draw one sample for each seed, a function of that seed and the level alone.

    Sample i is what `sample(torch.Generator().manual_seed(seeds[i]), 1, level)` gives, at a
    fraction of the cost.

    Args:
        seeds: whole numbers in 0 .. 2^63 - 1.
        level: as for `sample`.

    Returns:
        The parameters, on the CPU, in the order of the seeds.

    Raises:
        ValueError: a seed out of range, an unknown level, bad weights.
    """
    seeds = [int(seed) for seed in seeds]
    if seeds and not 0 <= min(seeds) <= max(seeds) < 2**63:
        raise ValueError(f"seeds: expected numbers in 0 .. 2^63 - 1, got {seeds}")
    return _sample(_SeededDraw(seeds, _DRAWS), level)


_DRAWS = 40  # of `_sample`, for one sample


def _sample(draw: _Draw, level: str | Level | Mapping[str, float]) -> DegradationParams:
    names, levels, weights = _resolve(level)
    index = draw.choice(np.broadcast_to(np.array(weights), (draw.batch, len(weights))))

    stage1, direction = _sample_stage(draw, [entry.stage1 for entry in levels], index)
    # Stage 1 starts from the ground truth, so "keep" leaves nothing to resize; stage 2 always
    # resizes to a multiple of the final size.
    stage1.resize_mode[torch.from_numpy(direction == 2)] = NO_RESIZE
    stage2, _ = _sample_stage(draw, [entry.stage2 for entry in levels], index)
    has_stage2 = np.array([entry.stage2 is not None for entry in levels])[index]

    of = _table([entry.sinc or Sinc(prob=0.0) for entry in levels], index)
    sinc = draw.chance(of("prob"))
    size, omega = draw.whole(of("size"), step=2), draw.between(of("omega"))
    jpeg_last = draw.chance(np.full(draw.batch, 0.5)) & has_stage2
    last = _table(levels, index)
    return DegradationParams(
        level=tuple(names[i] for i in index.tolist()),
        stage1=stage1,
        stage2=stage2,
        has_stage2=torch.from_numpy(has_stage2),
        sinc_size=_whole(np.where(sinc, size, 0)),
        sinc_omega=_real(np.where(sinc, omega, math.pi)),
        jpeg_last=torch.from_numpy(jpeg_last),
        final_mode=_whole(draw.choice(last("final_modes"))),
        final_antialias=torch.from_numpy(last("final_antialias") > 0),
    )
