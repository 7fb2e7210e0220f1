"""Exponential moving averages of weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """The moving average of a network's parameters: what is evaluated and saved.

    In the first steps the decay is lower, (1 + step) / (10 + step), so that the random
    initialisation is forgotten soon.

    Args:
        network: what to average; it is copied.
        decay: of the average, per step, 0..1; 0 follows the network.

    Attributes:
        network: a copy of the network that holds the averages; needs no gradients, in eval mode.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights that the network has after a step (number `step`, from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, values = list(self.network.parameters()), list(network.parameters())
        torch._foreach_lerp_(averages, [value.detach() for value in values], 1 - decay)
        for average, value in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(value)
