"""Perceptual and style loss: differences of the features of a frozen network.

Johnson, Alahi and Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution",
ECCV 2016; features before the ReLU as in Wang et al., "ESRGAN", ECCVW 2018; Gram matrices after
Gatys, Ecker and Bethge, "Image Style Transfer Using Convolutional Neural Networks", CVPR 2016.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dasr_ops.models._checks import check_images

from ..config_losses import PerceptualLossConfig
from ._checks import one_of, wide_pair
from .features import ARCHITECTURES, FeatureNetwork, check_layers, load_weights
from .pixel import CRITERIA


class PerceptualLoss(nn.Module):
    """Compares pictures by the features that a frozen VGG network finds in them.

    For each layer the criterion's mean over all features, times the weight of the layer, summed;
    ``style`` likewise of the Gram matrices, [B, C, C], of the features divided by C * H * W.
    Features of ``vgg19`` are as they are. Those of ``vgg16_hed``, whose layers differ by a factor
    of 30, are divided by their mean absolute value over photographs, so that weights mean the same
    for all layers; the default weights are the paper's (0.1, 0.1, 1, 1, 1).

    Features of the target are computed without gradients. Under autocast the convolutions run in
    its type; differences, Gram matrices and sums are float32.

    Nothing is trained, and the state dict is empty: checkpoints do not hold the network, and
    ``parameters()`` yields nothing. ``.to(device, memory_format=torch.channels_last)`` applies to
    the kernels; pictures keep their format, but for the CPU kernels of this package, which take
    them as channels_last.

    Args:
        config: settings; if both of its weights are 0, no network is loaded and nothing computed.

    Attributes:
        network: a `FeatureNetwork`, or None.
        layers: weight of each layer, those of weight 0 left out.

    Raises:
        ValueError: a setting is out of range, or a layer unknown; the message lists the layers.
        CheckpointError: the weights are missing, broken, or do not fit.
        RuntimeError: a package that reading the weights takes is not installed.
    """

    def __init__(self, config: PerceptualLossConfig) -> None:
        super().__init__()
        one_of("loss.perceptual", "network", config.network, ARCHITECTURES)
        one_of("loss.perceptual", "criterion", config.criterion, ("l1", "l2"))
        self.config = config
        self.network: FeatureNetwork | None = None
        architecture = ARCHITECTURES[config.network]
        given = dict(config.layers or architecture.layers)
        check_layers("loss.perceptual.layers", architecture, given)
        valid = all(0 <= weight < math.inf for weight in given.values())
        self.layers = {name: float(weight) for name, weight in given.items() if weight}
        if not valid or not self.layers:
            raise ValueError(
                f"loss.perceptual.layers: expected weights >= 0, not all 0, got {given}"
            )
        self._criterion = CRITERIA[config.criterion]
        if config.weight > 0 or config.style_weight > 0:
            weights = load_weights(config.network, config.weights)
            self.network = FeatureNetwork(architecture, weights, self.layers)

    def forward(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Compare pictures.

        Args:
            output: RGB in 0..1, floating-point [B, 3, H, W]; gradients flow to it.
            target: of the same shape; without gradients.

        Returns:
            ``"perceptual"`` and ``"style"``, float32 numbers, not yet multiplied by the settings'
            ``weight`` and ``style_weight``; each only if that is above 0.

        Raises:
            TypeError: an argument is not a floating-point tensor.
            ValueError: shapes do not fit each other or the network.
        """
        for name, pictures in (("output", output), ("target", target)):
            check_images("PerceptualLoss", name, pictures, 3)
        output, target = wide_pair("PerceptualLoss", ("output", "target"), output, target)
        if self.network is None:
            return {}
        with torch.no_grad():
            wanted = self.network(target)
        features = self.network(output)
        losses = {}
        if self.config.weight > 0:
            losses["perceptual"] = self._sum(features, wanted)
        if self.config.style_weight > 0:
            with torch.no_grad():
                wanted = {name: gram_matrix(feature) for name, feature in wanted.items()}
            grams = {name: gram_matrix(feature) for name, feature in features.items()}
            losses["style"] = self._sum(grams, wanted)
        return losses

    def _sum(self, features: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
        names = ("output", "target")
        terms = [
            weight * self._criterion(*wide_pair(name, names, features[name], wanted[name]))
            for name, weight in self.layers.items()
        ]
        return torch.stack(terms).sum()


def gram_matrix(features: Tensor) -> Tensor:
    """Return the products of all pairs of channels, summed over the pixels, over C * H * W.

    Args:
        features: [B, C, H, W].

    Returns:
        [B, C, C] in float32 (float64 for float64), under autocast too.
    """
    batch, channels, height, width = features.shape
    rows = features if features.dtype == torch.float64 else features.float()
    rows = rows.reshape(batch, channels, height * width)
    with torch.autocast(features.device.type, enabled=False):
        return torch.bmm(rows, rows.transpose(1, 2)) / (channels * height * width)
