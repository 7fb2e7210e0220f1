"""Control of the restoration by hand: what P predicts, shifted along three axes.

G undoes what v says happened to the picture. Told of more noise it removes more, told of none it
keeps the grain; so with blur and with JPEG. `Controls` moves the entries of v that speak of an
axis, and no others, from their predicted value (0) towards the strongest value that the levels of
training draw (+1) or towards "there is none" (-1), on a straight line. The mixing weights of the
experts are an affine function of v, so they too move on straight lines.

    axis      entries (see `dasr_ops.train.degradations.LAYOUT`)   at +1           at -1
    denoise   noise level 1, 2                                    30, 25 of 255    0
              is-gaussian                                         1                0
              is-poisson                                          0                0
              grey                                                as predicted     0
    deblur    sigma x and y of kernel 1, 2                        3, 1.5 pixels    0
              kernel size                                         21               7
              rotation                                            0                0
              sinc filter                                         as predicted     none
    dejpeg    quality 1, 2                                        30               100 (none)

The numbers are those of scheme "unified". What "official" cannot say is replaced by the least that
it can: noise of the kind predicted at the lower end of its range, a first blur of the least sigma,
a quality at the upper end. At +1 its entries stand at the ends of ranges, which differ by level.

* **A second round** of degradation is not invented: towards +1 its entries move in proportion to
  the belief of v that there is one (0..1, `second_stage_belief` in
  `dasr_ops.train.degradations.vector`). In scheme "official", where an absent round is all zeros,
  so they do towards -1.
* **Predictions beyond an end** (v may lie outside of 0..1, or above what training draws) stay where
  they are when the control points that way: more of a control never means less.
* Everything is continuous and monotone in the control, and 0 changes no bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .degradation_files import DegradationError, load_degradation

if TYPE_CHECKING:
    from dasr_ops.train.degradations.readable import Readable

__all__ = [
    "AXES",
    "Controls",
    "DegradationError",
    "compose",
    "describe_prediction",
    "load_degradation",
]

AXES = ("denoise", "deblur", "dejpeg")
"""Names of the controls."""

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Controls:
    """Shifts the degradation vector; a function v -> v, see the text of this module.

    ``Upscaler(...)(image, degradation=Controls(denoise=0.5))`` removes more noise than P asks for.

    Args:
        denoise: -1 (the picture has no noise: keep the grain) .. 0 (as predicted) .. 1 (it is as
            noisy as training makes them).
        deblur: the same for blur: -1 does not sharpen, 1 sharpens most.
        dejpeg: the same for traces of JPEG.
        scheme: what the entries of v mean to the network: "unified", or "official" for the released
            weights. `DASR.label_scheme` has it.

    Raises:
        TypeError: a control is not a real number, or ``scheme`` not a string.
        ValueError: a control is outside of -1..1 or not finite, or the scheme is unknown.
    """

    denoise: float = 0.0
    deblur: float = 0.0
    dejpeg: float = 0.0
    scheme: str = "unified"

    def __post_init__(self) -> None:
        for name in AXES:
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool):
                raise TypeError(f"Controls: {name}: expected a number in -1..1, got {value!r}")
            if not -1 <= value <= 1:
                raise ValueError(f"Controls: {name}: expected a number in -1..1, got {value}")
            object.__setattr__(self, name, float(value))
        if not isinstance(self.scheme, str):
            raise TypeError(f"Controls: scheme: expected a str, got {self.scheme!r}")
        if self.scheme not in _SCHEMES:
            raise ValueError(
                f"Controls: scheme: expected one of {sorted(_SCHEMES)}, got {self.scheme!r}"
            )

    @property
    def neutral(self) -> bool:
        """Whether all controls are 0, so that nothing is changed."""
        return self.denoise == self.deblur == self.dejpeg == 0

    def __call__(self, v: Tensor) -> Tensor:
        """Shift degradation vectors.

        Args:
            v: floating-point [B, 33], any device, predicted or true.

        Returns:
            A new tensor [B, 33] of the type and device of ``v``, differentiable with respect to it.

        Raises:
            TypeError: ``v`` is not a floating-point tensor.
            ValueError: its shape is another.
        """
        from dasr_ops.train.degradations.vector import NUM_LABELS, second_stage_belief

        if not isinstance(v, Tensor):
            raise TypeError(f"Controls: v: expected a Tensor, got {type(v).__name__}")
        if not v.is_floating_point():
            raise TypeError(f"Controls: v: expected a floating-point tensor, got {v.dtype}")
        if v.dim() != 2 or v.shape[1] != NUM_LABELS:
            raise ValueError(f"Controls: v: expected [B, {NUM_LABELS}], got {list(v.shape)}")
        result = v.clone()
        exact = v.double() if v.dtype == torch.float64 else v.float()
        two = second_stage_belief(exact, self.scheme).unsqueeze(1)
        for axis in AXES:
            amount = getattr(self, axis)
            if amount == 0:
                continue
            side = _side(self.scheme, axis, amount > 0)
            entries = torch.tensor(side.entries, device=v.device)
            ends, bounds = exact.new_tensor(side.ends), exact.new_tensor(side.bounds)
            x = exact[:, entries]
            ends = torch.where(bounds > 0, x.maximum(ends), ends.expand_as(x))
            ends = torch.where(bounds < 0, x.minimum(ends), ends)
            second = torch.tensor(side.second, device=v.device)
            share = abs(amount) * torch.where(second, two, torch.ones_like(two))
            result = result.index_copy(1, entries, torch.lerp(x, ends, share).to(v.dtype))
        return result


def compose(degradation: Tensor | Edit | None, controls: Controls | None) -> Tensor | Edit | None:
    """Put controls behind what chooses the degradation otherwise.

    Args:
        degradation: what `Upscaler` takes: v [B, 33], a function v -> v, or None (as predicted).
        controls: shifts its result; None or neutral ones change nothing.

    Returns:
        What to give to `Upscaler` as ``degradation``.
    """
    if controls is None or controls.neutral:
        return degradation
    if degradation is None:
        return controls
    if isinstance(degradation, Tensor):
        return controls(degradation)
    edit = degradation
    return lambda v: controls(edit(v))


def describe_prediction(
    v: Tensor, scheme: str = "unified", level: str | None = None
) -> list[Readable]:
    """Say in readable quantities what degradation vectors say, one `Readable` for each row.

    See `dasr_ops.train.degradations.readable.describe_prediction`, which this is.
    """
    from dasr_ops.train.degradations import readable

    return readable.describe_prediction(v, scheme, level)


class _End(NamedTuple):
    """Where an entry goes: to ``value``; with a bound it stays where it is beyond that already."""

    value: float
    bound: int = 0


def _low(value: float) -> _End:
    return _End(value, -1)


def _high(value: float) -> _End:
    return _End(value, 1)


# Entry -> its ends at -1 and at +1; None: not moved. Of stage 2 the levels draw sigma up to 1.5 of
# 3 pixels and noise up to 25 of 30 steps.
_Table = dict[str, tuple[_End | None, _End | None]]
_UNIFIED: dict[str, _Table] = {
    "denoise": {
        "noise1_level": (_low(0), _high(1)),
        "noise1_grey": (_low(0), None),
        "noise1_gaussian": (_low(0), _high(1)),
        "noise1_poisson": (_low(0), _low(0)),
        "noise2_level": (_low(0), _high(25 / 30)),
        "noise2_grey": (_low(0), None),
        "noise2_gaussian": (_low(0), _high(1)),
        "noise2_poisson": (_low(0), _low(0)),
    },
    "deblur": {
        "kernel1_size": (_low(0), _high(1)),
        "kernel1_sigma_x": (_low(0), _high(1)),
        "kernel1_sigma_y": (_low(0), _high(1)),
        "kernel1_rotation": (_End(0.5), _End(0.5)),
        "kernel2_size": (_low(0), _high(1)),
        "kernel2_sigma_x": (_low(0), _high(0.5)),
        "kernel2_sigma_y": (_low(0), _high(0.5)),
        "kernel2_rotation": (_End(0.5), _End(0.5)),
        "sinc_size": (_low(0), None),
        "sinc_omega": (_high(1), None),
    },
    "dejpeg": {
        "jpeg1_quality": (_high(1), _low(0)),
        "jpeg2_quality": (_high(1), _low(0)),
    },
}
# Ranges depend on the level, so their ends are all that can be said. Noise has always a kind. A
# second blur that is not there has a kernel of its own (`official.py`), and entry 9 is its flag, or
# else the cut-off of the sinc filter, -0.5 without one.
_OFFICIAL: dict[str, _Table] = {
    "denoise": {
        "noise1_level": (_low(0), _high(1)),
        "noise1_gaussian": (None, _high(1)),
        "noise1_poisson": (None, _low(0)),
        "noise2_level": (_low(0), _high(1)),
        "noise2_gaussian": (None, _high(1)),
        "noise2_poisson": (None, _low(0)),
    },
    "deblur": {
        "kernel1_size": (_low(0), _high(1)),
        "kernel1_sigma_x": (_low(0), _high(1)),
        "kernel1_sigma_y": (_low(0), _high(1)),
        "kernel1_rotation": (_End(0.5), _End(0.5)),
        "kernel2_size": (_End(4 / 7), _high(1)),
        "kernel2_sigma_x": (_End(0.5), _high(1)),
        "kernel2_sigma_y": (_End(0.5), _high(1)),
        "kernel2_rotation": (_End(0.5), _End(0.5)),
        "sinc_size": (_low(-0.5), None),
        "sinc_omega": (_low(-0.5), _high(1)),
    },
    "dejpeg": _UNIFIED["dejpeg"],
}
_SCHEMES = {"unified": _UNIFIED, "official": _OFFICIAL}
_FIRST_STAGE = ("kernel1", "noise1", "jpeg1")


class _Side(NamedTuple):
    """The entries of one axis that move, one way; ``second``: in proportion to the second round."""

    entries: list[int]
    ends: list[float]
    bounds: list[int]
    second: list[bool]


@lru_cache(maxsize=16)
def _side(scheme: str, axis: str, more: bool) -> _Side:
    from dasr_ops.train.degradations.vector import LAYOUT

    table = _SCHEMES[scheme][axis]
    rows = [(name, end) for name, ends in table.items() if (end := ends[more]) is not None]
    weighed = more or scheme == "official"
    return _Side(
        [LAYOUT.index(name) for name, _ in rows],
        [end.value for _, end in rows],
        [end.bound for _, end in rows],
        [weighed and not name.startswith(_FIRST_STAGE) for name, _ in rows],
    )
