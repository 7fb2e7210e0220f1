"""The networks in plain PyTorch, for tracing: tensors in, tensors out, no operator of ours.

`DASR.forward` would be traced as well, but what it does about memory formats and batches becomes
conditions on sizes, so that the result refuses pictures of 1 or 2 pixels, and batches of 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..dasr import DASR
from ._common import Model, channels, frozen
from ._interface import Interface

_SLOPE = 0.1
_P_SLOPE = 0.2


class InferenceModule(nn.Module):
    """Maps ``lr``, or ``lr`` and ``degradation``, to the outputs that the interface asks for.

    Args:
        model: the networks; they are copied.
        interface: inputs, outputs and types, as in `export_onnx`.
        device: of the copy.
        fold_batch: a free batch becomes groups of one convolution; else all experts run on each
            picture, for compilers that do not take a free number of groups.
    """

    def __init__(
        self,
        model: Model,
        interface: Interface,
        device: torch.device | str = "cpu",
        fold_batch: bool = True,
    ) -> None:
        super().__init__()
        self.network = frozen(model, device)
        self.interface = interface
        self.fold_batch = fold_batch
        if interface.half:
            generator = self.network.net_g if isinstance(model, DASR) else self.network
            generator.half()

    def forward(
        self, lr: Tensor, degradation: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Magnify ``lr`` [B, C, H, W], 0..1, float32; see the class."""
        interface, weights = self.interface, None
        if isinstance(self.network, DASR):
            if degradation is None:
                degradation = self._predict(lr)
            if interface.predictor_only:
                return degradation
            weights = self.network.net_p.MappingNet(degradation)
        sr = self._magnify(lr, weights)
        if interface.clip:
            sr = sr.clamp(0, 1)
        return (sr, degradation) if interface.degradation_output else sr

    def example(self, batch: int) -> dict[str, Tensor]:
        """Return arguments to trace with."""
        device = next(self.parameters()).device
        arguments = {"lr": torch.rand(batch, channels(self.network), 24, 20, device=device)}
        if self.interface.degradation_input:
            num_params = self.network.net_p.config["num_params"]
            arguments["degradation"] = torch.rand(batch, num_params, device=device)
        return arguments

    def _predict(self, lr: Tensor) -> Tensor:
        features = lr
        for layer in self.network.net_p.ConvNet:
            features = F.conv2d(features, layer.weight, layer.bias, layer.stride, layer.padding)
            features = F.leaky_relu(features, _P_SLOPE)
        return features.mean((2, 3))

    def _magnify(self, lr: Tensor, weights: Tensor | None) -> Tensor:
        network = self.network.net_g if isinstance(self.network, DASR) else self.network
        features = lr.half() if self.interface.half else lr
        features = F.leaky_relu(self._conv(network.conv_first, features, weights), _SLOPE)
        for block in network.body:
            inner = F.relu(self._conv(block.conv1, features, weights))
            features = features + self._conv(block.conv2, inner, weights)
        upconvs = (network.upconv1, network.upconv2) if network.upscale == 4 else (network.upconv1,)
        for upconv in upconvs:
            features = F.leaky_relu(self._conv(upconv, features, weights), _SLOPE)
            features = F.pixel_shuffle(features, 2 if len(upconvs) == 2 else network.upscale)
        features = F.leaky_relu(self._conv(network.conv_hr, features, weights), _SLOPE)
        features = self._conv(network.conv_last, features, weights)
        if self.interface.half:
            features = features.float()
        scale = float(network.upscale)
        enlarged = F.interpolate(lr, scale_factor=scale, mode="bilinear", align_corners=False)
        return features + enlarged

    def _conv(self, layer: nn.Module, features: Tensor, weights: Tensor | None) -> Tensor:
        if weights is None:
            return F.conv2d(features, layer.weight, layer.bias, padding=1)
        # Groups of one channel are a depthwise convolution: another program than one group is.
        fold = self.fold_batch and 1 not in layer.weight.shape[1:3]
        if self.interface.dynamic_batch and not fold:
            return self._conv_of_all_experts(layer, features, weights)
        experts, biases = layer.weight.flatten(1), layer.bias
        if self.interface.half:
            # Mixed in float32 and rounded once, as dasr_ops.dynamic_conv2d does.
            experts, biases = experts.float(), biases.float()
        kernel, bias = weights @ experts, weights @ biases
        if self.interface.half:
            kernel, bias = kernel.half(), bias.half()
        _, out_channels, in_channels, *size = layer.weight.shape
        if not self.interface.dynamic_batch:
            kernel = kernel.reshape(out_channels, in_channels, *size)
            return F.conv2d(features, kernel, bias[0], padding=1)
        batch = features.shape[0]
        output = F.conv2d(
            features.flatten(0, 1).unsqueeze(0),
            kernel.reshape(batch * out_channels, in_channels, *size),
            bias.flatten(),
            padding=1,
            groups=batch,
        )
        return output.squeeze(0).unflatten(0, (batch, out_channels))

    def _conv_of_all_experts(self, layer: nn.Module, features: Tensor, weights: Tensor) -> Tensor:
        weights = weights.to(features.dtype)
        scales = weights[:, :, None, None].split(1, 1)
        scaled = torch.cat([features * scale for scale in scales], 1)
        kernel = layer.weight.transpose(0, 1).flatten(1, 2)  # [O, K * I, 3, 3]
        bias = weights @ layer.bias
        return F.conv2d(scaled, kernel, padding=1) + bias[:, :, None, None]
