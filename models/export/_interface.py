"""What goes into an exported network, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..generator import SRResNet
from ._common import Model


@dataclass(frozen=True)
class Interface:
    """Options of all exports; `export_onnx` explains them."""

    dynamic_batch: bool = False
    half: bool = False
    degradation_input: bool = False
    degradation_output: bool = False
    predictor_only: bool = False
    clip: bool = False

    def check(self, owner: str, model: Model) -> None:
        """Raise ValueError if options do not fit each other or the model."""
        if self.degradation_input and (self.degradation_output or self.predictor_only):
            raise ValueError(
                f"{owner}: degradation_input: expected False where the degradation is predicted "
                "and returned"
            )
        if self.predictor_only and (self.half or self.clip or self.degradation_output):
            raise ValueError(
                f"{owner}: predictor_only: expected no half, clip or degradation_output with it, "
                "since P returns the degradation alone, in float32"
            )
        if isinstance(model, SRResNet) and (
            self.degradation_input or self.degradation_output or self.predictor_only
        ):
            raise ValueError(
                f"{owner}: model: expected a DASR, since a static SRResNet has no degradation as "
                "an input or an output"
            )

    def free_batch(self, model: Model) -> bool:
        """Return whether any number of pictures goes in at a time."""
        return self.dynamic_batch or self.predictor_only or isinstance(model, SRResNet)

    def run(self, network: Model, lr: Tensor, v: Tensor | None = None) -> list[Tensor]:
        """Return what a file of ``network`` should, computed by PyTorch."""
        if isinstance(network, SRResNet):
            results = [network(lr)]
        else:
            if v is None:
                v = network.net_p(lr).v
            if self.predictor_only:
                return [v]
            results = [network(lr, degradation=v)]
        if self.clip:
            results = [results[0].clamp(0, 1)]
        return [*results, v] if self.degradation_output else results
