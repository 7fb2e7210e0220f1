"""What can be said of settings before a run starts: do the files they name exist?"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Iterator

import torch

from dasr_ops.models.checkpoint import CheckpointError
from dasr_ops.models.shipped import find_weights as find_shipped

from .config import OptimizerConfig, TrainConfig
from .config_files import CONFIG_NAME
from .losses.features.weights import find_weights


def problems(config: TrainConfig) -> list[str]:
    """Return one line for each thing that keeps a run from starting on this machine.

    Files and folders are looked for, not opened. Weights to start from are not asked for where the
    run's folder has settings already, since it then goes on from a checkpoint.
    """
    return [
        *_data(config),
        *_weights(config),
        *_perceptual(config),
        *_optimizer(config),
        *_run(config),
    ]


def _data(config: TrainConfig) -> Iterator[str]:
    if not config.data.train:
        yield "data.train: expected folders, databases or lists of pictures, got none"
    for path in config.data.train:
        if not os.path.exists(path):
            yield f"data.train: {path} does not exist"
    root, pictures = config.data.root, config.validation.pictures
    if root is not None and not os.path.isdir(root):
        yield f"data.root: {root} is no folder"
    if pictures is not None and not os.path.exists(pictures):
        yield f"validation.pictures: {pictures} does not exist"


def _weights(config: TrainConfig) -> Iterator[str]:
    if os.path.exists(config.run / CONFIG_NAME):
        return
    files = [("start.weights", path) for path in config.start.weights]
    if config.loss.gan.weight > 0 and config.start.discriminator is not None:
        files.append(("start.discriminator", config.start.discriminator))
    for name, path in files:
        if name == "start.weights":
            try:
                path = find_shipped(path)
            except CheckpointError as error:
                yield f"{name}: {error}"
                continue
        if os.path.isdir(path):
            yield f"{name}: {path} is a folder; the networks of a run are in its dasr.safetensors"
        elif not os.path.isfile(path):
            yield f"{name}: {path} does not exist"


def _perceptual(config: TrainConfig) -> Iterator[str]:
    loss = config.loss.perceptual
    if loss.weight == 0 and loss.style_weight == 0:
        return
    if loss.weights is not None:
        if not os.path.isfile(loss.weights):
            yield f"loss.perceptual.weights: {loss.weights} does not exist"
        return
    try:
        find_weights(loss.network)
    except CheckpointError as error:
        free = "vgg16_hed"
        hint = "" if loss.network == free else f" (freely licensed: loss.perceptual.network {free})"
        yield f"loss.perceptual.weights: {error}{hint}"


def optimizer_names() -> list[str]:
    """Return the names of torch.optim's optimisers that training can use."""
    # LBFGS calls for the gradients several times in a step, SparseAdam takes sparse ones alone, and
    # Optimizer is what all derive from.
    bases = (torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)
    return sorted(
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, bases[0]) and value not in bases
    )


def optimizer_options(name: str) -> list[str]:
    """Return the options of an optimiser among `optimizer_names`, but for its learning rate."""
    accepted = inspect.signature(getattr(torch.optim, name)).parameters
    return [option for option in accepted if option not in ("params", "lr")]


def unknown_options(config: OptimizerConfig) -> Iterator[str]:
    """Return one line for each option that the optimiser, whose name is known, does not have."""
    accepted = optimizer_options(config.name)
    for option in config.options:
        if option not in accepted:
            has = ", ".join(accepted)
            yield f"optimizer.options: {config.name} has no option {option!r}; it has {has}"


def _optimizer(config: TrainConfig) -> Iterator[str]:
    name, known = config.optimizer.name, optimizer_names()
    if name in known:
        yield from unknown_options(config.optimizer)
        return
    close = [n for n in known if n.lower() == name.lower()] or difflib.get_close_matches(
        name, known
    )
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    yield f"optimizer.name: expected one of torch.optim, got {name}; {hint}"


def _run(config: TrainConfig) -> Iterator[str]:
    for path in (config.run, *config.run.parents):
        if os.path.exists(path):
            if not os.path.isdir(path):
                yield f"run: {path} is a file, not a folder"
            elif not os.access(path, os.W_OK):
                yield f"run: {path} cannot be written to"
            return
