"""``dasr upscale``: magnify files and folders of pictures."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from . import EXIT_FAILURE, UsageError
from .plan import Job, plan

if TYPE_CHECKING:
    from dasr_ops.models.upscale import Upscaler

_CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")


def _help(text: str) -> Any:
    return tyro.conf.arg(help=text)


@dataclass(frozen=True)
class Upscale:
    """Magnify pictures with DASR.

    Colour profile, EXIF data, transparency, 16-bit grey and folder structure are kept. A picture
    that cannot be read or written is reported in one line, and the others are processed.

    Exit code: 0 if every picture was processed, 1 if any failed, 2 if the command line is wrong and
    nothing was done, 130 after Ctrl-C.
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Pictures, and folders of pictures."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder for the results; for a single picture also the name of the result."""

    weights: Annotated[
        tuple[Path, ...],
        _help(
            "One .safetensors file, or the .pth files of G and P. Default: the weights of the "
            "package."
        ),
    ] = ()
    tile: Annotated[
        int,
        _help(
            "Side of the square that the network sees at a time, in pixels of the input, overlap "
            "included; 0: the whole picture. Less takes less memory."
        ),
    ] = 256
    overlap: Annotated[
        int,
        _help(
            "Context of a tile on each side, in pixels of the input. From 35 on (for 16 blocks) "
            "tiles change nothing."
        ),
    ] = 16
    device: Annotated[str | None, _help("cpu, cuda, cuda:1, mps. Default: the best there is.")] = (
        None
    )
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"],
        _help("Arithmetic of the network. auto: float16 on CUDA, float32 elsewhere."),
    ] = "auto"
    format: Annotated[
        Literal["auto", "png", "jpg", "webp", "tiff", "bmp", "avif"],
        _help("Format of the results. auto: that of the input, or PNG."),
    ] = "auto"
    suffix: Annotated[
        str, _help("Put behind the name of each result: _x4 makes photo_x4.jpg of photo.jpg.")
    ] = ""
    overwrite: Annotated[
        bool,
        _help(
            "Replace results that exist; otherwise they are left alone, and the picture is "
            "skipped. Inputs are never overwritten."
        ),
    ] = False
    quiet: Annotated[bool, _help("Print errors only.")] = False


def main(argv: Sequence[str]) -> int:
    """Run ``dasr upscale`` with the arguments ``argv`` and return its exit code."""
    options = tyro.cli(Upscale, args=list(argv), prog="dasr upscale")
    weights, inputs = _separate(options.weights, options.inputs)
    if not inputs:
        raise UsageError("no picture and no folder given")
    if options.overlap < 0 or options.tile < 0:
        raise UsageError("--tile and --overlap: expected at least 0")
    if 0 < options.tile <= 2 * options.overlap:
        raise UsageError(
            f"--tile {options.tile}: expected 0 or more than twice the overlap of {options.overlap}"
        )
    format = None if options.format == "auto" else options.format
    jobs, failures = plan(inputs, options.output, suffix=options.suffix, format=format)
    for path, reason in failures:
        print(f"error: {path}: {reason}", file=sys.stderr)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    jobs = jobs[rank::world]
    todo = [job for job in jobs if options.overwrite or not job.target.exists()]
    if len(todo) < len(jobs) and not options.quiet:
        skipped = len(jobs) - len(todo)
        print(f"skipped, since they exist (see --overwrite): {skipped}", file=sys.stderr)
    failed = len(failures)
    if todo:
        failed += _run(todo, _upscaler(options, weights), options)
        if not options.quiet:
            done = len(todo) - failed + len(failures)
            print(f"done: {done}, failed: {failed}", file=sys.stderr)
    return EXIT_FAILURE if failed else 0


def _separate(
    weights: Sequence[Path], inputs: Sequence[Path]
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Hand back the pictures that follow ``--weights``, which takes as many names as there are."""
    count = 0
    while count < min(len(weights), 2) and weights[count].suffix in _CHECKPOINT_SUFFIXES:
        count += 1
    if weights and count == 0:
        raise UsageError(
            f"--weights {weights[0]}: expected a name that ends in one of "
            f"{' '.join(_CHECKPOINT_SUFFIXES)}"
        )
    return tuple(weights[:count]), (*inputs, *weights[count:])


def _upscaler(options: Upscale, weights: Sequence[Path]) -> Upscaler:
    import torch

    from dasr_ops.models.checkpoint import CheckpointError
    from dasr_ops.models.upscale import DEFAULT_WEIGHTS, Upscaler

    if not weights and not DEFAULT_WEIGHTS.is_file():
        raise UsageError(
            "this build comes without weights (models/weights/small.safetensors is missing); "
            "give --weights PATH"
        )
    device = options.device
    if device is None and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        return Upscaler.from_pretrained(
            weights or None,
            tile=options.tile,
            overlap=options.overlap,
            device=device,
            dtype=None if options.dtype == "auto" else getattr(torch, options.dtype),
        )
    except CheckpointError as error:
        raise UsageError(f"--weights: {error}") from None
    except (RuntimeError, AssertionError, ValueError) as error:
        if options.device is None:
            raise
        first_line = str(error).strip().splitlines()[0]
        raise UsageError(f"--device {options.device}: {first_line}") from None


def _run(jobs: Sequence[Job], upscaler: Upscaler, options: Upscale) -> int:
    """Work through ``jobs`` and return how many failed."""
    from tqdm import tqdm

    failed = 0
    with tqdm(unit="tile", disable=True if options.quiet else None, leave=False) as bar:
        for number, job in enumerate(jobs, 1):
            bar.set_description(f"{number}/{len(jobs)} {job.source.name}")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                reason = _process(job, upscaler, options.overwrite, _progress(bar))
            if not options.quiet:
                for text in dict.fromkeys(str(entry.message) for entry in caught):
                    bar.write(f"warning: {job.source}: {text}", file=sys.stderr)
            if reason is not None:
                failed += 1
                bar.write(f"error: {job.source}: {reason}", file=sys.stderr)
    return failed


def _process(
    job: Job, upscaler: Upscaler, overwrite: bool, progress: Callable[[int, int], None]
) -> str | None:
    """Magnify one picture; return why it failed, or None."""
    import torch

    from dasr_ops.models import pictures
    from dasr_ops.models.upscale import NonFiniteError

    try:
        image = pictures.read_picture(job.source)
        size = (image.size[0] * upscaler.scale, image.size[1] * upscaler.scale)
        pictures.check_output_size(size, pictures.FORMATS[job.target.suffix.lower()])
        job.target.parent.mkdir(parents=True, exist_ok=True)
        result = upscaler(image, progress=progress)
        pictures.write_picture(result, job.target, replace=overwrite)
    except (pictures.PictureError, NonFiniteError) as error:
        return str(error)
    except (torch.OutOfMemoryError, MemoryError):
        return "not enough memory; a smaller --tile needs less"
    except OSError as error:
        return f"{job.target} cannot be written: {error.strerror or error}"
    except Exception as error:  # one strange picture must not end the work on a folder of them
        text = " ".join(str(error).split())[:300]
        if "alloc" in text and "memory" in text:
            return "not enough memory; a smaller --tile needs less"
        return f"{type(error).__name__}: {text}"
    return None


def _progress(bar: Any) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        if done == 1:
            bar.reset(total=total)
        bar.update(1)

    return report
