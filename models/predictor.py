"""The degradation predictor P of DASR: what happened to an image, and how to mix the experts.

Liang, Zeng, Zhang, "Efficient and Degradation-Adaptive Network for Real-World Image
Super-Resolution", ECCV 2022.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dasr_ops import FusedConv2d

from ._checks import check_images, check_positive_int, check_rows, kaiming_normal_

_SLOPE = 0.2
_HIDDEN = 15
_DETAIL_GAIN = 5.0
"""Photographs shrunk to a quarter have a deviation of 0.15 to 0.2 after a random first filter."""


class Prediction(NamedTuple):
    """What P says about a batch of B images."""

    v: Tensor
    """Degradation vectors, [B, num_params]; each entry is trained on 0..1."""
    weights: Tensor
    """Mixing weights of the K experts, [B, K]; any real numbers."""


class Degradation_Predictor(nn.Module):
    """P: six 5x5 convolutions, global average pooling to v, two linear layers to mixing weights.

    Args:
        in_nc: channels of the input.
        nf: channels of the features.
        num_params: length of v, 33 in DASR.
        num_networks: K, the number of experts.

    Attributes:
        config: the arguments above by name.

    Raises:
        TypeError: an argument is not an int.
        ValueError: an argument is out of range.
    """

    halo = 16
    """LR pixels around a pixel that the feature at it depends on."""
    stride = 2
    """LR pixels from one feature to the next."""

    def __init__(
        self, in_nc: int = 3, nf: int = 64, num_params: int = 33, num_networks: int = 5
    ) -> None:
        super().__init__()
        self.config = {
            "in_nc": in_nc,
            "nf": nf,
            "num_params": num_params,
            "num_networks": num_networks,
        }
        for name, value in self.config.items():
            check_positive_int(type(self).__name__, name, value)
        # Even numbers only: in the official files the activations between them are modules.
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = (in_nc, nf, nf, nf, nf, nf, num_params)
        for index in range(6):
            stride = self.stride if index == 3 else 1
            layers[str(2 * index)] = FusedConv2d(
                channels[index],
                channels[index + 1],
                5,
                stride=stride,
                padding=2,
                activation="leaky_relu",
                negative_slope=_SLOPE,
            )
        self.ConvNet = nn.Sequential(layers)
        self.MappingNet = nn.Sequential(
            nn.Linear(num_params, _HIDDEN), nn.Linear(_HIDDEN, num_networks)
        )
        self.reset_parameters()

    def reset_parameters(self, v: Tensor | None = None) -> None:
        """Initialise so that training begins with what P is to see, and with harmless weights.

        What degrades a picture shows in how much fine detail is left and what it looks like, hardly
        in brightness, which is most of the input's variance. So the filters of the first layer have
        mean 0 over each input channel and a gain that brings detail to the order of 1; the later
        ones have mean 0 over all inputs, since what comes out of an activation is mostly above 0.
        From filters with means, P stays a constant for thousands of steps.

        Mixing weights sum to 1 for every image and yet differ between images: the rows of the last
        layer are random minus their mean over the K experts and its bias is 1/K, so that whatever
        its input, the sum of its outputs is 1. A dynamic network that starts from a static one then
        computes what that one does, and its experts part in the first step.

        Args:
            v: [num_params], what P says of any picture at first, about: best the mean of the
                vectors it is trained on; default: near 0.

        Raises:
            ValueError: ``v`` is of another shape.
        """
        count = self.config["num_params"]
        if v is not None and v.shape != (count,):
            raise ValueError(f"reset_parameters: v: expected [{count}], got {list(v.shape)}")
        convolutions = [layer for layer in self.ConvNet if isinstance(layer, nn.Conv2d)]
        for layer in convolutions:
            is_first, is_last = layer is convolutions[0], layer is convolutions[-1]
            kaiming_normal_(layer.weight, _SLOPE)
            nn.init.zeros_(layer.bias)
            if layer.weight.is_meta:
                continue
            with torch.no_grad():
                inputs = (2, 3) if is_first else (1, 2, 3)
                layer.weight.sub_(layer.weight.mean(inputs, keepdim=True))
                if is_first:
                    layer.weight.mul_(_DETAIL_GAIN)
                elif is_last and v is not None:
                    layer.bias.copy_(v)
        first, last = self.MappingNet
        if last.weight.is_meta:  # as in kaiming_normal_
            return
        first.reset_parameters()
        nn.init.kaiming_uniform_(last.weight, a=math.sqrt(5))
        with torch.no_grad():
            last.weight.sub_(last.weight.mean(0, keepdim=True))
            last.bias.fill_(1 / self.config["num_networks"])

    def forward(self, input: Tensor) -> Prediction:
        """Predict degradation and mixing weights.

        Args:
            input: [B, in_nc, H, W], 0..1, any size.

        Returns:
            v [B, num_params] and mixing weights [B, K], of the type of ``input``.

        Raises:
            TypeError: ``input`` is not a floating-point tensor.
            ValueError: its shape does not fit.
        """
        check_images("Degradation_Predictor", "input", input, self.config["in_nc"])
        return self._predict(self._features_of(input).mean((2, 3)))

    def mix(self, v: Tensor) -> Tensor:
        """Map degradation vectors to mixing weights.

        Args:
            v: [B, num_params].

        Returns:
            [B, K].

        Raises:
            TypeError: ``v`` is not a floating-point tensor.
            ValueError: its shape does not fit.
        """
        batch = v.shape[0] if isinstance(v, Tensor) and v.dim() else 0
        check_rows("Degradation_Predictor", "v", v, batch, self.config["num_params"])
        return self.MappingNet(v)

    def predict_in_strips(self, input: Tensor, max_pixels: int = 1 << 20) -> Prediction:
        """Predict as `forward` does, to float rounding, in bounded memory.

        The average that v consists of runs over the whole image, so an image of 24 megapixels would
        need several features maps of 6 GB. Here strips are cut with the context that their features
        depend on and aligned to the stride, and the sums of their features are added up.

        Args:
            input: [B, in_nc, H, W], 0..1, any size.
            max_pixels: pixels of an image that are processed at a time, context included, but at
                least 64x64. Where strips would be too thin, blocks are cut.

        Returns:
            v [B, num_params] and mixing weights [B, K], of the type of ``input``.

        Raises:
            TypeError: ``input`` is not a floating-point tensor, or ``max_pixels`` not an int.
            ValueError: the shape does not fit, or ``max_pixels`` is less than 1.
        """
        check_images("predict_in_strips", "input", input, self.config["in_nc"])
        check_positive_int("predict_in_strips", "max_pixels", max_pixels)
        height, width = input.shape[2:]
        if height * width <= max_pixels:
            return self(input)
        sums: Tensor | float = 0.0
        for rows, columns in self._blocks(height, width, max_pixels):
            top, bottom = max(rows.start - self.halo, 0), min(rows.stop + self.halo, height)
            left, right = max(columns.start - self.halo, 0), min(columns.stop + self.halo, width)
            features = self._features_of(input[:, :, top:bottom, left:right])
            kept_rows = _features(rows, top, self.stride)
            kept_columns = _features(columns, left, self.stride)
            kept = features[:, :, kept_rows, kept_columns]
            sums = sums + kept.sum((2, 3), dtype=_sum_dtype(kept))
        count = -(-height // self.stride) * -(-width // self.stride)
        return self._predict((sums / count).to(input.dtype))

    def _features_of(self, input: Tensor) -> Tensor:
        # Layers keep the format of their input, and all devices are fastest in this one.
        return self.ConvNet(input.contiguous(memory_format=torch.channels_last))

    def _predict(self, v: Tensor) -> Prediction:
        return Prediction(v, self.MappingNet(v))

    def _blocks(self, height: int, width: int, max_pixels: int) -> Iterator[tuple[range, range]]:
        """Cut the image into ranges of rows and columns that begin at multiples of the stride."""
        side = max(math.isqrt(max_pixels), 4 * self.halo)
        rows, columns = min(side, height), min(side, width)
        strip = max_pixels // width
        # Strips of the whole width repeat rows only; narrow ones repeat more than blocks do.
        if self._waste(strip) <= self._waste(side) ** 2:
            rows, columns = strip, width
        for y in _steps(height, rows, self.halo, self.stride):
            for x in _steps(width, columns, self.halo, self.stride):
                yield y, x

    def _waste(self, length: int) -> float:
        """Return how many pixels are computed for each that is kept, along one dimension."""
        kept = length - 2 * self.halo
        return length / kept if kept >= self.stride else math.inf


def _steps(size: int, length: int, halo: int, stride: int) -> Iterator[range]:
    """Cut ``size`` so that no piece is longer than ``length`` with its halo on both sides."""
    if size <= length:
        yield range(size)
        return
    step = (length - 2 * halo) // stride * stride
    for start in range(0, size, step):
        yield range(start, min(start + step, size))


def _features(pixels: range, origin: int, stride: int) -> slice:
    """Return the features of a block beginning at ``origin`` that belong to ``pixels``."""
    return slice((pixels.start - origin) // stride, -(-(pixels.stop - origin) // stride))


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
