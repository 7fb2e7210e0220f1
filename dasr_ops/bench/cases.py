"""What is measured: layers, networks, and the selections of them.

Shapes are those of DASR (training on patches, inference on pictures) and of the networks that
dynamic convolution was published with: ResNets ("Dynamic Convolution", Chen et al., CVPR 2020;
"CondConv", Yang et al., NeurIPS 2019) and MobileNetV2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

Selection = Literal["quick", "default", "full"]
SELECTIONS: tuple[Selection, ...] = ("quick", "default", "full")

INFERENCE = ("forward",)
TRAINING = ("backward", "forward+backward")

DTYPES = {
    "float32": torch.float32,
    "tfloat32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Name of the arithmetic: type of the tensors. Only CUDA devices have ``tfloat32``."""

MEMORY_FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Layer:
    """One convolution of a network with what follows it; the padding keeps the size.

    Attributes:
        group: the network it belongs to.
        name: its place there.
        batch: images.
        in_channels: I.
        out_channels: O.
        height: of the input.
        width: of the input.
        kernel_size: side of the kernel.
        stride: in both directions.
        groups: divides I and O.
        activation: None, ``"relu"`` or ``"leaky_relu"`` (slope 0.1).
        residual: whether a tensor of the result's shape is added.
        upscale_factor: of a pixel shuffle.
        experts: K.
    """

    group: str
    name: str
    batch: int
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel_size: int = 3
    stride: int = 1
    groups: int = 1
    activation: str | None = None
    residual: bool = False
    upscale_factor: int = 1
    experts: int = 5

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """Shape of the result, after the pixel shuffle."""
        r = self.upscale_factor
        height, width = (-(-side // self.stride) for side in (self.height, self.width))
        return self.batch, self.out_channels // (r * r), height * r, width * r

    @property
    def kernel_shape(self) -> tuple[int, int, int, int]:
        """Shape of one expert."""
        side = self.kernel_size
        return self.out_channels, self.in_channels // self.groups, side, side

    def __str__(self) -> str:
        sizes = f"{self.in_channels}->{self.out_channels} {self.kernel_size}x{self.kernel_size}"
        extras = [f"/{self.stride}"] if self.stride > 1 else []
        if self.groups > 1:
            depthwise = self.groups == self.in_channels
            extras.append(" depthwise" if depthwise else f" groups {self.groups}")
        return f"{sizes}{''.join(extras)}, {self.height}x{self.width}"


@dataclass(frozen=True)
class Network:
    """A whole network on a batch of pictures.

    Attributes:
        group: what for.
        name: ``"generator"`` (G alone) or ``"dasr"`` (P and G).
        batch: images.
        height: of the low-resolution input.
        width: of it.
        experts: K.
        features: channels of the body.
        blocks: residual blocks.
    """

    group: str
    name: Literal["generator", "dasr"]
    batch: int
    height: int
    width: int
    experts: int = 5
    features: int = 64
    blocks: int = 16

    def __str__(self) -> str:
        title = {"generator": "G x4", "dasr": "P + G x4"}[self.name]
        return f"{title}, {self.height}x{self.width}"


@dataclass(frozen=True)
class Case:
    """One row of a report: what runs, which passes of it, in which numbers and layout.

    Attributes:
        subject: the layer or network.
        mode: the passes that are timed together: `INFERENCE` or `TRAINING`.
        dtype: a key of `DTYPES`.
        memory_format: a key of `MEMORY_FORMATS`.
        peers: formulations to measure; None for all.
    """

    subject: Layer | Network
    mode: tuple[str, ...]
    dtype: str = "float32"
    memory_format: str = "NCHW"
    peers: tuple[str, ...] | None = None

    @property
    def level(self) -> str:
        """``"op"`` or ``"network"``."""
        return "op" if isinstance(self.subject, Layer) else "network"

    @property
    def label(self) -> str:
        """The case without its pass, unique within a report."""
        subject = self.subject
        parts = [f"{subject.group}: {subject.name}", f"{subject.batch} x {subject}"]
        parts += [f"K={subject.experts}", self.dtype, self.memory_format]
        return "/".join(parts).replace(" ", "_")

    def identifier(self, timed: str) -> str:
        """The name of one row: the case and the pass ``timed``."""
        return f"{self.label}/{timed}"


def _dasr(group: str, batch: int, height: int, width: int) -> dict[str, Layer]:
    """Return the kinds of layers of the x4 generator on pictures of one size."""

    def layer(name: str, ins: int, outs: int, zoom: int, **options: object) -> Layer:
        return Layer(group, name, batch, ins, outs, height * zoom, width * zoom, **options)

    leaky = {"activation": "leaky_relu"}
    return {
        "first": layer("conv_first", 3, 64, 1, **leaky),
        "body": layer("body conv1", 64, 64, 1, activation="relu"),
        "body2": layer("body conv2", 64, 64, 1, residual=True),
        "up1": layer("upconv1", 64, 256, 1, upscale_factor=2, **leaky),
        "up2": layer("upconv2", 64, 256, 2, upscale_factor=2, **leaky),
        "hr": layer("conv_hr", 64, 64, 4, **leaky),
        "last": layer("conv_last", 64, 3, 4, residual=True),
    }


_PATCHES = _dasr("DASR training", 6, 64, 64)
_TILES = _dasr("DASR inference", 1, 128, 128)
_FRAMES = _dasr("DASR inference", 1, 270, 480)
_PICTURES = _dasr("DASR inference", 1, 512, 512)


def _classic(group: str, name: str, ins: int, outs: int, side: int, **options: int) -> Layer:
    return Layer(group, name, 16, ins, outs, side, side, experts=4, **options)


_RESNET = [
    _classic("ResNet", "stage 1", 64, 64, 56),
    _classic("ResNet", "stage 2", 128, 128, 28),
    _classic("ResNet", "stage 3", 256, 256, 14),
    _classic("ResNet", "stage 4", 512, 512, 7),
    _classic("ResNet", "stage 2 entry", 64, 128, 56, stride=2),
    _classic("ResNet", "stage 1 reduce", 256, 64, 56, kernel_size=1),
    _classic("ResNet", "stage 1 expand", 64, 256, 56, kernel_size=1),
    _classic("ResNet", "stage 3 reduce", 1024, 256, 14, kernel_size=1),
    _classic("ResNeXt", "stage 1", 128, 128, 56, groups=32),
]
_MOBILENET = [
    _classic("MobileNetV2", "depthwise", 144, 144, 56, groups=144),
    _classic("MobileNetV2", "depthwise entry", 144, 144, 56, stride=2, groups=144),
    _classic("MobileNetV2", "depthwise", 384, 384, 14, groups=384),
    _classic("MobileNetV2", "depthwise", 960, 960, 7, groups=960),
    _classic("MobileNetV2", "expand", 24, 144, 56, kernel_size=1),
    _classic("MobileNetV2", "expand", 96, 576, 14, kernel_size=1),
    _classic("MobileNetV2", "project", 384, 64, 14, kernel_size=1),
]
_CLASSIC = [*_RESNET, *_MOBILENET]


def layers(network: Network) -> list[Layer]:
    """Return the convolutions of a network; those of P as layers with a single expert."""
    kinds = _dasr(network.group, network.batch, network.height, network.width)
    features, blocks = network.features, network.blocks
    names = ["first", *("body", "body2") * blocks, "up1", "up2", "hr", "last"]

    def scaled(channels: int) -> int:
        return channels // 64 * features if channels >= 64 else channels

    found = [
        replace(
            kinds[name],
            in_channels=scaled(kinds[name].in_channels),
            out_channels=scaled(kinds[name].out_channels),
            experts=network.experts,
        )
        for name in names
    ]
    if network.name == "dasr":
        height, width = network.height, network.width
        channels = [3, *[64] * 5, 33]
        for i, (ins, outs) in enumerate(itertools.pairwise(channels)):
            stride = 2 if i == 3 else 1
            found.append(
                Layer("P", f"{i}", network.batch, ins, outs, height, width, 5, stride, experts=1)
            )
            height, width = -(-height // stride), -(-width // stride)
    return found


_TRAINING_NETWORK = Network("DASR training", "generator", 6, 64, 64)
_NETWORKS = [
    Network("DASR inference", "dasr", 1, 128, 128),
    Network("DASR inference", "generator", 1, 128, 128),
    Network("DASR inference", "generator", 1, 270, 480),
    Network("DASR inference", "generator", 1, 512, 512),
]


def cases(selection: Selection, device_type: str) -> list[Case]:
    """Return the cases of a selection, the most telling first.

    Args:
        selection: ``"quick"``: about a minute; ``"default"``: at most 5 minutes on 2 CPU cores, 3
            on a GPU; ``"full"``: everything.
        device_type: ``"cpu"`` or ``"cuda"``: a GPU also gets the narrow types.

    Raises:
        ValueError: there is no such selection.
    """
    chosen = {"quick": _quick, "default": _default, "full": _full}.get(selection)
    if chosen is None:
        raise ValueError(f"selection: expected one of {SELECTIONS}, got {selection!r}")
    return list(dict.fromkeys(chosen(device_type)))


def _quick(device_type: str) -> Iterator[Case]:
    dtype = "bfloat16" if device_type == "cuda" else "float32"
    layers = [_PATCHES["first"], _PATCHES["up1"], _RESNET[1], _RESNET[5], _MOBILENET[0]]
    found = [
        *_both([_PATCHES["body"]], [dtype], ["channels_last"]),
        Case(_NETWORKS[0], INFERENCE, dtype, "channels_last"),
        *_both(layers, [dtype], ["channels_last"]),
        *_forward([_TILES["last"]], [dtype], ["channels_last"]),
    ]
    return _with_few_peers(found)


def _default(device_type: str) -> Iterator[Case]:
    cuda = device_type == "cuda"
    dtypes = ["bfloat16", "tfloat32", "float32"] if cuda else ["float32"]
    # On a CPU a round of these takes up to seconds.
    reduced = iter if cuda else _with_few_peers
    for dtype in dtypes:
        yield from _both([_PATCHES["body"]], [dtype], MEMORY_FORMATS)
    for dtype in dtypes[:2]:
        yield from reduced([Case(_TRAINING_NETWORK, TRAINING, dtype, "channels_last")])
        yield from reduced(
            Case(network, INFERENCE, dtype, "channels_last") for network in _NETWORKS[:2]
        )
    layers = [_PATCHES["first"], _RESNET[1]]
    heavy = [_PATCHES["up1"], _RESNET[2], _RESNET[5], _MOBILENET[0]]
    yield from _both(layers, dtypes[:1], ["channels_last"])
    yield from reduced(_both(heavy, dtypes[:1], ["channels_last"]))
    yield from reduced(_forward([_TILES["last"]], dtypes[:1], ["channels_last"]))
    if cuda:
        yield Case(_NETWORKS[3], INFERENCE, "bfloat16", "channels_last")


def _with_few_peers(found: Iterable[Case]) -> Iterator[Case]:
    """Keep the formulations that say most."""
    kept = {
        INFERENCE: ("dasr_ops", "official", "official, compiled", "static"),
        TRAINING: ("dasr_ops", "official", "static"),
    }
    return (replace(case, peers=kept[case.mode]) for case in found)


def _full(device_type: str) -> Iterator[Case]:
    yield from (replace(case, peers=None) for case in _default(device_type))
    dtypes = ["float32", "bfloat16", "float16"]
    if device_type == "cuda":
        dtypes.insert(0, "tfloat32")
    layers = [*_PATCHES.values(), *_CLASSIC]
    yield from _both(layers, ["float32"], MEMORY_FORMATS)
    variants = [replace(_PATCHES["body"], experts=k) for k in (1, 4, 8)]
    variants += [replace(_RESNET[1], experts=k) for k in (1, 5, 8)]
    yield from _both(variants, dtypes, ["channels_last"])
    for pictures in (_TILES, _FRAMES, _PICTURES):
        yield from _forward(pictures.values(), ["float32"], MEMORY_FORMATS)
    yield from _both(layers, dtypes, MEMORY_FORMATS)
    for pictures in (_TILES, _FRAMES, _PICTURES):
        yield from _forward(pictures.values(), dtypes, ["channels_last"])
    for dtype in dtypes:
        for memory_format in MEMORY_FORMATS:
            yield Case(_TRAINING_NETWORK, TRAINING, dtype, memory_format)
            for network in _NETWORKS:
                yield Case(network, INFERENCE, dtype, memory_format)


def _both(layers: Iterable[Layer], dtypes: Sequence[str], formats: Iterable[str]) -> Iterator[Case]:
    for memory_format in formats:
        for layer in layers:
            for dtype in dtypes:
                for mode in (INFERENCE, TRAINING):
                    yield Case(layer, mode, dtype, memory_format)


def _forward(
    layers: Iterable[Layer], dtypes: Sequence[str], formats: Iterable[str]
) -> Iterator[Case]:
    return (case for case in _both(layers, dtypes, formats) if case.mode == INFERENCE)


def work(layer: Layer, timed: str) -> tuple[float, float]:
    """Return the least arithmetic and traffic of a pass of a layer.

    Multiplications and additions of direct convolution, and of mixing the experts; every tensor
    read or written once, what is fused never stored. The kernels of the samples stay on the chip.

    Args:
        layer: the layer.
        timed: ``"forward"``, ``"backward"`` or ``"forward+backward"``.

    Returns:
        Operations, and tensor elements moved.
    """
    kernel = math.prod(layer.kernel_shape)
    inputs = layer.batch * layer.in_channels * layer.height * layer.width
    outputs = math.prod(layer.output_shape)
    experts = layer.experts * (kernel + layer.out_channels)
    pixels = math.prod(layer.output_shape) // layer.out_channels
    convolution = 2.0 * pixels * kernel
    mixing = 2.0 * layer.batch * experts
    residual = outputs if layer.residual else 0
    forward = (convolution + mixing, inputs + experts + outputs + residual)
    # Gradients of input and kernels are a convolution each; experts and routing a mixing each. The
    # activation's sign is read from the output.
    signs = outputs if layer.activation is not None else 0
    backward = (
        2 * convolution + 3 * mixing,
        2 * inputs + 2 * experts + outputs + signs,
    )
    passes = {
        "forward": forward,
        "backward": backward,
        "forward+backward": (forward[0] + backward[0], forward[1] + backward[1]),
    }
    return passes[timed]
