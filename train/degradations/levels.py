"""The degradation space as tables of ranges: one `Level` per strength.

The numbers of "weak", "standard" and "severe" are those of DASR (Liang, Zeng, Zhang, ECCV 2022). A
new strength is a new entry in `LEVELS`; sampling, synthesis and labels read nothing but the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .blur import MAX_KERNEL_SIZE
from .resize import RESIZE_MODES

MIN_KERNEL_SIZE = 7
NO_JPEG = 100  # quality that stands for "not compressed"; ranges end below it

_UNIFORM_MODES = (1.0, 1.0, 1.0)


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a probability in 0..1, got {value}")


def _check_range(name: str, value: tuple[float, float], low: float, high: float) -> None:
    if len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise ValueError(f"{name}: expected (low, high) within {low}..{high}, got {value}")


def _check_weights(name: str, value: tuple[float, ...], count: int) -> None:
    if len(value) != count or min(value) < 0 or sum(value) <= 0:
        raise ValueError(f"{name}: expected {count} weights >= 0, not all 0, got {value}")


def _check_sizes(name: str, value: tuple[int, int]) -> None:
    _check_range(name, value, MIN_KERNEL_SIZE, MAX_KERNEL_SIZE)
    if value[0] % 2 == 0 or value[1] % 2 == 0:
        raise ValueError(f"{name}: expected odd numbers, got {value}")


@dataclass(frozen=True)
class Stage:
    """Ranges of one round of blur, resize, noise and JPEG. Both ends of a range are included.

    Attributes:
        blur_sigma: standard deviation in pixels.
        scale: factor of the resize; (low, 1) shrinks, (1, high) enlarges. Stage 1 is relative to
            the ground truth, stage 2 to the final low-resolution size.
        gaussian_sigma: standard deviation in 8-bit steps.
        poisson_scale: factor on shot noise.
        jpeg_quality: whole numbers, 1..99.
        resize_weights: weights of up, down, keep.
        blur_prob, noise_prob, jpeg_prob: probability that the step happens at all.
        isotropic_prob: probability of an isotropic kernel, given a blur.
        blur_size: odd kernel sizes.
        resize_modes: weights of area, bilinear, bicubic.
        gaussian_prob: probability of Gaussian noise, given noise; otherwise Poisson.
        grey_prob: probability that the noise is grey.
    """

    blur_sigma: tuple[float, float]
    scale: tuple[float, float]
    gaussian_sigma: tuple[float, float]
    poisson_scale: tuple[float, float]
    jpeg_quality: tuple[int, int]
    resize_weights: tuple[float, float, float]
    blur_prob: float = 1.0
    isotropic_prob: float = 0.65
    blur_size: tuple[int, int] = (MIN_KERNEL_SIZE, MAX_KERNEL_SIZE)
    resize_modes: tuple[float, float, float] = _UNIFORM_MODES
    noise_prob: float = 1.0
    gaussian_prob: float = 0.5
    grey_prob: float = 0.4
    jpeg_prob: float = 1.0

    def __post_init__(self) -> None:
        for name in ("blur_prob", "isotropic_prob", "noise_prob", "gaussian_prob", "grey_prob"):
            _check_probability(name, getattr(self, name))
        _check_probability("jpeg_prob", self.jpeg_prob)
        _check_range("blur_sigma", self.blur_sigma, 1e-3, 3.0)
        _check_range("scale", self.scale, 0.15, 1.5)
        if not self.scale[0] <= 1 <= self.scale[1]:
            raise ValueError(f"scale: expected a range that contains 1, got {self.scale}")
        _check_range("gaussian_sigma", self.gaussian_sigma, 0.0, 30.0)
        _check_range("poisson_scale", self.poisson_scale, 0.0, 3.0)
        _check_range("jpeg_quality", self.jpeg_quality, 1, NO_JPEG - 1)
        _check_weights("resize_weights", self.resize_weights, 3)
        _check_weights("resize_modes", self.resize_modes, len(RESIZE_MODES))
        _check_sizes("blur_size", self.blur_size)


@dataclass(frozen=True)
class Sinc:
    """Ranges of the final circular low-pass filter.

    Attributes:
        prob: probability that it happens.
        size: odd kernel sizes.
        omega: cut-off in radians per pixel.
    """

    prob: float = 0.8
    size: tuple[int, int] = (MIN_KERNEL_SIZE, MAX_KERNEL_SIZE)
    omega: tuple[float, float] = (math.pi / 3, math.pi)

    def __post_init__(self) -> None:
        _check_probability("prob", self.prob)
        _check_sizes("size", self.size)
        _check_range("omega", self.omega, 1e-3, math.pi)


@dataclass(frozen=True)
class Level:
    """One strength of degradation.

    Attributes:
        stage1: the first (often the only) round.
        stage2: an optional second round. It then also draws whether its JPEG comes last
            (resize to the final size, sinc, JPEG) or not (JPEG, resize to the final size, sinc).
        sinc: the final filter; needs `stage2`.
        final_modes: weights of area, bilinear, bicubic for the resize to the final size.
        final_antialias: antialias that resize.
    """

    stage1: Stage
    stage2: Stage | None = None
    sinc: Sinc | None = None
    final_modes: tuple[float, float, float] = _UNIFORM_MODES
    final_antialias: bool = False

    def __post_init__(self) -> None:
        _check_weights("final_modes", self.final_modes, len(RESIZE_MODES))
        if self.sinc is not None and self.stage2 is None:
            raise ValueError("sinc: expected a level with two stages, got stage2=None")


_NOTHING = Stage(
    blur_sigma=(0.2, 0.2),
    scale=(1.0, 1.0),
    gaussian_sigma=(0.0, 0.0),
    poisson_scale=(0.0, 0.0),
    jpeg_quality=(95, 95),
    resize_weights=(0.0, 0.0, 1.0),
    blur_prob=0.0,
    noise_prob=0.0,
    jpeg_prob=0.0,
)

LEVELS: dict[str, Level] = {
    # For test sets: nothing but the final resize, as DIV2K's "bicubic" track.
    "clean": Level(_NOTHING, final_modes=(0.0, 0.0, 1.0), final_antialias=True),
    "clean_area": Level(_NOTHING, final_modes=(1.0, 0.0, 0.0)),
    "weak": Level(
        Stage(
            blur_sigma=(0.2, 0.8),
            scale=(0.85, 1.2),
            gaussian_sigma=(1.0, 10.0),
            poisson_scale=(0.05, 0.5),
            jpeg_quality=(90, 95),
            resize_weights=(0.1, 0.2, 0.7),
        )
    ),
    "standard": Level(
        Stage(
            blur_sigma=(0.2, 1.5),
            scale=(0.5, 1.2),
            gaussian_sigma=(1.0, 20.0),
            poisson_scale=(0.05, 1.5),
            jpeg_quality=(50, 95),
            resize_weights=(0.3, 0.4, 0.3),
        )
    ),
    "severe": Level(
        Stage(
            blur_sigma=(0.2, 3.0),
            scale=(0.15, 1.5),
            gaussian_sigma=(1.0, 30.0),
            poisson_scale=(0.05, 3.0),
            jpeg_quality=(30, 95),
            resize_weights=(0.2, 0.7, 0.1),
        ),
        Stage(
            blur_prob=0.8,
            blur_sigma=(0.2, 1.5),
            scale=(0.3, 1.2),
            gaussian_sigma=(1.0, 25.0),
            poisson_scale=(0.05, 2.5),
            jpeg_quality=(30, 95),
            resize_weights=(0.3, 0.4, 0.3),
        ),
        Sinc(prob=0.8),
    ),
}

# Relative weights of the paper.
TRAINING_MIX: dict[str, float] = {"weak": 0.3, "standard": 0.3, "severe": 0.4}
