"""ONNX files, and what onnxruntime makes of them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._messages import one_line
from ..dasr import DASR
from ..files import atomic_path
from ..generator import SRResNet
from ._check import Agreement, compare
from ._common import (
    ExportError,
    Model,
    channels,
    check_half,
    check_model,
    describe,
    require,
)
from ._interface import Interface

_LARGEST_FILE = 2**31 - 1


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
    agreement = None
    if check:
        session = _session(content)

        def run(arguments: dict[str, Tensor]) -> list[Tensor]:
            feeds = {name: tensor.numpy() for name, tensor in arguments.items()}
            return [torch.from_numpy(array) for array in session.run(None, feeds)]

        agreement = compare("export_onnx", run, model, interface)
    with atomic_path(path, replace=overwrite) as temporary:
        temporary.write_bytes(content)
    return agreement


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
