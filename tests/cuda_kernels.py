"""Every CUDA kernel with inputs to try it on: for a device, the emulation and float64.

A kernel is one entry of `KERNELS`. ``python -m tests.cuda_kernels`` runs the small inputs on a
device, as a program for compute-sanitizer to watch.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Case = tuple[Any, ...]


@dataclass(frozen=True)
class Kernel:
    """What is run and compared for one launcher of csrc/cuda."""

    launcher: str
    # Arguments of `inputs`; the small ones are for tools that slow a kernel down a hundred times.
    cases: list[Case]
    small: list[Case]
    # Tensors in CPU memory, the same on every call.
    inputs: Callable[..., Tensors]
    device: Callable[[Tensors], Tensors]
    # The outputs in float64, and how far off an element may be by the arithmetic.
    reference: Callable[[Tensors], tuple[Tensors, Tensors]]
    # None only for instructions that the emulation does not have.
    emulated: Callable[[Tensors], Tensors] | None
    # Whether device and emulation do the same operations in the same order: fused multiply-adds
    # that the source names, sums in an order that it fixes, conversions that round to nearest.
    # Sums inside mma instructions are not among them.
    same_bits: bool


def errors(kernel: Kernel, inputs: Tensors, outputs: Tensors) -> dict[str, float]:
    """For each output its largest error against float64 in units of the bound."""
    expected, bounds = kernel.reference(inputs)
    assert outputs.keys() == expected.keys()
    result = {}
    for name, value in expected.items():
        assert outputs[name].shape == value.shape, (name, outputs[name].shape, value.shape)
        # Where the bound is 0 only the value itself will do; NaN counts as infinitely wrong.
        excess = (outputs[name].double().cpu() - value).abs() / (bounds[name] + 1e-300)
        result[name] = excess.nan_to_num(math.inf).max().item() if value.numel() else 0.0
    return result


def bound_of_sums(magnitude: Tensor, n_roundings: int, types: set[torch.dtype]) -> Tensor:
    """How far sums are off that round so often: one unit of fp32 (fp64) each.

    ``magnitude`` is the sum of the absolute products.
    """
    unit = 2.0**-53 if torch.float64 in types else 2.0**-24
    return (n_roundings + 1) * unit * magnitude * (1 + 1e-6)


def with_rounding(bound: Tensor, expected: Tensor, dtype: torch.dtype) -> Tensor:
    """The bound after the result was rounded to ``dtype``."""
    info = torch.finfo(dtype)
    return bound + (expected.abs() + bound) * info.eps / 2 + info.smallest_normal * info.eps / 2


# ---- aggregate_experts ----

_F64, _F32, _F16, _BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
# Weight, routing, and output or its gradient.
_TYPES = [
    (_F32, _F32, _F32),
    (_F32, _F32, _BF16),
    (_F32, _F32, _F16),
    (_BF16, _BF16, _BF16),
    (_F16, _F16, _F16),
    (_BF16, _F32, _F16),
    (_F64, _F64, _F64),
    (_F32, _F64, _F32),
]
# B, K, N: nothing, one of each, tails of tiles (512), of groups of samples (8) and of vectors (4),
# more experts than are staged at a time (32), more tiles than splits (296), the layers of DASR.
_SIZES = [
    (0, 5, 7),
    (1, 1, 1),
    (3, 5, 0),
    (6, 5, 7),
    (9, 4, 512),
    (1, 8, 513),
    (8, 5, 1028),
    (17, 9, 1030),
    (2, 33, 640),
    (5, 70, 33),
    (300, 4, 9),
    (6, 5, 64 * 3 * 9),
    (6, 5, 64 * 64 * 9),
    (2, 3, 160_003),
]
# Elements from an aligned address to the first one: rows are read whole or one by one.
_AGGREGATE_CASES: list[Case] = [
    *((size, types, 0) for size in _SIZES for types in (_TYPES[0], _TYPES[1], _TYPES[6])),
    *(((3, 5, n), types, 0) for n in (516, 37) for types in _TYPES[2:]),
    *(((9, 5, 520), types, offset) for offset in (1, 2, 4) for types in _TYPES),
]
_AGGREGATE_SMALL: list[Case] = [
    ((6, 5, 7), _TYPES[0], 0),
    ((9, 4, 1028), _TYPES[1], 0),
    ((9, 9, 1030), _TYPES[2], 1),
    ((2, 33, 520), _TYPES[3], 0),
    ((3, 5, 513), _TYPES[6], 0),
]


def n_roundings_of_dot(n: int) -> int:
    """Sums on the way to one element of grad_routing, twice for the sake of the reference."""
    tiles = -(-n // 512)
    per_thread = 4 * -(-tiles // 296)
    return 2 * (per_thread + 5 + 4 + -(-min(tiles, 296) // 8) + 8 + math.ceil(math.log2(n + 1)))


def _random(generator: torch.Generator, *shape: int, dtype: torch.dtype, offset: int) -> Tensor:
    memory = torch.empty(math.prod(shape) + offset, dtype=dtype)
    values = torch.randn(shape, dtype=torch.float64, generator=generator)
    return memory[offset:].view(shape).copy_(values)


def _aggregate_inputs(
    size: tuple[int, int, int], types: tuple[torch.dtype, ...], offset: int
) -> Tensors:
    batch, experts, numel = size
    generator = torch.Generator().manual_seed(batch + 100 * experts + 10_000 * numel)
    weight, routing, grad = (
        _random(generator, *shape, dtype=dtype, offset=offset)
        for shape, dtype in zip(
            ((experts, numel), (batch, experts), (batch, numel)), types, strict=True
        )
    )
    if batch * experts > 1:
        routing.view(-1)[-1] = 0  # an expert that is not read, and has a gradient all the same
    return {"weight": weight, "routing": routing, "grad": grad}


def on_device(tensor: Tensor) -> Tensor:
    """A copy on the device, as far from an aligned address as the tensor itself."""
    offset = tensor.storage_offset()
    memory = torch.empty(tensor.numel() + offset, dtype=tensor.dtype, device="cuda")
    return memory[offset:].view(tensor.shape).copy_(tensor)


def _forward_on_device(inputs: Tensors) -> Tensors:
    weight, routing, grad = (on_device(inputs[name]) for name in ("weight", "routing", "grad"))
    return {"out": torch.ops.dasr_ops.aggregate_experts(weight, routing, grad.dtype)}


def _forward_emulated(inputs: Tensors) -> Tensors:
    from .emulation import calls

    out = torch.full_like(inputs["grad"], math.nan)
    calls.aggregate_experts(inputs["weight"], inputs["routing"], out)
    return {"out": out}


def _forward_reference(inputs: Tensors) -> tuple[Tensors, Tensors]:
    weight, routing = inputs["weight"].double(), inputs["routing"].double()
    dtype = inputs["grad"].dtype
    types = {tensor.dtype for tensor in inputs.values()}
    out = routing @ weight
    # The float64 reference itself errs as much as an fp64 kernel: twice the roundings.
    bound = bound_of_sums(routing.abs() @ weight.abs(), 2 * weight.shape[0], types)
    return {"out": out}, {"out": with_rounding(bound, out, dtype)}


def _backward_on_device(inputs: Tensors) -> Tensors:
    weight, routing, grad = (on_device(inputs[name]) for name in ("weight", "routing", "grad"))
    gradients = torch.ops.dasr_ops.aggregate_experts_backward(grad, weight, routing, [True, True])
    return dict(zip(("grad_weight", "grad_routing"), gradients, strict=True))


def _backward_emulated(inputs: Tensors) -> Tensors:
    from .emulation import calls

    weight, routing, grad = (inputs[name] for name in ("weight", "routing", "grad"))
    # As on the device: the results' addresses are aligned, wherever the inputs lie.
    grad_weight = torch.full(weight.shape, math.nan, dtype=weight.dtype)
    grad_routing = torch.full(routing.shape, math.nan, dtype=routing.dtype)
    calls.aggregate_experts_backward(weight, routing, grad, grad_weight, grad_routing)
    return {"grad_weight": grad_weight, "grad_routing": grad_routing}


def _backward_reference(inputs: Tensors) -> tuple[Tensors, Tensors]:
    weight, routing, grad = (inputs[name].double() for name in ("weight", "routing", "grad"))
    types = {tensor.dtype for tensor in inputs.values()}
    expected = {"grad_weight": routing.T @ grad, "grad_routing": grad @ weight.T}
    bounds = {
        "grad_weight": bound_of_sums(routing.abs().T @ grad.abs(), 2 * len(grad), types),
        "grad_routing": bound_of_sums(
            grad.abs() @ weight.abs().T, n_roundings_of_dot(weight.shape[1]), types
        ),
    }
    for name, of in (("grad_weight", "weight"), ("grad_routing", "routing")):
        bounds[name] = with_rounding(bounds[name], expected[name], inputs[of].dtype)
    return expected, bounds


# ---- pack_experts: the layers of a network, through the operator that calls it ----

# What follows K in the sizes of each layer: packed kernels, kernels too narrow for rows of 16
# bytes, biases.
_LAYERS = [(16, 3, 3, 3), (33, 24, 3, 3), (5, 16, 5, 5), (20, 8, 1, 1), (33,), (3,)]
_PACK_CASES: list[Case] = [
    ((batch, experts), types, offset)
    for batch, experts in ((0, 5), (1, 1), (6, 5), (9, 40))
    for types in _TYPES
    for offset in (0, 1)
]
_PACK_SMALL: list[Case] = [((3, 5), types, offset) for types in _TYPES[:2] for offset in (0, 1)]


def _pack_inputs(size: tuple[int, int], types: tuple[torch.dtype, ...], offset: int) -> Tensors:
    batch, experts = size
    generator = torch.Generator().manual_seed(batch + 100 * experts)
    inputs = {
        f"weight{i}": _random(generator, experts, *layer, dtype=types[0], offset=offset)
        for i, layer in enumerate(_LAYERS)
    }
    routing = _random(generator, batch, experts, dtype=types[1], offset=offset)
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
    from .emulation.pack_experts_calls import Layer, pack_experts

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
        out, bound = _forward_reference(layer)
        expected[f"out{i}"], bounds[f"out{i}"] = out["out"].view(size), bound["out"].view(size)
    return expected, bounds


KERNELS = [
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
    Kernel(
        launcher="aggregate_experts",
        cases=_AGGREGATE_CASES,
        small=_AGGREGATE_SMALL,
        inputs=_aggregate_inputs,
        device=_forward_on_device,
        emulated=_forward_emulated,
        reference=_forward_reference,
        same_bits=True,
    ),
    Kernel(
        launcher="aggregate_experts_backward",
        cases=_AGGREGATE_CASES,
        small=_AGGREGATE_SMALL,
        inputs=_aggregate_inputs,
        device=_backward_on_device,
        emulated=_backward_emulated,
        reference=_backward_reference,
        same_bits=True,
    ),
]


def main() -> int:
    """Run the small cases on the device and say how far the results are off."""
    import dasr_ops

    print(dasr_ops.backends()["cuda"])
    status = 0
    for kernel in KERNELS:
        for case in kernel.small:
            inputs = kernel.inputs(*case)
            outputs = {name: value.cpu() for name, value in kernel.device(inputs).items()}
            worst = max(errors(kernel, inputs, outputs).values())
            print(f"{kernel.launcher} {case}: {worst:.3g} of the bound", flush=True)
            status |= worst > 1
    return status


if __name__ == "__main__":
    sys.exit(main())
