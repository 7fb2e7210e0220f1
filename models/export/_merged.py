"""DASR for one degradation: a plain static network with an ordinary kernel for each layer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .._checks import check_rows
from .._tensor_files import PTH_SUFFIXES, write_pth, write_safetensors
from ..dasr import DASR
from ..generator import SRResNet
from ._common import check_half, check_model, describe

DEGRADATION_KEY = "degradation"
"""Metadata of a merged network: the v that it is for, a JSON list."""


def merge(model: DASR, v: Tensor) -> SRResNet:
    """Mix the experts for one degradation.

    Args:
        model: the networks.
        v: degradation vector, [33] or [1, 33] (as many as P predicts), floating point.

    Returns:
        A static network that magnifies as ``model(lr, degradation=v)`` does, to float rounding, on
        the device and in the dtype of ``model``; 1.5 million parameters for the official sizes.
        It no longer adapts: pictures with other degradations come out worse.

    Raises:
        TypeError: ``model`` is not a DASR, or ``v`` not a floating-point tensor.
        ValueError: the shape of ``v`` does not fit, or a number is not finite.
    """
    check_model("merge", model, DASR)
    if isinstance(v, Tensor) and v.dim() == 1:
        v = v.unsqueeze(0)
    check_rows("merge", "v", v, 1, model.net_p.config["num_params"])
    if not torch.isfinite(v).all():
        raise ValueError("merge: v: expected finite numbers")
    parameter = next(model.net_p.parameters())
    with torch.no_grad():
        weights = model.net_p.mix(v.to(device=parameter.device, dtype=parameter.dtype))
        return model.net_g.to_static(weights)


def save_merged(
    network: SRResNet,
    path: str | os.PathLike[str],
    *,
    half: bool = False,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = True,
) -> None:
    """Save a static network as `load_srresnet` and BasicSR's MSRResNet read it.

    Keys are those of BasicSR, so ``pretrain_network_g`` and programs that know MSRResNet take the
    file. In a ``.pth`` file they lie below ``params`` and ``params_ema``.

    Args:
        network: see `merge`.
        path: a ``.safetensors`` or ``.pth`` file.
        half: store float16: half the size.
        metadata: more entries for the ``.safetensors`` file, such as `degradation_metadata`.
        overwrite: whether an existing file is replaced.

    Raises:
        TypeError: ``network`` or ``metadata`` is of the wrong type.
        ValueError: ``path`` ends otherwise, or a kernel does not fit into float16.
        FileExistsError: the file exists and ``overwrite`` is False.
        OSError: it cannot be written.
    """
    check_model("save_merged", network, SRResNet)
    suffix = Path(path).suffix
    if suffix != ".safetensors" and suffix not in PTH_SUFFIXES:
        raise ValueError(f"save_merged: path: expected a .safetensors or .pth file, got {path}")
    if half:
        check_half(network)
    entries = describe(network, metadata, format="pt", architecture="MSRResNet")
    dtype = torch.float16 if half else torch.float32
    state = {
        name: tensor.detach().to(device="cpu", dtype=dtype).contiguous()
        for name, tensor in network.state_dict().items()
    }
    if suffix == ".safetensors":
        write_safetensors(state, path, entries, replace=overwrite)
    else:
        # Tensors are stored once; readers ask for the one key or the other.
        write_pth({"params": state, "params_ema": state}, path, replace=overwrite)


def degradation_metadata(v: Tensor) -> dict[str, str]:
    """Return metadata that tell which degradation, [33] or [1, 33], a merged network is for."""
    return {DEGRADATION_KEY: json.dumps([round(x, 6) for x in v.flatten().tolist()])}
