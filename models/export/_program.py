"""Files of `torch.export`, and packages compiled from them by AOTInductor."""

from __future__ import annotations

import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from .._messages import one_line
from ..dasr import DASR
from ..files import atomic_path
from ..generator import SRResNet
from ._check import Agreement, compare
from ._common import ExportError, Model, check_half, check_model, describe
from ._interface import Interface
from ._module import InferenceModule

METADATA_FILE = "dasr_ops.json"
"""Extra file in a program's archive: its metadata, as a JSON object of strings."""


def export_program(
    model: Model,
    path: str | os.PathLike[str],
    *,
    dynamic_batch: bool = False,
    half: bool = False,
    degradation_input: bool = False,
    degradation_output: bool = False,
    predictor_only: bool = False,
    clip: bool = False,
    check: bool = True,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = True,
) -> Agreement | None:
    """Write a program of `torch.export`, of free height and width.

    It consists of PyTorch's own operators, so it runs where this package is not installed:
    ``torch.export.load(path).module()(lr=lr)``.

    Args:
        model: DASR, or the static network of `merge`.
        path: where to; a ``.pt2`` file.
        dynamic_batch: any number of pictures, each with its own kernels, at no further cost.
        half, degradation_input, degradation_output, predictor_only, clip, metadata, overwrite: as
            in `export_onnx`. The metadata is `METADATA_FILE` in the archive.
        check: load the program and compare it with the networks, at three sizes, before the file
            is written.

    Returns:
        How far its results are from those of the networks; None if that was not checked.

    Raises:
        TypeError: ``model`` or ``metadata`` is of the wrong type.
        ValueError: arguments do not fit each other, ``path`` ends otherwise, or a kernel does not
            fit into float16.
        ExportError: tracing fails, or results differ.
        FileExistsError: the file exists and ``overwrite`` is False.
        OSError: it cannot be written.
    """
    owner = "export_program"
    interface = Interface(
        dynamic_batch, half, degradation_input, degradation_output, predictor_only, clip
    )
    _check_arguments(owner, model, path, interface)
    program = _trace(owner, model, interface, "cpu", fold_batch=True)
    entries = describe(model, metadata, precision=_precision(interface))
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(entries)})
    agreement = None
    if check:
        buffer.seek(0)
        with _quiet():
            module = torch.export.load(buffer).module()
        agreement = compare(owner, _runner(module, "cpu"), model, interface)
    with atomic_path(path, replace=overwrite) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return agreement


def export_aoti(
    model: Model,
    path: str | os.PathLike[str],
    *,
    dynamic_batch: bool = False,
    half: bool = False,
    degradation_input: bool = False,
    degradation_output: bool = False,
    predictor_only: bool = False,
    clip: bool = False,
    device: torch.device | str = "cpu",
    check: bool = True,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = True,
) -> Agreement | None:
    """Compile a package by AOTInductor, of free height and width.

    Needs a C++ compiler here; the package needs PyTorch's libraries, but neither a compiler nor
    this package: ``torch._inductor.aoti_load_package(path)(lr=lr)``, or
    ``torch::inductor::AOTIModelPackageLoader`` in C++. It runs on processors and devices like this
    one. Compiling the official network takes minutes.

    Args:
        model: DASR, or the static network of `merge`.
        path: where to; a ``.pt2`` file.
        dynamic_batch: any number of pictures. All K experts run on each, as in `export_onnx`.
        half, degradation_input, degradation_output, predictor_only, clip, check, metadata,
            overwrite: as in `export_program`. Float16 is for GPUs; on CPUs it is slow. The metadata
            is what the loader's ``get_metadata()`` returns.
        device: that the package is for.

    Returns:
        How far its results are from those of the networks; None if that was not checked.

    Raises:
        TypeError: ``model`` or ``metadata`` is of the wrong type.
        ValueError: arguments do not fit each other, ``path`` ends otherwise, ``device`` is not
            there, or a kernel does not fit into float16.
        ExportError: there is no C++ compiler, compilation fails, or results differ.
        FileExistsError: the file exists and ``overwrite`` is False.
        OSError: it cannot be written.
    """
    owner = "export_aoti"
    interface = Interface(
        dynamic_batch, half, degradation_input, degradation_output, predictor_only, clip
    )
    _check_arguments(owner, model, path, interface)
    _check_device(owner, device)
    _check_compiler(owner)
    program = _trace(owner, model, interface, device, fold_batch=False)
    entries = describe(model, metadata, precision=_precision(interface))
    agreement = None
    with tempfile.TemporaryDirectory(prefix="dasr-ops-") as folder:
        package = os.path.join(folder, "model.pt2")
        try:
            with _quiet(), torch.no_grad():
                torch._inductor.aoti_compile_and_package(
                    program,
                    package_path=package,
                    inductor_configs={"aot_inductor.metadata": entries},
                )
        except Exception as error:  # of the compiler, of Inductor, of the linker
            raise ExportError(f"{owner}: compilation failed: {one_line(error)}") from error
        if check:
            module = torch._inductor.aoti_load_package(package)
            agreement = compare(owner, _runner(module, device), model, interface)
        with atomic_path(path, replace=overwrite) as temporary:
            temporary.write_bytes(Path(package).read_bytes())
    return agreement


def _check_arguments(
    owner: str, model: Any, path: str | os.PathLike[str], interface: Interface
) -> None:
    check_model(owner, model, DASR, SRResNet)
    interface.check(owner, model)
    if Path(path).suffix != ".pt2":  # torch refuses to load others
        raise ValueError(f"{owner}: path: expected a .pt2 file, got {path}")
    if interface.half:
        check_half(model)


def _trace(
    owner: str,
    model: Model,
    interface: Interface,
    device: torch.device | str,
    *,
    fold_batch: bool,
) -> ExportedProgram:
    from torch.fx.experimental import _config

    module = InferenceModule(model, interface, device, fold_batch).eval()
    free = interface.free_batch(model)
    arguments = module.example(2 if free else 1)
    batch = {0: Dim("batch", min=1)} if free else {}
    shapes: dict[str, Any] = {"lr": {**batch, 2: Dim("height", min=1), 3: Dim("width", min=1)}}
    if "degradation" in arguments:
        shapes["degradation"] = batch
    try:
        # Without it sizes of 1 are taken for another program, and refused.
        with torch.no_grad(), _quiet(), _config.patch(backed_size_oblivious=True):
            return torch.export.export(module, (), arguments, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise ExportError(f"{owner}: tracing failed: {one_line(error)}") from error


def _runner(
    module: Callable[..., Any], device: torch.device | str
) -> Callable[[dict[str, Tensor]], list[Tensor]]:
    def run(arguments: dict[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            result = module(**{name: tensor.to(device) for name, tensor in arguments.items()})
        results = [result] if isinstance(result, Tensor) else list(result)
        return [tensor.cpu() for tensor in results]

    return run


def _check_compiler(owner: str) -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # torch has several classes for it
        raise ExportError(
            f"{owner} needs a C++ compiler: install g++ or clang++, or name one in CXX "
            f"({one_line(error)})"
        ) from None


def _check_device(owner: str, device: torch.device | str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{owner}: device: {device}: {one_line(error)}") from None


def _precision(interface: Interface) -> str:
    return "float16" if interface.half else "float32"


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what torch says about its own inner workings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
