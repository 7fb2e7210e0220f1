"""Checkpoints: the official pairs of ``.pth`` files, and one ``.safetensors`` for both networks.

The ``.safetensors`` file holds ``net_g.*`` and ``net_p.*`` and, as metadata, the constructor
arguments of both networks in JSON. Everything needed to build the networks is read off the shapes,
so the metadata informs and is checked, but is not required.

Under "labels" both kinds of file name the scheme of labels, which tells what the entries of v mean.
Without it a ``.safetensors`` file is taken for one of scheme "unified", and ``.pth`` files for the
released ones, of scheme "official".
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ._messages import one_line
from ._tensor_files import (
    LABELS_KEY,
    PTH_SUFFIXES,
    CheckpointError,
    StrPath,
    read_labelled,
    read_labels,
    read_metadata,
    read_state_dict,
    write_pth,
    write_safetensors,
)
from .blend import blend
from .dasr import DASR
from .generator import MSRResNetDynamic, SRResNet
from .predictor import Degradation_Predictor

METADATA_KEY = "dasr_ops"
"""Key of the metadata under which the constructor arguments stand."""

_Network = TypeVar("_Network", bound=nn.Module)
_FLOAT16_MAX = 65504.0


def load_dasr(*paths: StrPath) -> DASR:
    """Load P and G.

    Args:
        *paths: one file with ``net_g.*`` and ``net_p.*``, or the files of G and P in any order.
            Sizes of the networks are read off the shapes.

    Returns:
        The networks in float32 on the CPU, with the scheme of labels that the files name.

    Raises:
        TypeError: neither one nor two paths are given.
        CheckpointError: a file is missing or broken, or its keys or shapes do not fit; they are
            named.
    """
    if len(paths) not in (1, 2):
        raise TypeError(f"load_dasr: paths: expected one or two files, got {len(paths)}")
    label = " + ".join(os.fspath(path) for path in paths)
    files = [read_labelled(path) for path in paths]
    found = [state for state, _ in files]
    states = _split(label, found[0]) if len(found) == 1 else _pair(label, found)
    scheme = _scheme(paths, [scheme for _, scheme in files])
    net_g = _build(label, MSRResNetDynamic, _generator_config(label, states["net_g"]), states)
    net_p = _build(label, Degradation_Predictor, _predictor_config(label, states["net_p"]), states)
    try:
        model = DASR(net_g, net_p, scheme)
    except ValueError as error:
        raise CheckpointError(f"{label}: {one_line(error)}") from None
    if len(paths) == 1 and Path(paths[0]).suffix == ".safetensors":
        _check_metadata(label, model, read_metadata(paths[0]))
    return model


def label_scheme_of(*paths: StrPath) -> str:
    """Return what the entries of v mean to the network of some files.

    Args:
        *paths: as for `load_dasr`.

    Returns:
        What the files say; else "unified" for ``.safetensors``, which the official code does not
        have, and "official" for ``.pth``. A name that is not known here is returned as it is.

    Raises:
        CheckpointError: a file is missing or broken, or two files say different things.
    """
    return _scheme(paths, [read_labels(path) for path in paths])


def load_srresnet(path: StrPath) -> SRResNet:
    """Load a static network, to start training from, see `MSRResNetDynamic.from_static`.

    Args:
        path: see `read_state_dict`.

    Returns:
        The network in float32 on the CPU.

    Raises:
        CheckpointError: the file is missing or broken, or its keys or shapes do not fit.
    """
    state = read_state_dict(path)
    config = _generator_config(os.fspath(path), state, experts=False)
    return _build(os.fspath(path), SRResNet, config, {"net_g": state})


def save_dasr(
    model: DASR,
    *paths: StrPath,
    half: bool = False,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = True,
) -> None:
    """Save P and G, each file at once: a reader sees the old file or the new one.

    Args:
        model: the networks.
        *paths: one ``.safetensors`` file, or the ``.pth`` files of G and of P, in this order, which
            the official code reads.
        half: store float16, which takes half the space and is read back as float32.
        metadata: more entries for the ``.safetensors`` file. "labels" among them wins over the
            scheme of ``model``.
        overwrite: whether existing files are replaced.

    Raises:
        TypeError: ``model`` or the entries of ``metadata`` are of the wrong type.
        ValueError: ``paths`` are not as described, or a value does not fit into float16.
        FileExistsError: a file exists and ``overwrite`` is False.
        OSError: a file cannot be written.
    """
    if not isinstance(model, DASR):
        raise TypeError(f"save_dasr: model: expected a DASR, got {type(model).__name__}")
    files = [Path(path) for path in paths]
    single = len(files) == 1 and files[0].suffix == ".safetensors"
    pair = len(files) == 2 and all(file.suffix in PTH_SUFFIXES for file in files)
    if (not single and not pair) or len(set(files)) != len(files):
        raise ValueError(
            "save_dasr: paths: expected one .safetensors file or two different .pth files, "
            f"got {', '.join(map(str, files)) or 'none'}"
        )
    if metadata and not all(isinstance(t, str) for entry in metadata.items() for t in entry):
        raise TypeError("save_dasr: metadata: expected strings as keys and values")
    if not overwrite:
        for file in files:
            if file.exists():
                raise FileExistsError(f"{file} exists")
    state = {name: _stored(name, t, half) for name, t in model.state_dict().items()}
    if single:
        entries = {LABELS_KEY: model.label_scheme, **(metadata or {}), "format": "pt"}
        entries[METADATA_KEY] = json.dumps(model.config)
        write_safetensors(state, files[0], entries, replace=overwrite)
        return
    for file, prefix in zip(files, ("net_g.", "net_p."), strict=True):
        part = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        # Tensors are stored once; readers ask for the one key or the other.
        content = {"params": part, "params_ema": part, LABELS_KEY: model.label_scheme}
        write_pth(content, file, replace=overwrite)


def convert(
    sources: Sequence[StrPath],
    destinations: Sequence[StrPath],
    *,
    half: bool = False,
    labels: str | None = None,
    metadata: Mapping[str, str] | None = None,
    blend_with: StrPath | None = None,
    share: float = 0.5,
    overwrite: bool = False,
) -> DASR:
    """Convert a pair of ``.pth`` files to one ``.safetensors`` file, or back.

    Args:
        sources: as in `load_dasr`.
        destinations: as in `save_dasr`; metadata is kept from ``.safetensors`` to ``.safetensors``.
        half: store float16.
        labels: scheme of labels to write, where the sources do not name theirs, or a wrong one.
        metadata: more entries for a ``.safetensors`` file, such as a title or a licence.
        blend_with: a ``.safetensors`` file of another network, to write one between both, see
            `blend`; of metadata that is kept which both have.
        share: of that network, 0 to 1.
        overwrite: whether existing files are replaced; sources never are.

    Returns:
        What was converted.

    Raises:
        CheckpointError: a source cannot be used.
        ValueError: ``destinations`` are not as described, one is a source, or two networks cannot
            be blended.
        FileExistsError: a destination exists and ``overwrite`` is False.
        OSError: a destination cannot be written.
    """
    for destination in destinations:
        for source in (*sources, *([] if blend_with is None else [blend_with])):
            if Path(destination).resolve() == Path(source).resolve():
                raise ValueError(f"convert: destinations: {destination} is a source")
    model = load_dasr(*sources)
    entries = {}
    if len(sources) == 1 and Path(sources[0]).suffix == ".safetensors":
        entries = read_metadata(sources[0])
    former = model.label_scheme
    if labels is not None:
        model.label_scheme = labels
    if blend_with is not None:
        if Path(blend_with).suffix != ".safetensors":
            raise ValueError(f"convert: blend_with: expected a .safetensors file, got {blend_with}")
        other = load_dasr(blend_with)
        if other.label_scheme == former:  # what is wrong for one is wrong for its descendant
            other.label_scheme = model.label_scheme
        model = blend(model, other, share)
        entries = dict(entries.items() & read_metadata(blend_with).items())
    entries |= metadata or {}
    if labels is not None:
        entries[LABELS_KEY] = labels
    save_dasr(model, *destinations, half=half, metadata=entries, overwrite=overwrite)
    return model


def _scheme(paths: Sequence[StrPath], named: Sequence[str | None]) -> str:
    found = {scheme for scheme in named if scheme is not None}
    if len(found) > 1:
        label = " + ".join(os.fspath(path) for path in paths)
        raise CheckpointError(f"{label}: different schemes of labels: {', '.join(sorted(found))}")
    if found:
        return found.pop()
    ours = all(Path(path).suffix == ".safetensors" for path in paths)
    return "unified" if ours else "official"


def _split(label: str, state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    states: dict[str, dict[str, Tensor]] = {"net_g": {}, "net_p": {}}
    strange = []
    for name, tensor in state.items():
        network, _, rest = name.partition(".")
        if network in states and rest:
            states[network][rest] = tensor
        else:
            strange.append(name)
    if not states["net_g"] or not states["net_p"]:
        kind = _kind(state)
        first = state.get("conv_first.weight")
        if first is not None and first.dim() == 4:
            raise CheckpointError(f"{label}: expected a DASR, found a static SRResNet")
        found = f"the file of {kind} alone, give the other as well" if kind else _few(strange)
        raise CheckpointError(f"{label}: expected keys net_g.* and net_p.*; found {found}")
    if strange:
        raise CheckpointError(f"{label}: unexpected keys: {_few(strange)}")
    return states


def _pair(label: str, states: list[dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    found = {_kind(state): state for state in states}
    if set(found) != {"G", "P"}:
        kinds = " and ".join(_kind(state) or "something else" for state in states)
        raise CheckpointError(f"{label}: expected the files of G and of P, got {kinds}")
    return {"net_g": found["G"], "net_p": found["P"]}


def _kind(state: Mapping[str, Tensor]) -> str | None:
    if "conv_first.weight" in state:
        return "G"
    return "P" if "ConvNet.0.weight" in state else None


def _generator_config(
    label: str, state: Mapping[str, Tensor], experts: bool = True
) -> dict[str, int]:
    rank = 5 if experts else 4
    first = _shape(label, state, "conv_first.weight", rank)
    last = _shape(label, state, "conv_last.weight", rank)
    upconv = _shape(label, state, "upconv1.weight", rank)
    blocks = {int(m[1]) for name in state if (m := re.match(r"body\.(\d+)\.", name))}
    ratio = upconv[-4] / upconv[-3]
    upscale = {4.0: 4 if "upconv2.weight" in state else 2, 9.0: 3}.get(ratio)
    if upscale is None:
        raise CheckpointError(
            f"{label}: upconv1.weight: expected 4 or 9 times as many outputs as inputs, "
            f"got {list(upconv)}"
        )
    config = {
        "num_in_ch": first[-3],
        "num_out_ch": last[-4],
        "num_feat": first[-4],
        "num_block": max(len(blocks), 1),
        "upscale": upscale,
    }
    return {**config, "num_models": first[0]} if experts else config


def _predictor_config(label: str, state: Mapping[str, Tensor]) -> dict[str, int]:
    first = _shape(label, state, "ConvNet.0.weight", 4)
    return {
        "in_nc": first[1],
        "nf": first[0],
        "num_params": _shape(label, state, "ConvNet.10.weight", 4)[0],
        "num_networks": _shape(label, state, "MappingNet.1.weight", 2)[0],
    }


def _shape(label: str, state: Mapping[str, Tensor], name: str, rank: int) -> tuple[int, ...]:
    if name not in state:
        raise CheckpointError(f"{label}: missing keys: {name}")
    shape = tuple(state[name].shape)
    if len(shape) != rank or min(shape) < 1:
        meaning = {5: " [K, O, I, 3, 3]", 4: " [O, I, kh, kw]"}.get(rank, "")
        raise CheckpointError(
            f"{label}: {name}: expected {rank} dimensions{meaning}, got {list(shape)}"
        )
    return shape


def _build(
    label: str,
    network: type[_Network],
    config: dict[str, int],
    states: dict[str, dict[str, Tensor]],
) -> _Network:
    state = states["net_p" if network is Degradation_Predictor else "net_g"]
    try:
        with torch.device("meta"):  # no memory, no random numbers: all parameters are assigned
            result = network(**config)
    except ValueError as error:
        raise CheckpointError(f"{label}: {one_line(error)}") from None
    expected = result.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} {list(state[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems = (("missing keys", missing), ("unexpected keys", unexpected), ("shapes", shapes))
    if missing or unexpected or shapes:
        text = "; ".join(f"{title}: {_few(names)}" for title, names in problems if names)
        raise CheckpointError(f"{label}: does not fit {network.__name__}: {text}")
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise CheckpointError(f"{label}: {name}: expected real numbers, got {tensor.dtype}")
    result.load_state_dict(state, strict=True, assign=True)
    return result


def _check_metadata(label: str, model: DASR, metadata: dict[str, str]) -> None:
    if METADATA_KEY not in metadata:
        return
    try:
        stated = json.loads(metadata[METADATA_KEY])
    except ValueError:
        raise CheckpointError(f"{label}: metadata {METADATA_KEY!r}: not JSON") from None
    if stated != model.config:
        raise CheckpointError(
            f"{label}: metadata says {json.dumps(stated)}, shapes say {json.dumps(model.config)}"
        )


def _stored(name: str, tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if not half or not tensor.is_floating_point():
        return tensor
    if tensor.numel() and not tensor.abs().max() <= _FLOAT16_MAX:
        raise ValueError(
            f"save_dasr: half: {name} holds values beyond float16's {_FLOAT16_MAX:.0f}"
        )
    return tensor.to(torch.float16)


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return shown + more
