"""Optimisers of torch.optim by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..config import OptimizerConfig
from ..config_checks import optimizer_names, optimizer_options, unknown_options
from .errors import TrainingError


def build_optimizer(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter], lr: float
) -> torch.optim.Optimizer:
    """Construct the optimiser of the settings.

    Raises:
        TrainingError: there is no such optimiser, or it refuses an option.
    """
    names = optimizer_names()
    if config.name not in names:
        raise TrainingError(
            f"optimizer.name: expected one of {', '.join(names)}, got {config.name!r}"
        )
    found, accepted = getattr(torch.optim, config.name), optimizer_options(config.name)
    options = {name: _number(value) for name, value in config.options.items()}
    for line in unknown_options(config):
        raise TrainingError(line)
    if "betas" in accepted:
        options.setdefault("betas", config.betas)
    if "weight_decay" in accepted:
        options.setdefault("weight_decay", config.weight_decay)
    try:
        return found(parameters, lr=lr, **options)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"optimizer: {config.name}: {error}") from error


def resume_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over what another of its kind has gathered, but not its options.

    PyTorch takes those over too: settings that were changed since would have no effect.

    Raises:
        KeyError, ValueError: the state is of other parameters.
    """
    options = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)


def fits(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> bool:
    """Return whether a state has for every parameter what a step of ``optimizer`` asks for.

    Its constructor's options decide that: AMSGrad and momentum keep sums of their own.
    """
    (group,) = optimizer.param_groups
    probes = [nn.Parameter(torch.zeros([2] * p.dim(), device=p.device)) for p in group["params"]]
    for parameter in probes:
        parameter.grad = torch.zeros_like(parameter)
    probe = type(optimizer)(probes)
    probe.param_groups[0].update({k: v for k, v in group.items() if k != "params"})
    probe.step()
    for number, gathered in state["state"].items():
        entries = probe.state[probes[number]].items() if number < len(probes) else ()
        if not {name for name, value in entries if value is not None} <= gathered.keys():
            return False
    return True


def _number(value: float) -> float | int:
    # Options that are switches or counts refuse 1.0.
    return int(value) if float(value).is_integer() else value
