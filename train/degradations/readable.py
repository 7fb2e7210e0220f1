"""What a degradation vector says, in the words and units of people who look at pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .labels import decode
from .noise import POISSON_LEVELS
from .vector import Decoded, DecodedStage, decode_order

_KINDS = {"gaussian": "Gaussian", "poisson": "shot noise"}
_STEPS = {"sinc_then_jpeg": "sinc filter, then JPEG", "jpeg_then_sinc": "JPEG, then sinc filter"}
_BEST_QUALITY = 95  # the best that is told from an uncompressed picture


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
    steps, qualities of the summary to steps of 5. Flags and kinds are decided as in `decode`; steps
    of a second round count only where the vector says that there is one.

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
    if scheme != "official":
        return [_readable(decoded, None) for decoded in decode(v, scheme)]
    if level is not None:
        return [_readable(decoded, level) for decoded in decode(v, scheme, level)]
    decode(v, scheme, "severe")  # complains about bad vectors
    levels = ["severe" if decode_order(row[28:30]) else "standard" for row in v.tolist()]
    rows = decode(v, scheme, levels)
    return [_readable(decoded, name) for decoded, name in zip(rows, levels, strict=True)]


def _readable(decoded: Decoded, level: str | None) -> Readable:
    first, second = decoded.stage1, decoded.stage2
    two = decoded.order is not None
    sigma = math.sqrt(_variance(first) + (_variance(second) / first.scale**2 if two else 0.0))
    stages = (first, second) if two else (first,)
    noise = _noise(stages)
    qualities = [stage.jpeg_quality for stage in stages if stage.jpeg_quality is not None]
    quality = min(qualities, default=None)
    kinds = {_KINDS[stage.noise] for stage in stages if stage.noise}
    return Readable(
        blur=f"sigma about {sigma:.1f} px" if sigma >= 0.05 else None,
        noise=f"{_steps(noise)} ({' and '.join(sorted(kinds))})" if noise >= 0.25 else None,
        jpeg=None if quality is None else f"about q{min(5 * round(quality / 5), _BEST_QUALITY)}",
        blur_sigma=sigma,
        noise_sigma=noise,
        jpeg_quality=quality,
        details=tuple(_details(decoded, two)),
        decoded=decoded,
        level=level,
    )


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


def _details(decoded: Decoded, two: bool) -> Iterator[tuple[str, str]]:
    rounds = [("", decoded.stage1)]
    if two:
        rounds = [("first ", decoded.stage1), ("second ", decoded.stage2)]
    for name, stage in rounds:
        for what, text in _stage_details(stage):
            yield name + what, text
    if two:
        if decoded.sinc_size is not None:
            omega = decoded.sinc_omega
            cut = "" if omega is None else f"cut-off {omega / math.pi:.2f} pi, "
            yield "sinc filter", f"{cut}kernel {decoded.sinc_size}x{decoded.sinc_size}"
        yield "last steps", _STEPS[decoded.order or ""]
    yield "final resize", decoded.final_mode


def _stage_details(stage: DecodedStage) -> Iterator[tuple[str, str]]:
    x, y = f"{stage.sigma_x:.1f}", f"{stage.sigma_y:.1f}"
    if (x, y) != ("0.0", "0.0"):
        turned = ""
        if x != y:
            # A kernel looks the same after half a turn.
            degrees = round(math.degrees(stage.rotation)) % 180
            turned = f", turned by {degrees} degrees" if degrees else ""
        sigma = x if x == y else f"{x} x {y}"
        yield "blur", f"sigma {sigma} px{turned}, kernel {stage.kernel_size}x{stage.kernel_size}"
    if stage.mode is not None:
        scale = f"{stage.scale:.2f}"
        done = "the size kept" if scale == "1.00" else f"to {scale}"
        verb = "" if scale == "1.00" else ("shrunk " if stage.scale < 1 else "enlarged ")
        yield "resize", f"{verb}{done} ({stage.mode})"
    if stage.noise is not None and _noise_sigma(stage) >= 0.25:
        grey = "grey" if stage.noise_grey else "coloured"
        text = f"{_KINDS[stage.noise]}, {_steps(_noise_sigma(stage))}"
        if stage.noise == "poisson":
            text += f" at medium grey (scale {stage.noise_level:.2f})"
        yield "noise", f"{text}, {grey}"
    if stage.jpeg_quality is not None:
        yield "JPEG", f"q{stage.jpeg_quality}"
