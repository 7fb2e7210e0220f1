"""``--weights`` of the commands: which files they are, and an upscaler made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import UsageError

if TYPE_CHECKING:
    from dasr_ops.models.upscale import Upscaler

CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")


def separate(
    weights: Sequence[Path], inputs: Sequence[Path]
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Hand back the pictures that follow ``--weights``, which takes as many names as there are.

    Returns:
        The one or two files of weights, or none, and the inputs.

    Raises:
        UsageError: the first name is not one of weights.
    """
    count = 0
    while count < min(len(weights), 2) and weights[count].suffix in CHECKPOINT_SUFFIXES:
        count += 1
    if weights and count == 0:
        raise UsageError(
            f"--weights {weights[0]}: expected a name that ends in one of "
            f"{' '.join(CHECKPOINT_SUFFIXES)}"
        )
    return tuple(weights[:count]), (*inputs, *weights[count:])


def load_upscaler(weights: Sequence[Path], device: str | None) -> Upscaler:
    """Load the networks, the package's own where no weights are given.

    Raises:
        UsageError: the weights or the device cannot be used.
    """
    from dasr_ops.models.checkpoint import CheckpointError
    from dasr_ops.models.upscale import Upscaler

    try:
        return Upscaler.from_pretrained(weights or None, device=device)
    except CheckpointError as error:
        raise UsageError(f"--weights: {error}") from None
    except (RuntimeError, AssertionError, ValueError) as error:
        if device is None:
            raise
        first_line = str(error).strip().splitlines()[0]
        raise UsageError(f"--device {device}: {first_line}") from None
