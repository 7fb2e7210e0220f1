"""ONNX files, and what onnxruntime makes of them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .._messages import one_line
from ..dasr import DASR
from ..files import atomic_path
from ..generator import SRResNet
from ._common import (
    ExportError,
    Model,
    channels,
    check_half,
    check_model,
    describe,
    frozen,
    require,
)
from ._interface import Interface

SIZES = ((24, 32), (17, 23), (1, 5))
"""Heights and widths at which a file is compared with PyTorch."""

_LARGEST_FILE = 2**31 - 1
_TOLERANCE = 1e-4
_HALF_TOLERANCE = 2e-2


@dataclass(frozen=True)
class Agreement:
    """How far a file's results are from those of PyTorch."""

    difference: float
    """Largest absolute difference of any output at any size."""
    largest: float
    """Largest absolute value of the expected outputs."""
    sizes: tuple[tuple[int, int], ...]
    """Heights and widths of the inputs."""


def export_onnx(
    model: Model,
    path: str | os.PathLike[str],
    *,
    dynamic_batch: bool = False,
    half: bool = False,
    degradation_input: bool = False,
    degradation_output: bool = False,
    predictor_only: bool = False,
    clip: bool = False,
    check: bool | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = True,
) -> Agreement | None:
    """Write an ONNX file of free height and width.

    The input ``lr`` is [1, C, height, width], float32, RGB or grey in 0..1; the output ``sr``
    [1, C, height * scale, width * scale], float32. P is inside and sees all of ``lr``, so a program
    that cuts pictures into tiles shall rather have two files: one of ``predictor_only`` for the
    whole picture, and one with ``degradation_input`` for the tiles.

    By default the experts are mixed by MatMul into one kernel for each layer, so the batch is 1 and
    the work that of a network without experts. Opset 13, one file, no control flow.

    Args:
        model: DASR, or the static network of `merge`, whose kernels are constants: the fastest, and
            for runtimes that want such.
        path: where to; an ``.onnx`` file.
        dynamic_batch: any number of pictures, each with its own degradation. All K experts run on
            each picture: K times the work of G. A static network has a free batch without that.
        half: G in float16, which halves the file and the memory. P, the mixing of the experts and
            both ends stay in float32.
        degradation_input: a second input ``degradation`` [1, 33] takes the place of P.
        degradation_output: a second output ``degradation`` [1, 33]: what P has predicted.
        predictor_only: P alone, from ``lr`` [batch, C, height, width] to ``degradation``.
        clip: clamp ``sr`` to 0..1; as in PyTorch it may overshoot otherwise.
        check: compare the file with PyTorch in onnxruntime, at three sizes, before it is written.
            None: where onnxruntime is installed.
        metadata: more entries for the file's metadata, such as its licence. It says ``scale``,
            ``precision``, and in ``dasr_ops`` the sizes of the networks.
        overwrite: whether an existing file is replaced.

    Returns:
        How far the file's results are from PyTorch's; None if that was not checked.

    Raises:
        ImportError: onnx is missing, or onnxruntime where ``check`` is True.
        TypeError: ``model`` or ``metadata`` is of the wrong type.
        ValueError: arguments do not fit each other, or a kernel does not fit into float16.
        ExportError: the results differ from PyTorch's, or the file would exceed 2 GB.
        FileExistsError: the file exists and ``overwrite`` is False.
        OSError: it cannot be written.
    """
    check_model("export_onnx", model, DASR, SRResNet)
    interface = Interface(
        dynamic_batch, half, degradation_input, degradation_output, predictor_only, clip
    )
    interface.check("export_onnx", model)
    if half:
        check_half(model)
    onnx = require("onnx", "export_onnx")
    if check is None:
        check = importlib.util.find_spec("onnxruntime") is not None
    if check:
        require("onnxruntime", "export_onnx: check")
    from ._graph import build

    proto = build(model, interface)
    precision = "float16" if half else "float32"
    proto.producer_name = "dasr-ops"
    proto.doc_string = (
        f"Magnifies pictures {model.upscale} times. lr: "
        f"{'grey' if channels(model) == 1 else 'RGB'} in 0..1."
    )
    entries = describe(model, metadata, precision=precision)
    onnx.helper.set_model_props(proto, entries)
    if proto.ByteSize() > _LARGEST_FILE:
        raise ExportError(f"export_onnx: {proto.ByteSize()} bytes are more than one file can hold")
    content = proto.SerializeToString()
    try:
        onnx.checker.check_model(content, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"export_onnx: the graph is not valid: {one_line(error)}") from None
    agreement = compare(content, model, interface) if check else None
    with atomic_path(path, replace=overwrite) as temporary:
        temporary.write_bytes(content)
    return agreement


def compare(content: bytes, model: Model, interface: Interface) -> Agreement:
    """Run a file in onnxruntime and compare it with PyTorch in float64.

    Raises:
        ExportError: it does not load, or results differ by more than rounding.
    """
    session = _session(content)
    network, exact = frozen(model), frozen(model).double()
    generator = torch.Generator().manual_seed(0)
    difference = largest = noise = 0.0
    for number, (height, width) in enumerate(SIZES):
        batch = 1 + number if "batch" in session.get_inputs()[0].shape else 1
        lr = torch.rand(batch, channels(model), height, width, generator=generator)
        v = None
        if interface.degradation_input:
            v = torch.rand(batch, model.net_p.config["num_params"], generator=generator)
        feeds = {"lr": lr} if v is None else {"lr": lr, "degradation": v}
        found = session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
        with torch.no_grad():
            rounded = interface.run(network, lr, v)
            expected = interface.run(exact, lr.double(), None if v is None else v.double())
        for own, reference, result in zip(rounded, expected, found, strict=True):
            result = torch.from_numpy(result).double()
            if result.shape != reference.shape:
                raise ExportError(
                    f"export_onnx: at {height}x{width} onnxruntime returns "
                    f"{list(result.shape)} instead of {list(reference.shape)}"
                )
            if not torch.isfinite(result).all():
                reason = "; float16 is too narrow for these weights" if interface.half else ""
                raise ExportError(
                    f"export_onnx: at {height}x{width} onnxruntime returns infinities or "
                    f"NaN{reason}"
                )
            difference = max(difference, float((result - reference).abs().max()))
            noise = max(noise, float((own.double() - reference).abs().max()))
            largest = max(largest, float(reference.abs().max()))
    # Networks whose terms cancel round more than others, in PyTorch too.
    allowed = max((_HALF_TOLERANCE if interface.half else _TOLERANCE) * max(largest, 1), 16 * noise)
    if not difference <= allowed:
        raise ExportError(
            f"export_onnx: onnxruntime's results differ from PyTorch's by {difference:.2g}, "
            f"expected at most {allowed:.2g}"
        )
    return Agreement(difference, largest, SIZES)


def _session(content: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes, by kind of failure
        raise ExportError(
            f"export_onnx: onnxruntime does not load the graph: {one_line(error)}"
        ) from None
