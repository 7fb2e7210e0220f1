"""Aggregation of experts into packed kernels, run by the emulation, against float64."""

from __future__ import annotations

import itertools
import math
import os

import pytest
import torch
from torch import Tensor

from .cuda_kernels.kernel import bound_of_sums, with_rounding
from .emulation import build

if build.missing():
    pytest.skip(build.missing(), allow_module_level=True)

from .emulation import calls
from .emulation.pack_experts_calls import Layer, pack_experts

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
DTYPES = [F32, F16, BF16, F64]
VARIANT = os.environ.get("DASR_EMULATION_VARIANT", "plain")

# O, I/g, taps, groups: nothing, one of each, tails of tiles (16 rows, 9 taps, 16 to 144 columns)
# and of packs, groups whose rows end inside a tile, depthwise
SHAPES = [
    (0, 3, 9, 1),
    (4, 0, 9, 1),
    (4, 3, 0, 1),
    (1, 1, 1, 1),
    (3, 5, 9, 1),
    (16, 16, 9, 1),
    (33, 19, 9, 1),
    (18, 150, 1, 1),
    (20, 50, 2, 1),
    (5, 17, 4, 1),
    (5, 17, 6, 1),
    (17, 3, 25, 1),
    (34, 20, 9, 2),
    (6, 1, 9, 6),
    (8, 12, 10, 4),
]


def aligned(memory: Tensor, offset: int) -> Tensor:
    """The memory from `offset` elements behind an address aligned to 64 bytes."""
    skip = -memory.data_ptr() % 64 // memory.element_size()
    return memory[skip + offset :]


def random(*shape: int, dtype: torch.dtype, offset: int = 0) -> Tensor:
    memory = torch.full((math.prod(shape) + offset + 32,), math.nan, dtype=dtype)
    values = torch.randn(shape, dtype=F64)
    return aligned(memory, offset)[: values.numel()].view(shape).copy_(values)


class Problem:
    """A layer, its result between guards, and what must come out."""

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        batch: int,
        experts: int,
        weight_type: torch.dtype = F32,
        out_type: torch.dtype = F32,
        transposed: bool = False,
        dense: bool = False,
        offset: int = 0,
        slack: int = 0,
    ) -> None:
        out_channels, group_in, taps, groups = shape
        self.weight = random(
            experts, out_channels, group_in, taps, dtype=weight_type, offset=offset
        )
        self.groups, self.transposed, self.dense = groups, transposed, dense
        self.rows, self.k = out_channels, group_in
        if transposed:
            self.rows, self.k = groups * group_in, out_channels // groups
        unit = 1 if dense else 16 // out_type.itemsize
        self.padded = -(-self.k // unit) * unit
        row_stride = self.padded + slack * unit
        numel = batch * taps * self.rows * row_stride
        self.memory = torch.full((numel + 96,), -1.0, dtype=out_type)
        inside = aligned(self.memory, 32 + (offset if dense else 0))[:numel]
        self.inside = inside.fill_(math.nan).view(batch, taps, self.rows, row_stride)
        self.layer = Layer(self.weight, self.inside, groups, dense)

    def arrange(self, mixed: Tensor) -> Tensor:
        """[B, O, I/g, taps] as [B, taps, n, k]."""
        if not self.transposed:
            return mixed.permute(0, 3, 1, 2)
        batch, _, group_in, taps = mixed.shape
        split = mixed.reshape(batch, self.groups, self.k, group_in, taps)
        return split.permute(0, 4, 1, 3, 2).reshape(batch, taps, self.rows, self.k)

    def check(self, routing: Tensor | None) -> None:
        inside = self.inside.clone()
        self.inside.fill_(-1)
        assert (self.memory == -1).all(), "written outside the output"
        assert inside[..., self.padded :].isnan().all(), "written between the rows"
        assert (inside[..., self.k : self.padded] == 0).all(), "no zeros behind the last k"
        got = inside[..., : self.k].double()
        weight = self.weight.double()
        if routing is None:
            expected, bound = self.arrange(weight), torch.zeros(())
        else:
            a, types = routing.double(), {routing.dtype, self.weight.dtype, inside.dtype}
            expected = self.arrange(torch.einsum("bk,kois->bois", a, weight))
            magnitude = self.arrange(torch.einsum("bk,kois->bois", a.abs(), weight.abs()))
            # The float64 reference itself errs as much as an fp64 kernel: twice the roundings.
            bound = bound_of_sums(magnitude, 2 * len(weight), types)
        bound = with_rounding(bound, expected, inside.dtype)
        assert ((got - expected).abs() <= bound).all()  # false for NaN


def check(
    shape: tuple[int, int, int, int],
    batch: int = 3,
    experts: int = 5,
    routing_type: torch.dtype = F32,
    **options: object,
) -> None:
    problem = Problem(shape, batch, experts, **options)
    routing = random(batch, experts, dtype=routing_type)
    if batch * experts > 1:
        routing.view(-1)[-1] = 0
    out_type = problem.inside.dtype
    pack_experts([problem.layer], routing, batch, out_type, problem.transposed)
    problem.check(routing)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, int, int, int], transposed: bool) -> None:
    for out_type in (F32, BF16, F64):
        check(shape, out_type=out_type, transposed=transposed, slack=1)
        check(shape, out_type=out_type, transposed=transposed, dense=True)


@pytest.mark.parametrize(
    ("batch", "experts"), [(0, 5), (1, 1), (2, 40), (4, 32), (5, 33), (9, 1), (17, 70)]
)
def test_batches_and_experts(batch: int, experts: int) -> None:
    for out_type in (F32, F16, F64):
        check((17, 19, 9, 1), batch, experts, out_type=out_type)


@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, repeat=3)), ids=str)
def test_types(dtypes: tuple[torch.dtype, ...]) -> None:
    weight_type, routing_type, out_type = dtypes
    for shape in ((18, 12, 9, 1), (5, 7, 3, 1)):
        check(shape, 3, 5, routing_type, weight_type=weight_type, out_type=out_type)


@pytest.mark.parametrize("offset", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_alignment_of_experts_and_dense_results(dtype: torch.dtype, offset: int) -> None:
    for dense in (False, True):
        options = {"weight_type": dtype, "out_type": dtype, "offset": offset, "dense": dense}
        check((18, 12, 9, 1), 3, 5, dtype, **options)


def test_all_layers_of_a_network_in_one_launch() -> None:
    shapes = [(16, 3, 9, 1), *[(16, 16, 9, 1)] * 20, (64, 16, 9, 1), (4, 0, 9, 1), (3, 16, 9, 1)]
    shapes += [(1, 16, 1, 1), (1, 3, 1, 1)] * 4
    for batch in (1, 6):
        problems = [Problem(s, batch, 5, out_type=BF16, dense=s[0] == 1) for s in shapes]
        routing = random(batch, 5, dtype=F32)
        launches = calls.module().statistics()[0]
        pack_experts([p.layer for p in problems], routing, batch, BF16)
        assert calls.module().statistics()[0] == launches + 1
        for problem in problems:
            problem.check(routing)


def test_more_layers_than_one_launch_holds_and_types_that_differ() -> None:
    weights = [(F32, F64, BF16)[i % 3] for i in range(100)]
    problems = [
        Problem((5, 1 + i, 1 + i % 11, 1), 2, 3, weight_type=weights[i]) for i in range(100)
    ]
    routing = random(2, 3, dtype=F32)
    launches = calls.module().statistics()[0]
    pack_experts([p.layer for p in problems], routing, 2, F32)
    assert calls.module().statistics()[0] == launches + 3 + 2  # 67 layers in fp32, 33 in fp64
    for problem in problems:
        problem.check(routing)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_without_routing_weights_are_only_rearranged(batch: int, transposed: bool) -> None:
    for weight_type, out_type in ((F32, F32), (BF16, BF16), (F32, F16), (F64, F64), (F64, F32)):
        problem = Problem((34, 20, 9, 2), batch, batch, weight_type, out_type, transposed)
        pack_experts([problem.layer], None, batch, out_type, transposed)
        problem.check(None)


def test_unused_experts_are_not_read() -> None:
    for out_type in (F32, BF16, F64):
        problem = Problem((18, 12, 9, 1), 3, 5, out_type=out_type)
        routing = random(3, 5, dtype=F32)
        routing[:, 1] = 0
        routing[0, 3], routing[1, 3] = -0.0, 0
        problem.weight[1] = math.nan
        problem.weight[3] = math.inf
        pack_experts([problem.layer], routing, 3, out_type)
        assert problem.inside[2, ..., :12].isinf().all()
        routing[2, 3] = 0
        problem.weight[[1, 3]] = 0
        pack_experts([problem.layer], routing, 3, out_type)
        problem.check(routing)
        routing.zero_()
        problem.weight.fill_(math.nan)
        pack_experts([problem.layer], routing, 3, out_type)
        assert (problem.inside[..., :12] == 0).all()


@pytest.mark.parametrize("out_type", DTYPES, ids=str)
def test_same_bits_as_aggregate_experts(out_type: torch.dtype) -> None:
    problem = Problem((18, 12, 9, 1), 5, 40, out_type=out_type)
    routing = random(5, 40, dtype=F32)
    pack_experts([problem.layer], routing, 5, out_type)
    expected = torch.full((5, 18 * 12 * 9), math.nan, dtype=out_type)
    calls.aggregate_experts(problem.weight.view(40, -1), routing, expected)
    expected = problem.arrange(expected.view(5, 18, 12, 9))
    assert torch.equal(problem.inside[..., :12], expected)


def test_order_of_threads_does_not_matter() -> None:
    routing, results = random(9, 40, dtype=F32), []
    weight = random(40, 33, 19, 9, dtype=F32)
    for order, seed in (("forward", 0), ("reverse", 0), ("shuffled", 1)):
        calls.module().set_order(order, seed)
        out = torch.zeros(9, 9, 33, 24, dtype=BF16)
        pack_experts([Layer(weight, out)], routing, 9, BF16)
        results.append(out)
    calls.module().set_order("forward")
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_bad_arguments_are_refused() -> None:
    weight, routing = torch.randn(2, 4, 8, 9), torch.randn(3, 2)
    out = torch.zeros(3, 9, 4, 8)
    for layer, transposed in (
        (Layer(weight, out, groups=3), False),
        (Layer(weight, out, groups=0), False),
        (Layer(weight, aligned(torch.zeros(2000), 1)[:864].view(3, 9, 4, 8)), False),
        (Layer(weight, torch.zeros(3, 9, 4, 9)), False),
        (Layer(weight, torch.zeros(3, 9, 4, 4)), False),
        (Layer(torch.randn(2, 9, 4, 9), torch.zeros(3, 9, 4, 8)), True),
    ):
        with pytest.raises(RuntimeError, match="invalid argument"):
            pack_experts([layer], routing, 3, F32, transposed)
    with pytest.raises(RuntimeError, match="invalid argument"):
        pack_experts([Layer(weight, out)], routing, -1, F32)
    pack_experts([], routing, 3, F32)


def test_more_tiles_than_blocks() -> None:
    # A transposed depthwise kernel has one tile for each group.
    check((4099, 1, 2, 4099), 2, 3, transposed=True)
    problem = Problem((4099, 1, 2, 4099), 2, 2, transposed=True)
    pack_experts([problem.layer], None, 2, F32, transposed=True)
    problem.check(None)


@pytest.mark.slow
def test_layers_of_dasr() -> None:
    rows = 64 if VARIANT == "plain" else 20
    for transposed in (False, True):
        check((rows, 64, 9, 1), 6, 5, out_type=BF16, transposed=transposed)
        check((4 * rows, 64, 9, 1), 6, 5, out_type=F32, transposed=transposed)
