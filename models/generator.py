"""The generator G of DASR, and the static network that it starts from.

Liang, Zeng, Zhang, "Efficient and Degradation-Adaptive Network for Real-World Image
Super-Resolution", ECCV 2022; the static network is the SRResNet of Ledig et al., CVPR 2017, in the
variant without batch normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dasr_ops import DynamicConv2d
from dasr_ops.conv import Mixed, mix_layers, mix_once
from dasr_ops.functional import best_memory_format, memory_format

from ._checks import check_images, check_positive_int, check_rows, kaiming_normal_
from .strips import Stage, Tail, reach, run_tail

SCALES = (2, 3, 4)
"""Magnifications the networks exist for."""

_SLOPE = 0.1
_LEAKY = {"activation": "leaky_relu", "negative_slope": _SLOPE}


class SRResNet(nn.Module):
    """Static residual super-resolution network: G with one kernel per layer.

    Its state-dict keys are those of `MSRResNetDynamic`, its shapes those without the leading K.

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output; must equal ``num_in_ch``, for the input enlarged
            bilinearly is added to it.
        num_feat: channels of the features.
        num_block: residual blocks of two convolutions.
        upscale: magnification, 2, 3 or 4.

    Raises:
        TypeError: an argument is not an int.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 16,
        upscale: int = 4,
    ) -> None:
        super().__init__()
        self.config = _config(type(self).__name__, num_in_ch, num_out_ch, num_feat, num_block)
        self.config["upscale"] = _check_upscale(type(self).__name__, upscale)
        self.upscale = upscale
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.body = nn.ModuleList(_StaticBlock(num_feat) for _ in range(num_block))
        factors = _shuffle_factors(upscale)
        self.upconv1 = nn.Conv2d(num_feat, num_feat * factors[0] ** 2, 3, padding=1)
        if len(factors) > 1:
            self.upconv2 = nn.Conv2d(num_feat, num_feat * factors[1] ** 2, 3, padding=1)
        self.conv_hr = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, padding=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as `MSRResNetDynamic.reset_parameters` does."""
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d):
                kaiming_normal_(layer.weight, *_initialisation(name))
                nn.init.zeros_(layer.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Magnify images.

        Where nothing is to be differentiated, the layers behind the body run piece by piece, see
        `strips.run_tail`.

        Args:
            input: [B, num_in_ch, H, W], 0..1.

        Returns:
            [B, num_out_ch, H * upscale, W * upscale], of the type of ``input``, not clamped.

        Raises:
            TypeError: ``input`` is not a floating-point tensor.
            ValueError: its shape does not fit.
        """
        check_images("SRResNet", "input", input, self.config["num_in_ch"])
        output = F.leaky_relu(self.conv_first(input), _SLOPE)
        for block in self.body:
            output = block(output)
        return run_tail(self._tail(), output, _enlarge(input, self.upscale))

    def _tail(self) -> Tail:
        factors = _shuffle_factors(self.upscale)
        upconvs = [self.upconv1, self.upconv2] if len(factors) > 1 else [self.upconv1]
        return Tail(
            [
                *(_static_stage(layer, r) for layer, r in zip(upconvs, factors, strict=True)),
                _static_stage(self.conv_hr, 1),
            ],
            lambda features, enlarged: self.conv_last(features) + enlarged,
            [*upconvs, self.conv_hr, self.conv_last],
        )


class MSRResNetDynamic(nn.Module):
    """G: a residual network whose 3x3 convolutions are mixtures of K expert kernels.

    One vector of mixing weights per image serves all layers. Names of arguments, state-dict keys
    and shapes (``weight`` [K, O, I, 3, 3], ``bias`` [K, O]) are those of the official files.

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output; must equal ``num_in_ch``, for the input enlarged
            bilinearly is added to it.
        num_feat: channels of the features.
        num_block: residual blocks of two convolutions.
        num_models: K, the number of experts.
        upscale: magnification, 2, 3 or 4.

    Attributes:
        config: the arguments above by name.
        upscale: the magnification.
        num_models: K.
        recompute: gradient checkpointing: features within groups of residual blocks are computed
            again on the way back, which takes less memory and more time. False at first.

    Raises:
        TypeError: an argument is not an int.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 16,
        num_models: int = 5,
        upscale: int = 4,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.config = _config(name, num_in_ch, num_out_ch, num_feat, num_block)
        self.config["num_models"] = check_positive_int(name, "num_models", num_models)
        self.config["upscale"] = _check_upscale(name, upscale)
        self.upscale = upscale
        self.num_models = num_models
        self.recompute = False

        def conv(in_channels: int, out_channels: int, **fused: Any) -> DynamicConv2d:
            return DynamicConv2d(
                in_channels, out_channels, 3, padding=1, num_experts=num_models, **fused
            )

        self.conv_first = conv(num_in_ch, num_feat, **_LEAKY)
        self.body = nn.ModuleList(_DynamicBlock(num_feat, num_models) for _ in range(num_block))
        r1, *others = _shuffle_factors(upscale)
        self.upconv1 = conv(num_feat, num_feat * r1 * r1, upscale_factor=r1, **_LEAKY)
        self.upconv2: DynamicConv2d | None = None
        for r2 in others:
            self.upconv2 = conv(num_feat, num_feat * r2 * r2, upscale_factor=r2, **_LEAKY)
        self.conv_hr = conv(num_feat, num_feat, **_LEAKY)
        self.conv_last = conv(num_feat, num_out_ch)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise every expert by itself: Kaiming's normal distribution, biases 0.

        Kernels of residual blocks and of the last layer are scaled by 0.1, so that a fresh network
        returns about the input enlarged bilinearly.
        """
        for name, layer in self.named_modules():
            if isinstance(layer, DynamicConv2d):
                for expert in layer.weight:
                    kaiming_normal_(expert, *_initialisation(name))
                nn.init.zeros_(layer.bias)

    @classmethod
    def from_static(cls, static: SRResNet, num_models: int = 5) -> MSRResNetDynamic:
        """Start from a static network: every expert is a copy of its layer.

        With mixing weights that sum to 1, as a fresh `Degradation_Predictor` gives them, the result
        computes what ``static`` does.

        Args:
            static: the network to copy; its parameters are not shared.
            num_models: K.

        Returns:
            A network on the device and in the dtype of ``static``.

        Raises:
            TypeError: ``static`` is not an `SRResNet`.
        """
        if not isinstance(static, SRResNet):
            raise TypeError(
                f"from_static: static: expected an SRResNet, got {type(static).__name__}"
            )
        network = cls(num_models=num_models, **static.config)
        parameter = static.conv_first.weight
        network.to(device=parameter.device, dtype=parameter.dtype)
        source = static.state_dict()
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                tensor.copy_(source[name].expand_as(tensor))
        return network.train(static.training)

    def to_static(self, weights: Tensor) -> SRResNet:
        """Mix the experts for one vector of mixing weights into a static network.

        Args:
            weights: [K], or [1, K].

        Returns:
            A network that computes what this one does for images of these weights, on the device
            and in the dtype of this one.

        Raises:
            TypeError: ``weights`` is not a floating-point tensor.
            ValueError: its shape does not fit.
        """
        if isinstance(weights, Tensor) and weights.dim() == 1:
            weights = weights.unsqueeze(0)
        check_rows("to_static", "weights", weights, 1, self.num_models)
        config = {name: value for name, value in self.config.items() if name != "num_models"}
        network = SRResNet(**config)
        parameter = self.conv_first.weight
        network.to(device=parameter.device, dtype=parameter.dtype)
        source = self.state_dict()
        mixing = weights[0].to(parameter.device)
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                experts = source[name]
                tensor.copy_(torch.einsum("k,k...->...", mixing.to(experts.dtype), experts))
        return network.train(self.training)

    @property
    def receptive_field_radius(self) -> int:
        """LR pixels around an LR pixel that its ``upscale`` x ``upscale`` output pixels depend on.

        Tiles cut with this much context give the same output as the whole image: 35 for the
        official 16 blocks, whatever the magnification.
        """
        tail = (*_shuffle_factors(self.upscale), 1, 1)
        return reach(tail) + 2 * len(self.body) + 1

    def mix(self, weights: Tensor, dtype: torch.dtype | None = None) -> list[Mixed]:
        """Mix the experts of all layers once, for many images of the same weights, such as tiles.

        Args:
            weights: mixing weights [B, K].
            dtype: of the images; that of the parameters by default.

        Returns:
            What `forward` takes as ``mixed``; good until the parameters change.

        Raises:
            TypeError: ``weights`` is not a floating-point tensor, or ``dtype`` not such a type.
            ValueError: its shape does not fit.
        """
        batch = weights.shape[0] if isinstance(weights, Tensor) and weights.dim() else 0
        check_rows("mix", "weights", weights, batch, self.num_models)
        return mix_once(self._layers(), weights, dtype or self.conv_first.weight.dtype)

    def forward(
        self, input: Tensor, weights: Tensor, mixed: Sequence[Mixed | None] | None = None
    ) -> Tensor:
        """Magnify images, each with its own mixture of experts.

        Where nothing is to be differentiated, the layers behind the body run piece by piece, see
        `strips.run_tail`.

        Args:
            input: [B, num_in_ch, H, W], 0..1.
            weights: mixing weights [B, K], any real numbers.
            mixed: what `mix` has made of these weights, for images of this dtype; None to mix now.

        Returns:
            [B, num_out_ch, H * upscale, W * upscale], of the type of ``input``, not clamped;
            channels_last if ``input`` is.

        Raises:
            TypeError: an argument is not a floating-point tensor.
            ValueError: shapes or devices do not fit.
        """
        check_images("MSRResNetDynamic", "input", input, self.config["num_in_ch"])
        check_rows("MSRResNetDynamic", "weights", weights, input.shape[0], self.num_models)
        layers = self._layers()
        if mixed is None:
            mixed = mix_layers(layers, input, weights)
        elif len(mixed) != len(layers):
            raise ValueError(
                f"MSRResNetDynamic: mixed: expected what mix() returns for {len(layers)} layers, "
                f"got {len(mixed)}"
            )
        mixed = iter(mixed)
        output = self.conv_first(input, weights, mixed=next(mixed))
        output = output.contiguous(memory_format=best_memory_format(input))
        output = self._run_body(output, weights, mixed)
        output = run_tail(self._tail(weights, mixed), output, _enlarge(input, self.upscale))
        return output.contiguous(memory_format=memory_format(input))

    def _run_body(self, output: Tensor, weights: Tensor, mixed: Iterator[Mixed | None]) -> Tensor:
        blocks = [(block, next(mixed), next(mixed)) for block in self.body]
        if not (self.recompute and torch.is_grad_enabled()):
            for block, of_conv1, of_conv2 in blocks:
                output = block(output, weights, of_conv1, of_conv2)
            return output
        # About the root of their number in a group: as many groups are kept as blocks repeated.
        size = math.isqrt(len(blocks) - 1) + 1
        for start in range(0, len(blocks), size):

            def run(features: Tensor, group: list[Any] = blocks[start : start + size]) -> Tensor:
                for block, of_conv1, of_conv2 in group:
                    features = block(features, weights, of_conv1, of_conv2)
                return features

            output = checkpoint(run, output, use_reentrant=False)
        return output

    def _tail(self, weights: Tensor, mixed: Iterator[Mixed | None]) -> Tail:
        layers = self._tail_layers()
        *stages, (last, of_last) = zip(layers, mixed, strict=True)
        return Tail(
            [_dynamic_stage(layer, weights, of_layer) for layer, of_layer in stages],
            lambda features, enlarged: last(features, weights, enlarged, of_last),
            layers,
        )

    def _layers(self) -> list[DynamicConv2d]:
        """All dynamic layers, in the order in which `forward` calls them."""
        blocks = [conv for block in self.body for conv in (block.conv1, block.conv2)]
        return [self.conv_first, *blocks, *self._tail_layers()]

    def _tail_layers(self) -> list[DynamicConv2d]:
        upconvs = [conv for conv in (self.upconv1, self.upconv2) if conv is not None]
        return [*upconvs, self.conv_hr, self.conv_last]


class _StaticBlock(nn.Module):
    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.conv2 = nn.Conv2d(num_feat, num_feat, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        return input + self.conv2(F.relu(self.conv1(input)))


class _DynamicBlock(nn.Module):
    def __init__(self, num_feat: int, num_models: int) -> None:
        super().__init__()
        common = {"padding": 1, "num_experts": num_models}
        self.conv1 = DynamicConv2d(num_feat, num_feat, 3, activation="relu", **common)
        self.conv2 = DynamicConv2d(num_feat, num_feat, 3, **common)

    def forward(
        self, input: Tensor, weights: Tensor, mixed1: Mixed | None, mixed2: Mixed | None
    ) -> Tensor:
        output = self.conv1(input, weights, mixed=mixed1)
        return self.conv2(output, weights, input, mixed2)


def _static_stage(layer: nn.Conv2d, factor: int) -> Stage:
    def run(features: Tensor) -> Tensor:
        features = layer(features)
        if factor > 1:
            features = F.pixel_shuffle(features, factor)
        return F.leaky_relu(features, _SLOPE)

    return Stage(run, factor)


def _dynamic_stage(layer: DynamicConv2d, weights: Tensor, mixed: Mixed | None) -> Stage:
    return Stage(lambda features: layer(features, weights, mixed=mixed), layer.upscale_factor)


def _config(
    owner: str, num_in_ch: int, num_out_ch: int, num_feat: int, num_block: int
) -> dict[str, int]:
    config = {
        "num_in_ch": num_in_ch,
        "num_out_ch": num_out_ch,
        "num_feat": num_feat,
        "num_block": num_block,
    }
    for name, value in config.items():
        check_positive_int(owner, name, value)
    if num_in_ch != num_out_ch:
        raise ValueError(
            f"{owner}: num_out_ch: expected num_in_ch = {num_in_ch}, since the enlarged input is "
            f"added to the output, got {num_out_ch}"
        )
    return config


def _check_upscale(owner: str, upscale: Any) -> int:
    if check_positive_int(owner, "upscale", upscale) not in SCALES:
        raise ValueError(f"{owner}: upscale: expected one of {SCALES}, got {upscale}")
    return upscale


def _shuffle_factors(upscale: int) -> tuple[int, ...]:
    return (2, 2) if upscale == 4 else (upscale,)


def _initialisation(name: str) -> tuple[float, float]:
    """Return negative slope and scale of the initialisation of the layer called ``name``."""
    if name.startswith("body."):
        return 0.0, 0.1
    return _SLOPE, 0.1 if name == "conv_last" else 1.0


def _enlarge(input: Tensor, upscale: int) -> Tensor:
    return F.interpolate(input, scale_factor=upscale, mode="bilinear", align_corners=False)
