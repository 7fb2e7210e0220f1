"""Whether an exported network computes what it should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ._common import ExportError, Model, channels, frozen
from ._interface import Interface

SIZES = ((24, 32), (17, 23), (1, 5))
"""Heights and widths at which a file is compared with PyTorch."""

_TOLERANCE = 1e-4
_HALF_TOLERANCE = 2e-2


@dataclass(frozen=True)
class Agreement:
    """How far a file's results are from those of PyTorch in float64."""

    difference: float
    """Largest absolute difference of any output at any size."""
    largest: float
    """Largest absolute value of the expected outputs."""
    sizes: tuple[tuple[int, int], ...]
    """Heights and widths of the inputs."""


def compare(
    owner: str,
    run: Callable[[dict[str, Tensor]], list[Tensor]],
    model: Model,
    interface: Interface,
) -> Agreement:
    """Run a file at three sizes and compare its results with PyTorch's in float64.

    Args:
        owner: the function that the user has called.
        run: maps the inputs by name to the outputs, on the CPU.
        model: the networks in the file.
        interface: its inputs and outputs.

    Raises:
        ExportError: results differ by more than rounding.
    """
    network, exact = frozen(model), frozen(model).double()
    generator = torch.Generator().manual_seed(0)
    difference = largest = noise = 0.0
    for number, (height, width) in enumerate(SIZES):
        batch = 1 + number if interface.free_batch(model) else 1
        lr = torch.rand(batch, channels(model), height, width, generator=generator)
        arguments = {"lr": lr}
        v = None
        if interface.degradation_input:
            v = torch.rand(batch, model.net_p.config["num_params"], generator=generator)
            arguments["degradation"] = v
        found = run(arguments)
        with torch.no_grad():
            rounded = interface.run(network, lr, v)
            expected = interface.run(exact, lr.double(), None if v is None else v.double())
        at = f"{owner}: at {height}x{width} the file"
        for own, reference, result in zip(rounded, expected, found, strict=True):
            if result.shape != reference.shape:
                raise ExportError(
                    f"{at} returns {list(result.shape)} instead of {list(reference.shape)}"
                )
            if not torch.isfinite(result).all():
                why = "; float16 is too narrow for these weights" if interface.half else ""
                raise ExportError(f"{at} returns infinities or NaN{why}")
            difference = max(difference, _distance(result, reference))
            noise = max(noise, _distance(own, reference))
            largest = max(largest, float(reference.abs().max()))
    # Networks whose terms cancel round more than others, in PyTorch too.
    if interface.half:
        allowed = max(_HALF_TOLERANCE * max(largest, 1), 4 * 2**13 * noise)
    else:
        allowed = max(_TOLERANCE * max(largest, 1), 16 * noise)
    if not difference <= allowed:
        raise ExportError(
            f"{owner}: the file's results differ from PyTorch's by {difference:.2g}, expected at "
            f"most {allowed:.2g}"
        )
    return Agreement(difference, largest, SIZES)


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())
