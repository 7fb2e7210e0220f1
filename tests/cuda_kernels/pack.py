"""The packing of the layers of a network, through the operator that calls it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .aggregate import TYPES, aggregate_reference
from .kernel import Case, Kernel, Tensors, on_device, random

# What follows K in the sizes of each layer: packed kernels, kernels too narrow for rows of 16
# bytes, biases.
_LAYERS = [(16, 3, 3, 3), (33, 24, 3, 3), (5, 16, 5, 5), (20, 8, 1, 1), (33,), (3,)]
_PACK_CASES: list[Case] = [
    ((batch, experts), types, offset)
    for batch, experts in ((0, 5), (1, 1), (6, 5), (9, 40))
    for types in TYPES
    for offset in (0, 1)
]
_PACK_SMALL: list[Case] = [((3, 5), types, offset) for types in TYPES[:2] for offset in (0, 1)]


def _pack_inputs(size: tuple[int, int], types: tuple[torch.dtype, ...], offset: int) -> Tensors:
    batch, experts = size
    generator = torch.Generator().manual_seed(batch + 100 * experts)
    inputs = {
        f"weight{i}": random(generator, experts, *layer, dtype=types[0], offset=offset)
        for i, layer in enumerate(_LAYERS)
    }
    routing = random(generator, batch, experts, dtype=types[1], offset=offset)
    if batch * experts > 1:
        routing.view(-1)[-1] = 0
    # Says the type of the results.
    return {**inputs, "routing": routing, "like": torch.empty(0, dtype=types[2])}


def _pack_weights(inputs: Tensors) -> list[Tensor]:
    return [inputs[f"weight{i}"] for i in range(len(_LAYERS))]


def _pack_on_device(inputs: Tensors) -> Tensors:
    weights = [on_device(weight) for weight in _pack_weights(inputs)]
    stack = torch.ops.dasr_ops.aggregate_experts_stack
    outputs = stack(weights, on_device(inputs["routing"]), inputs["like"].dtype)
    return {f"out{i}": out for i, out in enumerate(outputs)}


def _pack_emulated(inputs: Tensors) -> Tensors:
    from ..emulation.pack_experts_calls import Layer, pack_experts

    routing, dtype = inputs["routing"], inputs["like"].dtype
    layers = []
    for weight in _pack_weights(inputs):
        experts, rows, *rest = (
            weight.shape if weight.dim() > 2 else (len(weight), 1, *weight[0].shape)
        )
        columns, taps = rest[0], math.prod(rest[1:])
        unit = 16 // dtype.itemsize
        dense = weight.dim() == 2
        row = columns if dense else -(-columns // unit) * unit
        out = torch.full((len(routing), taps, rows, row), math.nan, dtype=dtype)
        layers.append(Layer(weight.reshape(experts, rows, columns, taps), out, dense=dense))
    pack_experts(layers, routing, len(routing), dtype)
    return {
        f"out{i}": layer.out[..., : layer.weight.shape[2]]
        .permute(0, 2, 3, 1)
        .reshape(len(routing), *_LAYERS[i])
        for i, layer in enumerate(layers)
    }


def _pack_reference(inputs: Tensors) -> tuple[Tensors, Tensors]:
    expected, bounds = {}, {}
    for i, weight in enumerate(_pack_weights(inputs)):
        routing = inputs["routing"]
        layer = {"weight": weight.flatten(1), "routing": routing, "grad": inputs["like"]}
        size = (len(routing), *weight.shape[1:])
        out, bound = aggregate_reference(layer)
        expected[f"out{i}"], bounds[f"out{i}"] = out["out"].view(size), bound["out"].view(size)
    return expected, bounds


PACK = [
    Kernel(
        launcher="pack_experts",
        cases=_PACK_CASES,
        small=_PACK_SMALL,
        inputs=_pack_inputs,
        device=_pack_on_device,
        emulated=_pack_emulated,
        reference=_pack_reference,
        same_bits=True,
    ),
]
