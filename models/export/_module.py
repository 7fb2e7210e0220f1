"""The networks as one module of plain tensors in and out, as files hold it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..dasr import DASR
from ..generator import SRResNet
from ._common import Model, frozen


class InferenceModule(nn.Module):
    """Maps ``lr``, or ``lr`` and ``degradation``, to ``sr``.

    Args:
        model: the networks; they are copied.
        half: G in float16; P, the mixing of the experts, inputs and outputs stay in float32.
        degradation_input: take v as second argument instead of predicting it.
        degradation_output: return v as second result.
        device: of the copy.
    """

    def __init__(
        self,
        model: Model,
        *,
        half: bool = False,
        degradation_input: bool = False,
        degradation_output: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.network = frozen(model, device)
        self.half_precision = half
        self.degradation_input = degradation_input
        self.degradation_output = degradation_output
        if half:
            generator = self.network.net_g if isinstance(model, DASR) else self.network
            generator.half()

    def forward(
        self, lr: Tensor, degradation: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Magnify ``lr`` [B, C, H, W], 0..1, float32; see the class."""
        features = lr.half() if self.half_precision else lr
        if isinstance(self.network, SRResNet):
            return self.network(features).float()
        if degradation is None:
            degradation, weights = self.network.net_p(lr)
        else:
            weights = self.network.net_p.mix(degradation)
        sr = self.network.net_g(features, weights).float()
        return (sr, degradation) if self.degradation_output else sr

    def example(self, batch: int = 1) -> tuple[Tensor, ...]:
        """Return arguments to trace with."""
        device = next(self.network.parameters()).device
        if isinstance(self.network, SRResNet):
            return (torch.rand(batch, self.network.config["num_in_ch"], 24, 20, device=device),)
        lr = torch.rand(batch, self.network.net_g.config["num_in_ch"], 24, 20, device=device)
        if not self.degradation_input:
            return (lr,)
        num_params = self.network.net_p.config["num_params"]
        return lr, torch.rand(batch, num_params, device=device)
