"""``dasr upscale``: magnify pictures, folders of them, animations and videos."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from . import EXIT_FAILURE, UsageError
from ._about import about
from ._ranks import Ranks, ranks
from ._weights import WEIGHTS_HELP, load_upscalers, separate
from .plan import Job, Kind, exists, plan

if TYPE_CHECKING:
    from torch import Tensor

    from dasr_ops.models.upscale import Edit, Upscaler
    from dasr_ops.models.video import VideoOptions

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class VideoFlags:
    """How videos are encoded."""

    codec: Annotated[
        str,
        about("Encoder of videos by FFmpeg's name: libx264, libx265, libsvtav1, ffv1 (lossless)."),
    ] = "auto"
    crf: Annotated[
        float | None, about("Quality of videos on the encoder's scale, less is better.")
    ] = None
    preset: Annotated[str | None, about("Effort of the encoder, such as slow for libx264.")] = None
    pixel_format: Annotated[
        str, about("Such as yuv420p10le. auto: bit depth and chroma of the source.")
    ] = "auto"
    max_frames: Annotated[
        int | None, about("Stop after so many frames of a video, for a trial.")
    ] = None


@dataclass(frozen=True)
class Upscale:
    """Magnify pictures and videos with DASR.

    Colour profile, EXIF data, transparency, 16 bits per channel and folder structure are kept, of
    videos the sound, subtitles and timing. What cannot be read or written is reported in one line,
    and the rest is processed. The same command goes on where it was interrupted: of videos as it
    is, in a folder if --skip-existing is given.

    Exit code: 0 if everything was processed, 1 if anything failed, 2 if the command line is wrong
    and nothing was done, 130 after Ctrl-C.
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Pictures, videos, folders, and patterns such as 'shots/**/*.jpg'."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder for the results; for a single input file also the name of the result."""

    scale: Annotated[
        float | None,
        about("Magnification of the results, such as 2 or 1.5. Default: that of the network."),
    ] = None
    denoise: Annotated[
        float, about("-1 to 1: treat the picture as less or more noisy than it seems to be.")
    ] = 0.0
    deblur: Annotated[float, about("-1 to 1: treat it as less or more blurred.")] = 0.0
    dejpeg: Annotated[float, about("-1 to 1: treat it as less or more compressed.")] = 0.0
    degradation: Annotated[
        Path | None,
        about(
            "JSON file with the degradation to assume instead of the predicted one, as written by "
            "dasr inspect --json and dasr degrade."
        ),
    ] = None
    weights: Annotated[
        tuple[Path, ...],
        about(WEIGHTS_HELP),
    ] = ()
    tile: Annotated[
        int | Literal["auto"],
        about(
            "Side of the square that the network sees at a time, in pixels of the input, overlap "
            "included; 0: the whole picture; auto: by the free memory."
        ),
    ] = "auto"
    overlap: Annotated[
        int,
        about(
            "Context of a tile on each side, in pixels of the input. From 13 on (for small; 35 for "
            "16 blocks) tiles change nothing."
        ),
    ] = 16
    device: Annotated[
        str | None,
        about(
            "cpu, cuda, cuda:1, mps; several with commas share the pictures. Default: the best "
            "there is."
        ),
    ] = None
    dtype: Annotated[
        Literal["auto", "fp32", "fp16", "bf16"],
        about(
            "Arithmetic of the network. auto: fp16 on CUDA, but fp32 for 16-bit pictures; fp32 "
            "elsewhere."
        ),
    ] = "auto"
    format: Annotated[
        Literal["auto", "png", "jpg", "webp", "tiff", "bmp", "avif"],
        about("Format of pictures. auto: that of the input, or PNG."),
    ] = "auto"
    quality: Annotated[
        int | None, about("1 to 100, of JPEG, WebP and AVIF. Default: 95, of AVIF 90.")
    ] = None
    suffix: Annotated[
        str, about("Put behind the name of each result: _x4 makes photo_x4.jpg of photo.jpg.")
    ] = ""
    overwrite: Annotated[
        bool, about("Replace results that exist. Inputs are never overwritten.")
    ] = False
    skip_existing: Annotated[
        bool, about("Leave results that exist alone, and skip their inputs.")
    ] = False
    dry_run: Annotated[bool, about("Say what would be done, and do nothing.")] = False
    quiet: Annotated[bool, about("Print errors only.")] = False
    video: tyro.conf.OmitArgPrefixes[VideoFlags] = VideoFlags()


def main(argv: Sequence[str]) -> int:
    """Run ``dasr upscale`` with the arguments ``argv`` and return its exit code."""
    options = tyro.cli(Upscale, args=list(argv), prog="dasr upscale")
    weights, inputs = separate(options.weights, options.inputs)
    if not inputs:
        raise UsageError("no picture, video or folder given")
    _check(options)
    format = None if options.format == "auto" else options.format
    results: list[Path] = []
    jobs, failures = plan(
        inputs,
        options.output,
        suffix=options.suffix,
        format=format,
        results=results if options.skip_existing else None,
    )
    with ranks() as here:
        if here.rank == 0:
            for path, reason in failures:
                print(f"error: {path}: {reason}", file=sys.stderr)
            if results and not options.quiet:
                more = f" and {len(results) - 1} more" if len(results) > 1 else ""
                print(f"left out, as results of others: {results[0]}{more}", file=sys.stderr)
        jobs = _todo(jobs, options, here)
        here.wait()  # until all have seen what exists
        failed = here.sum(_run(jobs, options, weights) if jobs else 0)
    return EXIT_FAILURE if failed or failures else 0


def _check(options: Upscale) -> None:
    if options.overlap < 0 or (options.tile != "auto" and options.tile < 0):
        raise UsageError("--tile and --overlap: expected at least 0")
    if options.tile != "auto" and 0 < options.tile <= 2 * options.overlap:
        raise UsageError(
            f"--tile {options.tile}: expected 0 or more than twice the overlap of {options.overlap}"
        )
    for name in ("denoise", "deblur", "dejpeg"):
        value = getattr(options, name)
        if not -1 <= value <= 1:
            raise UsageError(f"--{name} {value:g}: expected a number from -1 to 1")
    if options.quality is not None and not 1 <= options.quality <= 100:
        raise UsageError(f"--quality {options.quality}: expected a number from 1 to 100")
    if options.overwrite and options.skip_existing:
        raise UsageError("--overwrite and --skip-existing contradict each other")


def _todo(jobs: Sequence[Job], options: Upscale, here: Ranks) -> list[Job]:
    """Return this process's share of what is to be done."""
    existing = [job for job in jobs if exists(job.target)]
    if existing and not options.overwrite and not options.skip_existing:
        count = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise UsageError(
            f"{existing[0].target}{count} exists already: --overwrite replaces what exists, "
            "--skip-existing leaves it alone"
        )
    if not options.skip_existing:
        return list(jobs[here.rank :: here.world])
    if existing and not options.quiet and here.rank == 0:
        print(f"skipped, since they exist: {len(existing)}", file=sys.stderr)
    skipped = set(existing)
    # Shared before the others are left out: other processes make results meanwhile.
    return [job for job in jobs[here.rank :: here.world] if job not in skipped]


def _run(jobs: Sequence[Job], options: Upscale, weights: Sequence[Path]) -> int:
    """Do the jobs and return how many failed."""
    import torch

    from .dry_run import dry_run
    from .work import Settings, work

    upscalers = load_upscalers(
        weights,
        _devices(options),
        scale=options.scale,
        tile=options.tile,
        overlap=options.overlap,
        dtype=None if options.dtype == "auto" else getattr(torch, _DTYPES[options.dtype]),
    )
    settings = Settings(
        degradation=_degradation(options, upscalers[0]),
        video=_video_options(options) if any(job.kind is Kind.VIDEO for job in jobs) else None,
        quality=options.quality,
        overwrite=options.overwrite,
        skip_existing=options.skip_existing,
        quiet=options.quiet,
    )
    if options.dry_run:
        return dry_run(jobs, upscalers[0])
    return work(jobs, upscalers, settings)


def _devices(options: Upscale) -> list[str | None]:
    import torch

    if options.device is not None:
        return list(dict.fromkeys(name.strip() for name in options.device.split(",")))
    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        return [f"cuda:{os.environ['LOCAL_RANK']}"]
    return [None]


def _degradation(options: Upscale, upscaler: Upscaler) -> Tensor | Edit | None:
    moved = options.denoise or options.deblur or options.dejpeg
    if not moved and options.degradation is None:
        return None
    from dasr_ops.models.controls import Controls, compose
    from dasr_ops.models.degradation_files import DegradationError, load_degradation
    from dasr_ops.train.degradations.vector import NUM_LABELS

    scheme = upscaler.model.label_scheme
    length = upscaler.model.net_p.config["num_params"]
    if length != NUM_LABELS:
        raise UsageError(
            f"--weights: a network that predicts {length} numbers instead of the {NUM_LABELS} of "
            "DASR: nobody knows what they mean"
        )
    try:
        v = None
        if options.degradation is not None:
            v = load_degradation(options.degradation, scheme)
        if not moved:
            return v
        return compose(v, Controls(options.denoise, options.deblur, options.dejpeg, scheme))
    except DegradationError as error:
        raise UsageError(f"--degradation: {error}") from None
    except ValueError as error:
        raise UsageError(f"--weights: {error}") from None


def _video_options(options: Upscale) -> VideoOptions:
    from dasr_ops.models.video import VideoOptions

    flags = options.video
    try:
        return VideoOptions(
            codec=flags.codec,
            crf=flags.crf,
            preset=flags.preset,
            pixel_format=flags.pixel_format,
            max_frames=flags.max_frames,
        )
    except ValueError as error:
        raise UsageError(str(error).removeprefix("VideoOptions: ")) from None
