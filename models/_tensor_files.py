"""Tensors in files, which may be missing, broken, foreign or hostile, on disks that may be full."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._messages import one_line
from .files import atomic_path

PTH_SUFFIXES = (".pth", ".pt", ".ckpt")
"""File names that are read and written by torch.load and torch.save."""

LABELS_KEY = "labels"
"""Key of the metadata, and of ``.pth`` files, under which the scheme of labels stands."""

StrPath = str | os.PathLike[str]
_NESTED = ("params_ema", "params")


def write_safetensors(
    state: Mapping[str, Tensor],
    path: StrPath,
    metadata: Mapping[str, str],
    *,
    replace: bool = True,
) -> None:
    """Write a ``.safetensors`` file at once.

    Raises:
        FileExistsError: there is one, and ``replace`` is False.
        OSError: it cannot be written.
    """
    from safetensors.torch import save

    # In memory first, here and below: on a full disk the libraries raise errors of their own.
    content = _ordered(save(dict(state), dict(metadata)))
    with atomic_path(path, replace=replace) as temporary:
        temporary.write_bytes(content)


def _ordered(content: bytes) -> bytes:
    """Sort the metadata of a ``.safetensors`` file: the library's order is another in each process.

    Equal networks are then equal files.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned
    return len(text).to_bytes(8, "little") + text + content[end:]


def write_pth(value: Any, path: StrPath, *, replace: bool = True) -> None:
    """Write what `torch.save` does, at once; raises as `write_safetensors` does."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with atomic_path(path, replace=replace) as temporary:
        temporary.write_bytes(buffer.getbuffer())


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line and names the file."""


def read_state_dict(path: StrPath) -> dict[str, Tensor]:
    """Read the tensors of a file.

    Args:
        path: ``.safetensors``, or ``.pth`` / ``.pt`` / ``.ckpt``: a flat dict, or one below
            ``params_ema`` (preferred) or ``params``, with or without a ``module.`` prefix. It is
            loaded with ``weights_only=True``, so no code in it runs.

    Returns:
        Tensors on the CPU, in memory of their own; floating-point ones as float32.

    Raises:
        CheckpointError: the file is missing, of another kind, or broken.
    """
    return read_labelled(path)[0]


def read_labelled(path: StrPath) -> tuple[dict[str, Tensor], str | None]:
    """Read the tensors of a file as `read_state_dict` does, and its scheme of labels, if named."""
    path = Path(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)
    scheme = _labels(path, content)
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping) and content[key]:
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: expected a dict of tensors")
    if "learner" in content:
        raise CheckpointError(
            f"{path}: this is a checkpoint to go on from; the networks of a training run are in "
            "its dasr.safetensors or srresnet.pth"
        )
    state = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path}: expected a dict of tensors, or one below 'params' or 'params_ema', "
                f"found {type(tensor).__name__} at {name!r}"
            )
        if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized:
            kind = f"{tensor.dtype}, {tensor.layout}"
            raise CheckpointError(f"{path}: expected plain tensors of real numbers, found {kind}")
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        state[name.removeprefix("module.")] = tensor.to(dtype, copy=True)
    return state, scheme


def read_metadata(path: StrPath) -> dict[str, str]:
    """Return the metadata of a ``.safetensors`` file, as it stands there.

    Raises:
        CheckpointError: the file is missing or broken.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from None


def read_labels(path: StrPath) -> str | None:
    """Return the scheme of labels that a file names; None where it names none.

    Raises:
        CheckpointError: the file is missing or broken.
    """
    path = Path(path)
    return _labels(path, None if path.suffix == ".safetensors" else _read_pth(path))


def _labels(path: Path, content: Any) -> str | None:
    if path.suffix == ".safetensors":
        content = read_metadata(path)
    scheme = content.get(LABELS_KEY) if isinstance(content, Mapping) else None
    return scheme if isinstance(scheme, str) else None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from None


def _read_pth(path: Path) -> Any:
    if path.suffix not in PTH_SUFFIXES:
        raise CheckpointError(
            f"{path}: expected a name that ends in .safetensors or {' or '.join(PTH_SUFFIXES)}"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from None
    except Exception as error:  # unpickling broken data raises anything
        reason = "truncated, or not written by torch.save"
        if "weights_only" in str(error).lower():
            reason = "holds other objects than tensors and containers, or is no checkpoint"
        raise CheckpointError(f"{path}: {reason} ({type(error).__name__})") from None
