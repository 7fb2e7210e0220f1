"""``dasr convert``: weights from one kind of file to another."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from . import EXIT_FAILURE, UsageError


@dataclass(frozen=True)
class Convert:
    """Convert weights: a pair of .pth files to one .safetensors file, or back; or blend them.

    The .safetensors file holds both networks and their sizes; the .pth files are those of the
    official code, G and P in any order.
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """One .safetensors file, a name of weights in the package, or the .pth files of G and P."""

    output: Annotated[tuple[Path, ...], tyro.conf.arg(aliases=["-o"])]
    """One .safetensors file, or the .pth files of G and of P, in this order."""

    half: bool = False
    """Store float16: half the size; read back as float32."""

    labels: Literal["auto", "unified", "official"] = "auto"
    """What the degradation vector of the network means. auto: what the input says; .pth files that
    do not say it are taken for the released ones (official), .safetensors for ours (unified)."""

    metadata: tuple[str, ...] = ()
    """More entries for a .safetensors file, such as title=mine licence=CC0-1.0."""

    blend: Annotated[str | None, tyro.conf.arg(metavar="WEIGHTS=SHARE")] = None
    """Write the network between the input and another one, such as small=0.3, of which it gets
    that share: one that was trained from the other, such as small-gan, or the result is noise."""

    overwrite: bool = False
    """Replace files that exist."""


def main(argv: Sequence[str]) -> int:
    """Run ``dasr convert`` with the arguments ``argv`` and return its exit code."""
    options = tyro.cli(Convert, args=list(argv), prog="dasr convert")
    if len(options.inputs) not in (1, 2):
        raise UsageError(f"expected one or two input files, got {len(options.inputs)}")
    other, share = _blend(options.blend)
    from dasr_ops.models.checkpoint import CheckpointError, convert
    from dasr_ops.models.shipped import find_weights

    try:
        convert(
            [find_weights(path) for path in options.inputs],
            options.output,
            half=options.half,
            labels=None if options.labels == "auto" else options.labels,
            metadata=_metadata(options),
            blend_with=None if other is None else find_weights(other),
            share=share,
            overwrite=options.overwrite,
        )
    except FileExistsError as error:
        raise UsageError(f"{error}; see --overwrite") from None
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILURE
    except ValueError as error:
        raise UsageError(str(error)) from None
    return 0


def _blend(text: str | None) -> tuple[str | None, float]:
    """Return weights and their share, of ``--blend``."""
    if text is None:
        return None, 0.0
    path, _, share = text.rpartition("=")
    try:
        number = float(share)
    except ValueError:
        number = -1.0
    if not path or not 0 <= number <= 1:
        raise UsageError(f"--blend {text}: expected WEIGHTS=SHARE, SHARE from 0 to 1")
    return path, number


def _metadata(options: Convert) -> dict[str, str]:
    entries = {}
    for entry in options.metadata:
        name, separator, value = entry.partition("=")
        if not (name and separator) or name in ("dasr_ops", "format", "labels"):
            raise UsageError(f"--metadata: expected NAME=VALUE, got {entry}")
        entries[name] = value
    if entries and options.output[0].suffix != ".safetensors":
        raise UsageError(f"--metadata: {options.output[0]} holds none, a .safetensors file does")
    return entries
