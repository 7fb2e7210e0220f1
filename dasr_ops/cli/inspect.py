"""``dasr inspect``: what the network takes pictures for, in numbers, files and a figure."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from . import EXIT_FAILURE, UsageError
from ._about import about
from ._output import print_names
from ._weights import WEIGHTS_HELP, load_upscalers, separate
from .plan import READ_SUFFIXES, find_files

if TYPE_CHECKING:
    import numpy as np

    from dasr_ops.models.pictures import Picture
    from dasr_ops.models.upscale import Upscaler
    from dasr_ops.train.degradations import Readable

PLOT_SUFFIXES = (".png", ".svg", ".pdf")
MOST_IN_PLOT = 12
"""Pictures in a figure."""
THUMBNAIL = 320
"""Longest side of the pictures in a figure, in pixels."""


@dataclass(frozen=True)
class Inspect:
    """Show the degradation that the network sees in pictures.

    For each picture: blur, noise and JPEG in one number each, the steps that the degradation vector
    tells of, and the mixing weights of the experts. These are guesses of a small network. Lengths
    are in pixels of the enlarged picture, noise in 8-bit steps (8/255 is a standard deviation of
    8).

    A picture that cannot be read is reported in one line, and the others are processed.

    Exit code: 0 if every picture was processed, 1 if any failed, 2 if the command line is wrong and
    nothing was done, 130 after Ctrl-C.
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Pictures, and folders of pictures."""

    weights: Annotated[
        tuple[Path, ...],
        about(WEIGHTS_HELP),
    ] = ()
    json: Annotated[
        Path | None,
        about(
            "Write everything to this JSON file; - prints it instead of the text. That of one "
            "picture can be edited and given to dasr upscale --degradation."
        ),
    ] = None
    plot: Annotated[
        Path | None,
        about(f"Draw a figure ({', '.join(PLOT_SUFFIXES)}); needs matplotlib."),
    ] = None
    scheme: Annotated[
        Literal["auto", "unified", "official"],
        about("Meaning of the degradation vector. auto: what the weights say of themselves."),
    ] = "auto"
    level: Annotated[
        Literal["weak", "standard", "severe"] | None,
        about(
            "Level whose ranges the numbers are read in; scheme official only. Default: severe "
            "where a second round of degradation is seen, else standard."
        ),
    ] = None
    device: Annotated[str | None, about("cpu, cuda, cuda:1, mps. Default: the best there is.")] = (
        None
    )
    overwrite: Annotated[bool, about("Replace the files of --json and --plot.")] = False
    quiet: Annotated[bool, about("Print errors only (and what --json - asks for).")] = False


@dataclass(frozen=True)
class Found:
    """What is known about one picture; ``thumbnail`` is uint8 [h, w] or [h, w, 3], for a figure."""

    path: Path
    size: tuple[int, int]
    v: list[float]
    mixing: list[float]
    readable: Readable
    thumbnail: np.ndarray | None

    def as_json(self) -> dict[str, Any]:
        """Return all but the thumbnail as what `json.dumps` takes."""
        from dasr_ops.train.degradations import LAYOUT

        return {
            "path": str(self.path),
            "width": self.size[0],
            "height": self.size[1],
            "v": dict(zip(LAYOUT, self.v, strict=True)),
            "mixing_weights": self.mixing,
            "readable": self.readable.as_json(),
        }


class PictureFailure(Exception):
    """A picture that cannot be inspected; the message is one line."""


def main(argv: Sequence[str]) -> int:
    """Run ``dasr inspect`` with the arguments ``argv`` and return its exit code."""
    options = tyro.cli(Inspect, args=list(argv), prog="dasr inspect")
    weights, inputs = separate(options.weights, options.inputs)
    if not inputs:
        raise UsageError("no picture and no folder given")
    files, failures = find_files(inputs, READ_SUFFIXES)
    pictures = list(dict.fromkeys(path for path, _ in files))
    _check_targets(options, pictures)
    for path, reason in failures:
        print(f"error: {path}: {reason}", file=sys.stderr)
    if not pictures:
        return EXIT_FAILURE
    upscaler = load_upscalers(weights, [options.device])[0]
    scheme = _scheme(options, upscaler)
    found: list[Found] = []
    failed = len(failures)
    show = not options.quiet and options.json != Path("-")
    for path in pictures:
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                entry = _inspect(path, upscaler, scheme, options)
        except PictureFailure as error:
            failed += 1
            print(f"error: {path}: {error}", file=sys.stderr)
            continue
        if not options.quiet:
            for text in dict.fromkeys(str(warning.message) for warning in caught):
                print(f"warning: {path}: {text}", file=sys.stderr)
        found.append(entry)
        if show:
            print_names("\n".join(_lines(entry)) + "\n")
    if found and not _write(options, found, scheme, weights):
        return EXIT_FAILURE
    return EXIT_FAILURE if failed else 0


def _check_targets(options: Inspect, pictures: Sequence[Path]) -> None:
    """Complain about files that cannot be written before any work is done."""
    if options.plot is not None:
        if options.plot.suffix.lower() not in PLOT_SUFFIXES:
            raise UsageError(
                f"--plot {options.plot}: expected a name that ends in one of "
                f"{' '.join(PLOT_SUFFIXES)}"
            )
        if len(pictures) > MOST_IN_PLOT:
            raise UsageError(
                f"--plot: a figure holds {MOST_IN_PLOT} pictures at most, got {len(pictures)}; "
                "name fewer"
            )
        from . import _inspect_plot

        try:
            _inspect_plot.require()
        except RuntimeError as error:
            raise UsageError(f"--plot: {error}") from None
    for name, target in (("--json", options.json), ("--plot", options.plot)):
        if target is None or (name == "--json" and target == Path("-")):
            continue
        if target.is_dir():
            raise UsageError(f"{name} {target}: expected a file, but it is a folder")
        if not target.parent.is_dir():
            raise UsageError(f"{name} {target}: there is no folder {target.parent}")
        if not target.exists():
            continue
        if any(path.exists() and target.samefile(path) for path in pictures):
            raise UsageError(f"{name} {target}: it is one of the pictures")
        if not options.overwrite:
            raise UsageError(f"{name} {target}: exists; see --overwrite")
    if options.json is not None and options.json == options.plot:
        raise UsageError(f"--json and --plot: expected two files, got {options.json} for both")


def _scheme(options: Inspect, upscaler: Upscaler) -> str:
    from dasr_ops.train.degradations import NUM_LABELS, SCHEMES

    length = upscaler.model.net_p.config["num_params"]
    if length != NUM_LABELS:
        raise UsageError(
            f"--weights: a network that predicts {length} numbers instead of the {NUM_LABELS} of "
            "DASR: nobody knows what they mean"
        )
    scheme = upscaler.model.label_scheme if options.scheme == "auto" else options.scheme
    if scheme not in SCHEMES:
        raise UsageError(
            f"--weights: its degradation vector is of an unknown scheme {scheme!r}; give --scheme "
            f"{' or '.join(sorted(SCHEMES))}"
        )
    if options.level is not None and scheme != "official":
        raise UsageError(f"--level {options.level}: has no use with scheme {scheme}")
    return scheme


def _inspect(path: Path, upscaler: Upscaler, scheme: str, options: Inspect) -> Found:
    import torch

    from dasr_ops.models import describe_prediction
    from dasr_ops.models._messages import one_line
    from dasr_ops.models.tiling import is_out_of_memory

    try:
        picture = _read(path)
        prediction = upscaler.predict_picture(picture)
        v, mixing = prediction.v.float().cpu(), prediction.weights.float().cpu()
    except PictureFailure:
        raise
    except Exception as error:  # one strange picture must not end the work on a folder of them
        if is_out_of_memory(error):
            raise PictureFailure("not enough memory") from None
        raise PictureFailure(f"{type(error).__name__}: {one_line(error, 300)}") from None
    if not bool(torch.isfinite(v).all() and torch.isfinite(mixing).all()):
        raise PictureFailure("the network predicts infinities or NaN: its weights are broken")
    return Found(
        path=path,
        size=picture.size,
        v=v[0].tolist(),
        mixing=mixing[0].tolist(),
        readable=describe_prediction(v, scheme, options.level)[0],
        thumbnail=_thumbnail(picture.color) if options.plot is not None else None,
    )


def _read(path: Path) -> Picture:
    from dasr_ops.models import pictures

    try:
        return pictures.read_picture(path)
    except pictures.PictureError as error:
        raise PictureFailure(str(error)) from None


def _thumbnail(color: np.ndarray) -> np.ndarray:
    import numpy as np
    from PIL import Image

    image = Image.fromarray(color if color.dtype == np.uint8 else (color >> 8).astype(np.uint8))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(image)


def _lines(found: Found) -> Iterator[str]:
    readable = found.readable
    yield f"{found.path} ({found.size[0]}x{found.size[1]})"
    for name, text in (("blur", readable.blur), ("noise", readable.noise), ("JPEG", readable.jpeg)):
        yield f"  {name:<8} {text or 'none'}"
    if readable.level is not None:
        yield f"  read in the ranges of level {readable.level}"
    width = max(len(what) for what, _ in readable.details)
    for number, (what, text) in enumerate(readable.details):
        yield f"  {'steps' if number == 0 else '':<8} {what:<{width}}  {text}"
    yield f"  {'experts':<8} {' '.join(f'{weight:+.2f}' for weight in found.mixing)}"


def _write(options: Inspect, found: list[Found], scheme: str, weights: Sequence[Path]) -> bool:
    """Write the files that were asked for; returns whether that worked."""
    from dasr_ops.models.files import atomic_path

    done = True
    if options.json is not None:
        content = {
            "format": 1,
            "network": [str(path) for path in weights] or None,
            "scheme": scheme,
            "pictures": [entry.as_json() for entry in found],
        }
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        if options.json == Path("-"):
            print_names(text.rstrip())
        else:
            try:
                with atomic_path(options.json, replace=options.overwrite) as temporary:
                    temporary.write_text(text, encoding="utf-8")
            except OSError as error:
                done = False
                print(f"error: {options.json}: {error.strerror or error}", file=sys.stderr)
    if options.plot is not None:
        from . import _inspect_plot

        try:
            with atomic_path(options.plot, replace=options.overwrite) as temporary:
                _inspect_plot.draw(found, scheme, temporary, options.plot.suffix.lower()[1:])
        except OSError as error:
            done = False
            print(f"error: {options.plot}: {error.strerror or error}", file=sys.stderr)
    return done
