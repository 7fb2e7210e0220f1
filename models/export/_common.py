"""What all exports share: errors, optional packages, metadata, the networks to be exported."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch

from dasr_ops.version import __version__

from ..checkpoint import METADATA_KEY
from ..dasr import DASR
from ..generator import SRResNet

Model = DASR | SRResNet
"""What can be exported: DASR, or the static network that `merge` makes of it."""


class ExportError(RuntimeError):
    """An export that failed; the message is one line, and no file was written."""


def require(package: str, owner: str) -> ModuleType:
    """Import an optional package.

    Raises:
        ImportError: it is missing or broken; the message names the extra.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{owner} needs {package} ({error}): pip install 'dasr-ops[export]'", name=package
        ) from None


def check_model(owner: str, model: Any, *kinds: type) -> None:
    """Raise TypeError unless ``model`` is of one of ``kinds``."""
    if not isinstance(model, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{owner}: model: expected a {names}, got {type(model).__name__}")


def frozen(model: Model, device: torch.device | str = "cpu") -> Any:
    """Return a copy in float32 for inference; the model of the caller stays as it is."""
    return copy.deepcopy(model).to(device=device, dtype=torch.float32).eval().requires_grad_(False)


def channels(model: Model) -> int:
    """Return the number of channels of pictures."""
    network = model.net_g if isinstance(model, DASR) else model
    return network.config["num_in_ch"]


def describe(model: Model, metadata: Mapping[str, str] | None, **entries: str) -> dict[str, str]:
    """Return what a file says about itself.

    Args:
        model: the networks.
        metadata: entries of the caller, such as those of the checkpoint: licence, labels, title.
        **entries: further ones, which win.

    Raises:
        TypeError: ``metadata`` holds other things than strings.
    """
    if metadata and not all(isinstance(t, str) for entry in metadata.items() for t in entry):
        raise TypeError("metadata: expected strings as keys and values")
    scheme = getattr(model, "label_scheme", None)  # a static network has none
    return {
        **({} if scheme is None else {"labels": scheme}),
        **(metadata or {}),
        METADATA_KEY: json.dumps(model.config),
        "scale": str(model.upscale),
        "dasr_ops_version": __version__,
        **entries,
    }


def check_half(model: Model) -> None:
    """Raise unless the kernels of G fit into float16.

    Raises:
        ValueError: one does not; it is named.
    """
    network = model.net_g if isinstance(model, DASR) else model
    largest = torch.finfo(torch.float16).max
    for name, tensor in network.state_dict().items():
        if not bool((tensor.abs() <= largest).all()):
            raise ValueError(f"half: {name} holds values beyond float16's {largest:.0f}")
