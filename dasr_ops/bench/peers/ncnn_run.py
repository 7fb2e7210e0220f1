"""Runs a network of ncnn layer by layer, as its file says: slow, and a check for faster ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .ncnn import Layer, NcnnError

_NEAREST, _BILINEAR, _BICUBIC = 1, 2, 3


@torch.no_grad()
def run_network(layers: Sequence[Layer], input: Tensor) -> Tensor:
    """Compute the output of a network that has one input and one output.

    Args:
        layers: from `ncnn.read_network`.
        input: [B, C, H, W].

    Returns:
        What the last layer writes.

    Raises:
        NcnnError: a layer is of a kind that is not known here, or reads what no layer has written.
    """
    blobs: dict[str, Tensor] = {}
    output = input
    for layer in layers:
        missing = [name for name in layer.inputs if name not in blobs]
        if missing:
            raise NcnnError(f"{layer.name}: reads {missing[0]!r}, which no layer before it writes")
        results = _run(layer, [blobs[name] for name in layer.inputs], input)
        blobs.update(zip(layer.outputs, results, strict=True))
        output = results[-1]
    return output


def _run(layer: Layer, inputs: list[Tensor], image: Tensor) -> list[Tensor]:
    match layer.kind:
        case "Input":
            return [image] * len(layer.outputs)
        case "Split":
            return inputs * len(layer.outputs)
        case "Concat" if layer.integer(0) == 0:
            return [torch.cat(inputs, 1)]
        case "Convolution":
            return [_convolve(layer, inputs[0])]
        case "PReLU":
            return [F.prelu(inputs[0], layer.weight)]
        case "Eltwise" if layer.integer(0) == 1:
            factors = layer.array(1) or [1.0] * len(inputs)
            return [sum(f * x for f, x in zip(factors, inputs, strict=True))]
        case "BinaryOp" if layer.integer(0) == 0 and len(inputs) == 2:
            return [inputs[0] + inputs[1]]
        case "PixelShuffle" if layer.integer(1) == 0:
            return [F.pixel_shuffle(inputs[0], layer.integer(0, 1))]
        case "Interp":
            return [_resize(layer, inputs[0])]
    raise NcnnError(f"{layer.name}: layers {layer.kind} {layer.params} are not known here")


def _convolve(layer: Layer, input: Tensor) -> Tensor:
    if layer.weight.shape[1] != input.shape[1]:
        raise NcnnError(
            f"{layer.name}: expected {layer.weight.shape[1]} input channels, got {input.shape[1]}"
        )
    dilation = (layer.integer(12, layer.integer(2, 1)), layer.integer(2, 1))
    stride = (layer.integer(13, layer.integer(3, 1)), layer.integer(3, 1))
    padding = (layer.integer(14, layer.integer(4)), layer.integer(4))
    output = F.conv2d(input, layer.weight, layer.bias, stride, padding, dilation)
    match layer.integer(9):
        case 0:
            return output
        case 1:
            return F.relu(output)
        case 2:
            return F.leaky_relu(output, layer.array(10)[0])
    raise NcnnError(f"{layer.name}: activation {layer.integer(9)} is not known here")


def _resize(layer: Layer, input: Tensor) -> Tensor:
    factors = (layer.number(1, 1.0), layer.number(2, 1.0))
    mode = {_NEAREST: "nearest", _BILINEAR: "bilinear", _BICUBIC: "bicubic"}.get(layer.integer(0))
    if mode is None:
        raise NcnnError(f"{layer.name}: way {layer.integer(0)} to resize is not known here")
    align = None if mode == "nearest" else bool(layer.integer(6))
    return F.interpolate(input, scale_factor=factors, mode=mode, align_corners=align)
