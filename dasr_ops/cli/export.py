"""``dasr export``: the networks in files that other programs run."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from . import EXIT_FAILURE, UsageError
from ._about import about
from ._weights import WEIGHTS_HELP, default, find

if TYPE_CHECKING:
    from dasr_ops.models.export import Agreement
    from dasr_ops.models.export._common import Model

_MERGED_SUFFIXES = (".safetensors", ".pth")
_SUFFIXES = {
    "onnx": (".onnx",),
    "pt2": (".pt2",),
    "aoti": (".pt2",),
    "merged": _MERGED_SUFFIXES,
}

_ABOUT_DEGRADATION = ("degradation_input", "degradation_output", "predictor_only")
_EXCLUSIVE = {
    "degradation_input": ("degradation_output", "predictor_only"),
    "predictor_only": ("half", "clip", "degradation_output"),
}
_REASONS = {
    "degradation_input": "for then nothing is predicted",
    "predictor_only": "for the predictor returns the degradation alone, in float32",
}


@dataclass(frozen=True)
class Export:
    """Write the networks as a file that other programs run.

    onnx: for onnxruntime, TensorRT, OpenVINO and others. pt2: a program of torch.export, which
    needs PyTorch but not this package. aoti: the same, compiled by AOTInductor for this kind of
    machine. merged: a plain SRResNet for one degradation, with the keys of BasicSR's MSRResNet.

    Input "lr" [1, 3, height, width], RGB in 0..1, output "sr" [1, 3, height * scale, width *
    scale]; height and width are free. The degradation is predicted inside, from all of "lr". To
    cut pictures into tiles without seams, export twice: with --predictor-only, for the whole
    picture, and with --degradation-input, for the tiles.

    ONNX (where onnxruntime is installed) and .pt2 files are compared with PyTorch at three sizes
    before they are written.

    Exit code: 0 if the file was written, 1 if something failed, 2 if the command line is wrong, and
    nothing was done, 130 after Ctrl-C.
    """

    output: tyro.conf.Positional[tuple[Path, ...]]
    """The file: .onnx, .pt2, .safetensors or .pth."""

    weights: Annotated[
        tuple[Path, ...],
        about(f"{WEIGHTS_HELP} A merged network may be given too."),
    ] = ()
    format: Annotated[
        Literal["auto", "onnx", "pt2", "aoti", "merged"],
        about("auto: by the ending, .pt2 being pt2. aoti needs a C++ compiler and minutes."),
    ] = "auto"
    degradation: Annotated[
        str | None,
        about(
            "Mix the experts once and for all, for this degradation: a .json file as dasr degrade "
            "and dasr inspect write it, a picture whose degradation is predicted, 'clean', or "
            "'mean', of the paper's levels. Needed for merged; in the other formats it gives "
            "constant kernels, which some runtimes need and all are fastest with."
        ),
    ] = None
    scheme: Annotated[
        Literal["auto", "unified", "official"],
        about("Meaning of the degradation vector. auto: what the weights say of themselves."),
    ] = "auto"
    dynamic_batch: Annotated[
        bool,
        about(
            "Any number of pictures at a time, each with its own degradation. In onnx and aoti "
            "all experts run on each picture, K times the work; in pt2 it costs nothing."
        ),
    ] = False
    half: Annotated[
        bool,
        about(
            "G in float16, or merged networks stored in it. Inputs, outputs and the predictor "
            "stay in float32."
        ),
    ] = False
    degradation_input: Annotated[
        bool, about('A second input, "degradation" [1, 33], instead of the predictor.')
    ] = False
    degradation_output: Annotated[
        bool, about('A second output, "degradation" [1, 33]: what is predicted.')
    ] = False
    predictor_only: Annotated[bool, about('Nothing but the predictor: "lr" to "degradation".')] = (
        False
    )
    clip: Annotated[bool, about('Clamp "sr" to 0..1.')] = False
    check: Annotated[bool, about("Compare with PyTorch; for onnx where onnxruntime is there.")] = (
        True
    )
    device: Annotated[str, about("What an aoti package is for: cpu, cuda.")] = "cpu"
    overwrite: Annotated[bool, about("Replace a file that exists.")] = False
    quiet: Annotated[bool, about("Print errors only.")] = False


def main(argv: Sequence[str]) -> int:
    """Run ``dasr export`` with the arguments ``argv`` and return its exit code."""
    options = tyro.cli(Export, args=list(argv), prog="dasr export")
    output, weights = _separate(options.output, options.weights)
    format = _format(options, output)
    _check_output(options, output, weights)
    from dasr_ops.models.checkpoint import CheckpointError
    from dasr_ops.models.export import ExportError

    try:
        model, metadata = _load(weights)
        agreement = _write(options, format, output, model, metadata)
    except CheckpointError as error:
        raise UsageError(f"--weights: {error}") from None
    except FileExistsError as error:
        raise UsageError(f"{error}; see --overwrite") from None
    except (ExportError, ImportError) as error:
        print(f"error: {_without_owner(error)}", file=sys.stderr)
        return EXIT_FAILURE
    except ValueError as error:
        raise UsageError(_without_owner(error)) from None
    except OSError as error:
        print(f"error: {output} cannot be written: {error.strerror or error}", file=sys.stderr)
        return EXIT_FAILURE
    except (RuntimeError, MemoryError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(f"error: {first_line}", file=sys.stderr)
        return EXIT_FAILURE
    if not options.quiet:
        print(_summary(options, format, output, agreement), file=sys.stderr)
    return 0


def _without_owner(error: Exception) -> str:
    """Return what an error says, without the name of the function, and options as options."""
    text = re.sub(r"^(export_\w+|merge|save_merged|choose_degradation): ", "", str(error))
    return re.sub(r"^(half|device)(?=: )", r"--\1", text)


def _separate(output: Sequence[Path], weights: Sequence[Path]) -> tuple[Path, tuple[Path, ...]]:
    """Hand back the output where it follows ``--weights``, which takes all names that it gets."""
    if not output and len(weights) > 1:
        output, weights = weights[-1:], weights[:-1]
    if len(output) != 1:
        raise UsageError(f"expected one output file, got {len(output)}")
    if len(weights) > 2:
        raise UsageError(f"--weights: expected one or two files, got {len(weights)}")
    if len(weights) == 2 and not all(path.suffix for path in weights):
        raise UsageError(f"--weights {' '.join(map(str, weights))}: expected one name, or files")
    return output[0], find(weights)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _format(options: Export, output: Path) -> str:
    endings = {suffix: name for name in ("onnx", "pt2", "merged") for suffix in _SUFFIXES[name]}
    format = options.format
    if format == "auto":
        if output.suffix not in endings:
            raise UsageError(f"{output}: expected a name that ends in one of {' '.join(endings)}")
        format = endings[output.suffix]
    elif output.suffix not in _SUFFIXES[format]:
        raise UsageError(
            f"{output}: expected a name that ends in {' or '.join(_SUFFIXES[format])} for "
            f"--format {format}"
        )
    if format == "merged":
        for name in (
            "dynamic_batch",
            "degradation_input",
            "degradation_output",
            "predictor_only",
            "clip",
        ):
            if getattr(options, name):
                raise UsageError(f"{_option(name)}: has no use for a merged network")
    if options.device != "cpu" and format != "aoti":
        raise UsageError(f"--device {options.device}: has no use but for --format aoti")
    for name, others in _EXCLUSIVE.items():
        for other in others:
            if getattr(options, name) and getattr(options, other):
                raise UsageError(
                    f"{_option(name)}: has no use with {_option(other)}, {_REASONS[name]}"
                )
    if options.degradation is not None:
        for name in _ABOUT_DEGRADATION:
            if getattr(options, name):
                raise UsageError(
                    f"{_option(name)}: has no use with --degradation, which leaves no predictor"
                )
    return format


def _check_output(options: Export, output: Path, weights: Sequence[Path]) -> None:
    """Complain before any work is done, which may take minutes."""
    if output.is_dir():
        raise UsageError(f"{output}: expected a file, this is a folder")
    if any(output.resolve() == path.resolve() for path in weights):
        raise UsageError(f"{output}: these are the weights; choose another name")
    if output.exists() and not options.overwrite:
        raise UsageError(f"{output} exists; see --overwrite")
    if not output.parent.is_dir():
        raise UsageError(f"{output}: there is no folder {output.parent}")


def _load(weights: Sequence[Path]) -> tuple[Model, dict[str, str]]:
    """Return DASR, or the static network that a file holds, and the file's metadata."""
    from dasr_ops.models.checkpoint import (
        CheckpointError,
        load_dasr,
        load_srresnet,
        read_metadata,
    )

    weights = weights or (default(),)
    try:
        model: Model = load_dasr(*weights)
    except CheckpointError:
        if len(weights) != 1:
            raise
        try:
            model = load_srresnet(weights[0])
        except CheckpointError:
            model = None
        if model is None:
            raise
    single = len(weights) == 1 and weights[0].suffix == ".safetensors"
    metadata = read_metadata(weights[0]) if single else {}
    metadata.pop("format", None)  # of the file, not of the network
    return model, metadata


def _write(
    options: Export, format: str, output: Path, model: Model, metadata: dict[str, str]
) -> Agreement | None:
    from dasr_ops.models import SRResNet, export

    if isinstance(model, SRResNet):
        for name in _ABOUT_DEGRADATION:
            if getattr(options, name):
                raise UsageError(
                    f"{_option(name)}: has no use for these weights, which are those of a static "
                    "network"
                )
    if options.degradation is not None:
        if isinstance(model, SRResNet):
            raise UsageError("--degradation: these weights are those of a static network already")
        v = _degradation(options, model)
        model = export.merge(model, v)
    elif format == "merged":
        if isinstance(model, SRResNet):
            raise UsageError("--weights: they are those of a static network already")
        raise UsageError(
            "a merged network is for one degradation: give --degradation FILE.json, PICTURE, "
            "'clean' or 'mean'"
        )
    common: dict[str, Any] = {"metadata": metadata, "overwrite": options.overwrite}
    if options.degradation is not None:
        common["metadata"] = {**metadata, **export.degradation_metadata(v)}
    if format == "merged":
        export.save_merged(model, output, half=options.half, **common)
        return None
    common |= {
        name: getattr(options, name)
        for name in (
            "dynamic_batch",
            "half",
            "degradation_input",
            "degradation_output",
            "predictor_only",
            "clip",
        )
    }
    if format == "onnx":
        check = None if options.check else False
        return export.export_onnx(model, output, check=check, **common)
    if format == "pt2":
        return export.export_program(model, output, check=options.check, **common)
    return export.export_aoti(model, output, check=options.check, device=options.device, **common)


def _degradation(options: Export, model: Any) -> Any:
    from dasr_ops.models.export import choose_degradation
    from dasr_ops.models.pictures import PictureError

    source = options.degradation
    scheme = None if options.scheme == "auto" else options.scheme
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            v = choose_degradation(model, source, scheme)
    except (PictureError, OSError) as error:
        raise UsageError(f"--degradation {source}: {error}") from None
    except ValueError as error:
        raise UsageError(f"--degradation: {error}") from None
    if not options.quiet:
        for text in dict.fromkeys(str(entry.message) for entry in caught):
            print(f"warning: {source}: {text}", file=sys.stderr)
    return v


def _summary(options: Export, format: str, output: Path, agreement: Agreement | None) -> str:
    lines = [f"written: {output} ({output.stat().st_size / 1e6:.1f} MB)"]
    if agreement is not None:
        sizes = ", ".join(f"{height}x{width}" for height, width in agreement.sizes)
        lines.append(
            f"agrees with PyTorch: differs by at most {agreement.difference:.1e} of "
            f"{agreement.largest:.2f} at {sizes}"
        )
    elif format == "onnx" and options.check:
        lines.append(
            "note: not compared with PyTorch, for onnxruntime is not installed "
            "(pip install 'dasr-ops[export]')"
        )
    return "\n".join(lines)
