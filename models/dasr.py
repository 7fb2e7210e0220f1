"""DASR as one module: P looks at the image, G magnifies it accordingly."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ._checks import check_images, check_rows
from .generator import MSRResNetDynamic
from .predictor import Degradation_Predictor, Prediction


class DASR(nn.Module):
    """The degradation-adaptive network of Liang, Zeng, Zhang, ECCV 2022: P and G together.

    Args:
        net_g: G; the official one by default.
        net_p: P; the official one for the experts of ``net_g`` by default.
        label_scheme: what the entries of v mean, a name of `dasr_ops.train.degradations.SCHEMES`:
            "unified", or "official", that of the released weights.

    Attributes:
        net_g: G.
        net_p: P.
        label_scheme: as above; checkpoints keep it, state dicts do not.

    Raises:
        TypeError: an argument is not the network expected.
        ValueError: the networks disagree about the number of experts or the input's channels.
    """

    def __init__(
        self,
        net_g: MSRResNetDynamic | None = None,
        net_p: Degradation_Predictor | None = None,
        label_scheme: str = "unified",
    ) -> None:
        super().__init__()
        if not isinstance(label_scheme, str):
            raise TypeError(f"DASR: label_scheme: expected a str, got {label_scheme!r}")
        net_g = MSRResNetDynamic() if net_g is None else net_g
        if not isinstance(net_g, MSRResNetDynamic):
            raise TypeError(
                f"DASR: net_g: expected an MSRResNetDynamic, got {type(net_g).__name__}"
            )
        channels = net_g.config["num_in_ch"]
        if net_p is None:
            net_p = Degradation_Predictor(in_nc=channels, num_networks=net_g.num_models)
        if not isinstance(net_p, Degradation_Predictor):
            raise TypeError(
                f"DASR: net_p: expected a Degradation_Predictor, got {type(net_p).__name__}"
            )
        for argument, expected in (("num_networks", net_g.num_models), ("in_nc", channels)):
            if net_p.config[argument] != expected:
                raise ValueError(
                    f"DASR: net_p: expected {argument} = {expected} to fit net_g, "
                    f"got {net_p.config[argument]}"
                )
        self.net_g = net_g
        self.net_p = net_p
        self.label_scheme = label_scheme

    @classmethod
    def from_config(cls, config: dict[str, dict[str, Any]]) -> DASR:
        """Build fresh networks from ``{"net_g": {...}, "net_p": {...}}``, see `config`."""
        return cls(MSRResNetDynamic(**config["net_g"]), Degradation_Predictor(**config["net_p"]))

    @property
    def config(self) -> dict[str, dict[str, Any]]:
        """The constructor arguments of both networks."""
        return {"net_g": dict(self.net_g.config), "net_p": dict(self.net_p.config)}

    @property
    def upscale(self) -> int:
        """The magnification."""
        return self.net_g.upscale

    @property
    def receptive_field_radius(self) -> int:
        """LR pixels of context that an output pixel of G depends on; P sees the whole image."""
        return self.net_g.receptive_field_radius

    def predict(self, lr: Tensor, max_pixels: int | None = None) -> Prediction:
        """Predict degradation and mixing weights.

        Args:
            lr: images, [B, 3, H, W], 0..1.
            max_pixels: bound of the pixels processed at a time, see
                `Degradation_Predictor.predict_in_strips`; None for the whole image at once.

        Returns:
            v [B, 33] and mixing weights [B, K].

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: an argument's shape or value does not fit.
        """
        if max_pixels is None:
            return self.net_p(lr)
        return self.net_p.predict_in_strips(lr, max_pixels)

    def forward(
        self, lr: Tensor, degradation: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Magnify images.

        Args:
            lr: images, [B, 3, H, W], 0..1.
            degradation: v [B, 33] to use instead of the predicted one.
            weights: mixing weights [B, K] to use instead of those that follow from v.

        Returns:
            [B, 3, H * upscale, W * upscale], of the type of ``lr``, not clamped.

        Raises:
            TypeError: an argument is not a floating-point tensor.
            ValueError: shapes do not fit, or both ``degradation`` and ``weights`` are given.
        """
        if weights is None:
            if degradation is None:
                weights = self.net_p(lr).weights
            else:
                check_images("DASR", "lr", lr, self.net_p.config["in_nc"])
                num_params = self.net_p.config["num_params"]
                check_rows("DASR", "degradation", degradation, lr.shape[0], num_params)
                weights = self.net_p.mix(degradation)
        elif degradation is not None:
            raise ValueError("DASR: weights: expected None where degradation is given, got both")
        return self.net_g(lr, weights)
