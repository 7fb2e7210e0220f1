"""The ways to write one dynamic convolution in PyTorch, ours among them.

Each formulation takes the tensors of a layer and returns its result, epilogue included. None of
them is handicapped: the peers are what a user would write, in the memory format of the input.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import FunctionType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import dasr_ops

from .cases import Layer

SLOPE = 0.1
"""Slope of the leaky ReLU of all layers."""

OURS = "dasr_ops"
OFFICIAL = "official"
COMPILED = "official, compiled"
STATIC = "static"


class Tensors(NamedTuple):
    """The arguments of a layer.

    Attributes:
        input: [B, I, H, W].
        weight: experts, [K, O, I/g, kh, kw].
        routing: [B, K].
        bias: [K, O].
        residual: of the result's shape, or None.
    """

    input: Tensor
    weight: Tensor
    routing: Tensor
    bias: Tensor
    residual: Tensor | None


Formulation = Callable[[Layer, Tensors], Tensor]
_COPIES = itertools.count()


def ours(layer: Layer, t: Tensors) -> Tensor:
    """`dasr_ops.dynamic_conv2d` with everything fused."""
    return dasr_ops.dynamic_conv2d(
        t.input,
        t.weight,
        t.routing,
        t.bias,
        layer.stride,
        layer.kernel_size // 2,
        groups=layer.groups,
        activation=layer.activation,
        negative_slope=SLOPE,
        residual=t.residual,
        upscale_factor=layer.upscale_factor,
    )


def official(layer: Layer, t: Tensors) -> Tensor:
    """The DASR code: experts mixed by `torch.mm`, the batch folded into the groups of a conv2d."""
    experts = t.weight.shape[0]
    weight = torch.mm(t.routing, t.weight.view(experts, -1))
    bias = torch.mm(t.routing, t.bias).view(-1)
    return _epilogue(layer, _grouped(layer, t.input, weight, bias), t.residual)


def condconv(layer: Layer, t: Tensors) -> Tensor:
    """As timm's CondConv2d: `torch.matmul`, the same conv2d, the samples permuted out of it."""
    batch = t.routing.shape[0]
    weight = torch.matmul(t.routing, t.weight.flatten(1))
    weight = weight.view(batch * layer.out_channels, *layer.kernel_shape[1:])
    bias = torch.matmul(t.routing, t.bias).view(-1)
    folded = t.input.reshape(1, -1, *t.input.shape[2:])
    groups = layer.groups * batch
    y = F.conv2d(folded, weight, bias, layer.stride, layer.kernel_size // 2, groups=groups)
    y = y.permute(1, 0, 2, 3).reshape(batch, layer.out_channels, *y.shape[2:])
    return _epilogue(layer, y, t.residual)


def loop(layer: Layer, t: Tensors) -> Tensor:
    """One `conv2d` for each sample, the results concatenated."""
    experts = t.weight.shape[0]
    weight = torch.mm(t.routing, t.weight.view(experts, -1)).view(-1, *layer.kernel_shape)
    bias = torch.mm(t.routing, t.bias)
    outputs = [_conv(layer, x[None], w, b) for x, w, b in zip(t.input, weight, bias, strict=True)]
    return _epilogue(layer, torch.cat(outputs), t.residual)


def vmapped(layer: Layer, t: Tensors) -> Tensor:
    """`torch.vmap` of a conv2d over images and kernels."""
    experts = t.weight.shape[0]
    weight = torch.mm(t.routing, t.weight.view(experts, -1)).view(-1, *layer.kernel_shape)
    bias = torch.mm(t.routing, t.bias)
    y = torch.vmap(lambda x, w, b: _conv(layer, x[None], w, b)[0])(t.input, weight, bias)
    return _epilogue(layer, y, t.residual)


def static(layer: Layer, t: Tensors) -> Tensor:
    """One kernel for all images, the first expert: not the same function, but the limit."""
    return _epilogue(layer, _conv(layer, t.input, t.weight[0], t.bias[0]), t.residual)


def reference(layer: Layer, t: Tensors, peer: str = OFFICIAL) -> Tensor:
    """What the formulation ``peer`` should return: float64, one image at a time."""
    double = Tensors(*(None if tensor is None else tensor.double() for tensor in t))
    return static(layer, double) if peer == STATIC else loop(layer, double)


def compiled_once(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.compile` of a function for arguments of one kind, beside others compiled before.

    What is compiled hangs on a function's code, and one after the other is tried at each call: a
    copy of the code keeps layers apart.
    """
    # Code that copies share, such as the forward methods of modules, is compiled for each of them.
    torch._dynamo.config.recompile_limit = 1024

    def source(*arguments: object) -> Tensor:
        return function(*arguments)

    copy = FunctionType(
        source.__code__.replace(co_name=f"{source.__name__}_{next(_COPIES)}"),
        source.__globals__,
        closure=source.__closure__,
    )
    return torch.compile(copy, dynamic=False)


def timm_condconv(layer: Layer) -> Formulation:
    """timm's own layer, for the tensors of ``layer``.

    Raises:
        ImportError: timm does not import.
    """
    from timm.layers import CondConv2d

    module = CondConv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.kernel_size // 2,
        groups=layer.groups,
        bias=True,
        num_experts=layer.experts,
    )
    del module.weight, module.bias

    def formulation(layer: Layer, t: Tensors) -> Tensor:
        # Ordinary attributes in the place of parameters: the experts are leaves of the caller.
        module.weight, module.bias = t.weight.flatten(1), t.bias
        return _epilogue(layer, module(t.input, t.routing), t.residual)

    return formulation


FORMULATIONS: dict[str, Formulation] = {
    OURS: ours,
    OFFICIAL: official,
    "loop": loop,
    "vmap": vmapped,
    "condconv": condconv,
    STATIC: static,
}
"""Formulations by the name they have in reports; two more are made for each layer."""

PEERS = (OURS, OFFICIAL, COMPILED, "loop", "vmap", "condconv", "timm", STATIC)
"""All names, in the order of reports."""


def formulation(name: str, layer: Layer) -> Formulation:
    """Return the formulation called ``name`` for a layer.

    Raises:
        ImportError: it needs a package that does not import.
    """
    if name == COMPILED:
        return compiled_once(official)
    if name == "timm":
        return timm_condconv(layer)
    return FORMULATIONS[name]


def _conv(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, layer.stride, layer.kernel_size // 2, groups=layer.groups)


def _grouped(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    batch = x.shape[0]
    weight = weight.view(batch * layer.out_channels, *layer.kernel_shape[1:])
    y = F.conv2d(
        x.reshape(1, -1, *x.shape[2:]),
        weight,
        bias,
        layer.stride,
        layer.kernel_size // 2,
        groups=layer.groups * batch,
    )
    return y.view(batch, layer.out_channels, *y.shape[2:])


def _epilogue(layer: Layer, y: Tensor, residual: Tensor | None) -> Tensor:
    if layer.upscale_factor > 1:
        y = F.pixel_shuffle(y, layer.upscale_factor)
    if layer.activation == "relu":
        y = F.relu(y)
    elif layer.activation == "leaky_relu":
        y = F.leaky_relu(y, SLOPE)
    return y if residual is None else residual + y
