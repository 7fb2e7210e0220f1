"""``dasr bench``: how fast the operator and the networks are on this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from . import EXIT_FAILURE, UsageError
from ._about import about
from ._output import print_names


@dataclass(frozen=True)
class Bench:
    """Measure dynamic convolution on this machine, beside what one would otherwise write.

    Prints how many times faster than the official formulation (the experts mixed by torch.mm, then
    conv2d with groups=batch) each way to compute the same is, ours among them, and a static
    convolution as the limit. Everything is compared with float64 first.

    Exit code: 0 if all went well, 1 if a formulation is not exact or ours does not run, 2 if the
    command line is wrong.
    """

    selection: Annotated[
        Literal["quick", "default", "full"],
        about("quick: a minute or two; default: about five; full: every shape and type, long."),
    ] = "quick"
    device: Annotated[str | None, about("cpu, cuda, cuda:1. Default: a GPU if there is one.")] = (
        None
    )
    only: Annotated[str, about("Measure only cases whose name contains this.")] = ""
    seconds: Annotated[
        float | None, about("Time for the rounds of each case. Default: 3 on a CPU, 1 on a GPU.")
    ] = None
    budget: Annotated[
        float | None, about("Seconds after which no further case starts. Default: no limit.")
    ] = None
    threads: Annotated[int | None, about("CPU threads. Default: PyTorch's choice.")] = None
    json: Annotated[Path | None, about("Write the report here; rewritten after each case.")] = None
    markdown: Annotated[Path | None, about("Write the tables here.")] = None
    plot: Annotated[
        Path | None,
        about("Write <PLOT>-ratios.png and <PLOT>-roofline.png; with the suffix .svg, SVG."),
    ] = None


def main(argv: Sequence[str]) -> int:
    """Run ``dasr bench`` with the arguments ``argv`` and return its exit code."""
    options = tyro.cli(Bench, args=list(argv), prog="dasr bench")
    for name in ("seconds", "budget", "threads"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name}: expected more than 0, got {value}")
    import torch

    from dasr_ops.bench import Settings, run, tables

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        report = run(
            options.selection,
            device=options.device,
            settings=Settings(seconds=options.seconds),
            budget=options.budget,
            only=options.only,
            json=options.json,
            markdown=options.markdown,
            plot=options.plot,
            progress=_progress,
        )
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILURE
    print_names(
        f"{tables.machine_line(report)}\nTimes faster than the official formulation:\n\n"
        f"{tables.ratios(report)}\n"
    )
    failures = tables.failures(report)
    for line in failures:
        print(f"failed: {line}", file=sys.stderr)
    return EXIT_FAILURE if failures else 0


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
