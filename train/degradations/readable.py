"""What a degradation vector says, in the words and units of people who look at pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .labels import decode
from .noise import POISSON_LEVELS
from .vector import LAYOUT, Decoded, DecodedStage, second_stage_belief

_KINDS = {"gaussian": "Gaussian", "poisson": "shot noise"}
_STEPS = {
    "sinc_then_jpeg": "sinc filter, then JPEG",
    "jpeg_then_sinc": "JPEG, then sinc filter",
    None: "order unclear",
}
_UNCLEAR = "kind unclear"
_BEST = 95  # the best quality that training draws; 100 stands for "not compressed"
_SCALE_TOLERANCE = 0.2  # of predictions, about 1


@dataclass(frozen=True)
class Readable:
    """One degradation vector in readable quantities.

    The first six say what both rounds of degradation come to. `str` of this is one line.

    Attributes:
        blur: "sigma about 1.2 px"; None where there is none to speak of (below 0.05 pixels).
        noise: "about 8/255 (Gaussian)"; None where there is none (below 0.25/255).
        jpeg: "about q60"; None where nothing was compressed.
        blur_sigma: standard deviation in pixels of the enlarged picture, that of the ground truth
            in training; 0 is none. Variances of both axes are averaged, those of both rounds added.
            The sinc filter does not count.
        noise_sigma: standard deviation in 8-bit steps; 0 is none. Shot noise as it is at medium
            grey. Variances are added, that of the first round less what the blur of the second
            takes away.
        jpeg_quality: the lower one of both rounds, 1..99, or None.
        details: (what, in words), of all steps that took place, in their order.
        decoded: the numbers of each step.
        level: the level whose ranges were taken (scheme "official"), else None.
    """

    blur: str | None
    noise: str | None
    jpeg: str | None
    blur_sigma: float
    noise_sigma: float
    jpeg_quality: int | None
    details: tuple[tuple[str, str], ...]
    decoded: Decoded
    level: str | None

    def __str__(self) -> str:
        named = (("blur", self.blur), ("noise", self.noise), ("JPEG", self.jpeg))
        return ", ".join(f"{name} {text}" if text else f"no {name}" for name, text in named)

    def as_json(self) -> dict[str, Any]:
        """Return all of it as what `json.dumps` takes."""
        content = asdict(self)
        return {
            "summary": str(self),
            **content,
            "details": [{"what": what, "text": text} for what, text in self.details],
        }


def describe_prediction(
    v: torch.Tensor, scheme: str = "unified", level: str | None = None
) -> list[Readable]:
    """Say in readable quantities what degradation vectors say, true ones or predictions.

    Numbers are rounded to what a prediction can mean: sigma to 0.1 pixels, noise to whole 8-bit
    steps, qualities of the summary to steps of 5. Flags and kinds are decided as in `decode`. But
    P, trained by L1, says the median of an entry, which for a one-hot of things that it cannot tell
    apart is 0 everywhere. So noise of a level without a kind is noise "of unclear kind" (its level
    read as Gaussian; shot noise of that level is nearly as strong), a scale without a mode is a
    resize, and a second round counts from a `second_stage_belief` of 0.5 on.

    Args:
        v: float [B, 33].
        scheme: the scheme that made it.
        level: "official" only: the level in whose ranges all rows are read. None for "severe" where
            a row tells of a second round and "standard" elsewhere, which is a guess: the vector
            does not say.

    Returns:
        One `Readable` per row.

    Raises:
        TypeError, ValueError: as `decode`.
    """
    decode(v, scheme, "severe")  # complains about bad vectors and schemes
    if level is not None:
        decode(v, scheme, level)
    rows = v.detach().double().cpu().clone()
    two = (second_stage_belief(rows, scheme) >= 0.5).tolist()
    levels: list[str | None] = [None] * len(rows)
    if scheme == "official":
        levels = [level or ("severe" if second else "standard") for second in two]
    unclear = [_fill_in_kind(rows, stage).tolist() for stage in (1, 2)]
    final = (rows[:, LAYOUT.index("final_area") :].clamp(0, 1).sum(1) >= 0.5).tolist()
    told = zip(decode(rows, scheme, levels), two, levels, *unclear, final, strict=True)
    return [_Reading(*row).readable() for row in told]


def _fill_in_kind(rows: torch.Tensor, stage: int) -> torch.Tensor:
    """Call noise without a kind Gaussian, in place, and return where that was done, [B]."""
    level, gaussian, poisson = (
        LAYOUT.index(f"noise{stage}_{name}") for name in ("level", "gaussian", "poisson")
    )
    flags = rows[:, [gaussian, poisson]].clamp(0, 1).sum(1)
    unclear = (flags < 0.5) & (rows[:, level] * 30 >= 0.5)
    rows[unclear, gaussian] = 1.0
    return unclear


@dataclass(frozen=True)
class _Reading:
    decoded: Decoded
    two: bool
    level: str | None
    unclear1: bool
    unclear2: bool
    final: bool

    def readable(self) -> Readable:
        first, second = self.decoded.stage1, self.decoded.stage2
        variance = _variance(first) + (_variance(second) / first.scale**2 if self.two else 0.0)
        sigma = math.sqrt(variance)
        stages = (first, second) if self.two else (first,)
        noise = _noise(stages)
        qualities = [stage.jpeg_quality for stage in stages if stage.jpeg_quality is not None]
        quality = min(qualities, default=None)
        kinds = dict.fromkeys(kind for stage in stages if (kind := self._kind(stage)))
        return Readable(
            blur=f"sigma about {sigma:.1f} px" if sigma >= 0.05 else None,
            noise=f"{_steps(noise)} ({' and '.join(kinds)})" if noise >= 0.25 else None,
            jpeg=None if quality is None else f"about q{min(5 * round(quality / 5), _BEST)}",
            blur_sigma=sigma,
            noise_sigma=noise,
            jpeg_quality=quality,
            details=tuple(self._details()),
            decoded=self.decoded,
            level=self.level,
        )

    def _kind(self, stage: DecodedStage) -> str | None:
        if stage.noise is None:
            return None
        unclear = self.unclear1 if stage is self.decoded.stage1 else self.unclear2
        return _UNCLEAR if unclear else _KINDS[stage.noise]

    def _details(self) -> Iterator[tuple[str, str]]:
        decoded = self.decoded
        rounds = [("", decoded.stage1)]
        if self.two:
            rounds = [("first ", decoded.stage1), ("second ", decoded.stage2)]
        for name, stage in rounds:
            for what, text in self._stage_details(stage):
                yield name + what, text
        if self.two:
            if decoded.sinc_size is not None:
                omega, size = decoded.sinc_omega, decoded.sinc_size
                cut = "" if omega is None else f"cut-off {omega / math.pi:.2f} pi, "
                yield "sinc filter", f"{cut}kernel {size}x{size}"
            yield "last steps", _STEPS[decoded.order]
        yield "final resize", decoded.final_mode if self.final else "method unclear"

    def _stage_details(self, stage: DecodedStage) -> Iterator[tuple[str, str]]:
        x, y = f"{stage.sigma_x:.1f}", f"{stage.sigma_y:.1f}"
        if (x, y) != ("0.0", "0.0"):
            turned = ""
            if x != y:
                # A kernel looks the same after half a turn.
                degrees = round(math.degrees(stage.rotation)) % 180
                turned = f", turned by {degrees} degrees" if degrees else ""
            sigma, size = x if x == y else f"{x} x {y}", stage.kernel_size
            yield "blur", f"sigma {sigma} px{turned}, kernel {size}x{size}"
        if stage.mode is not None or abs(stage.scale - 1) > _SCALE_TOLERANCE:
            scale, mode = f"{stage.scale:.2f}", stage.mode or "method unclear"
            way = "shrunk" if stage.scale < 1 else "enlarged"
            done = "size kept" if scale == "1.00" else f"{way} to {scale}"
            yield "resize", f"{done} ({mode})"
        noise = _noise_sigma(stage)
        if noise >= 0.25:
            text = f"{_steps(noise)} ({self._kind(stage)}"
            if stage.noise == "poisson":
                text = f"{_steps(noise)} at medium grey (shot noise, scale {stage.noise_level:.2f}"
            if self._kind(stage) == _UNCLEAR:
                yield "noise", text + ")"
            else:
                yield "noise", text + ("), grey" if stage.noise_grey else "), coloured")
        if stage.jpeg_quality is not None:
            yield "JPEG", f"q{stage.jpeg_quality}"


def _variance(stage: DecodedStage) -> float:
    return (stage.sigma_x**2 + stage.sigma_y**2) / 2


def _noise(stages: tuple[DecodedStage, ...]) -> float:
    total = 0.0
    for stage in stages:
        # White noise under a Gaussian: its variance is divided by 4 pi sigma_x sigma_y.
        spread = 4 * math.pi * stage.sigma_x * stage.sigma_y
        total = total / max(spread, 1.0) + _noise_sigma(stage) ** 2
    return math.sqrt(total)


def _noise_sigma(stage: DecodedStage) -> float:
    """Return the standard deviation in 8-bit steps, that of shot noise at medium grey."""
    if stage.noise == "poisson":
        return stage.noise_level * 255 * math.sqrt(0.5 / POISSON_LEVELS)
    return stage.noise_level


def _steps(sigma: float) -> str:
    return f"about {sigma:.0f}/255" if sigma >= 0.5 else "below 1/255"
