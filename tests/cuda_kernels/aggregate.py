"""The aggregation of experts and its gradients."""

from __future__ import annotations

import math

import torch

from .kernel import Case, Kernel, Tensors, bound_of_sums, on_device, random, with_rounding

_F64, _F32, _F16, _BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
# Weight, routing, and output or its gradient.
TYPES = [
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
    *((size, types, 0) for size in _SIZES for types in (TYPES[0], TYPES[1], TYPES[6])),
    *(((3, 5, n), types, 0) for n in (516, 37) for types in TYPES[2:]),
    *(((9, 5, 520), types, offset) for offset in (1, 2, 4) for types in TYPES),
]
_AGGREGATE_SMALL: list[Case] = [
    ((6, 5, 7), TYPES[0], 0),
    ((9, 4, 1028), TYPES[1], 0),
    ((9, 9, 1030), TYPES[2], 1),
    ((2, 33, 520), TYPES[3], 0),
    ((3, 5, 513), TYPES[6], 0),
]


def n_roundings_of_dot(n: int) -> int:
    """Sums on the way to one element of grad_routing, twice for the sake of the reference."""
    tiles = -(-n // 512)
    per_thread = 4 * -(-tiles // 296)
    return 2 * (per_thread + 5 + 4 + -(-min(tiles, 296) // 8) + 8 + math.ceil(math.log2(n + 1)))


def _aggregate_inputs(
    size: tuple[int, int, int], types: tuple[torch.dtype, ...], offset: int
) -> Tensors:
    batch, experts, numel = size
    generator = torch.Generator().manual_seed(batch + 100 * experts + 10_000 * numel)
    weight, routing, grad = (
        random(generator, *shape, dtype=dtype, offset=offset)
        for shape, dtype in zip(
            ((experts, numel), (batch, experts), (batch, numel)), types, strict=True
        )
    )
    if batch * experts > 1:
        routing.view(-1)[-1] = 0  # an expert that is not read, and has a gradient all the same
    return {"weight": weight, "routing": routing, "grad": grad}


def _forward_on_device(inputs: Tensors) -> Tensors:
    weight, routing, grad = (on_device(inputs[name]) for name in ("weight", "routing", "grad"))
    return {"out": torch.ops.dasr_ops.aggregate_experts(weight, routing, grad.dtype)}


def _forward_emulated(inputs: Tensors) -> Tensors:
    from ..emulation import calls

    out = torch.full_like(inputs["grad"], math.nan)
    calls.aggregate_experts(inputs["weight"], inputs["routing"], out)
    return {"out": out}


def aggregate_reference(inputs: Tensors) -> tuple[Tensors, Tensors]:
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
    from ..emulation import calls

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


AGGREGATE = [
    Kernel(
        launcher="aggregate_experts",
        cases=_AGGREGATE_CASES,
        small=_AGGREGATE_SMALL,
        inputs=_aggregate_inputs,
        device=_forward_on_device,
        emulated=_forward_emulated,
        reference=aggregate_reference,
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
