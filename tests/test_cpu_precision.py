"""The precision switch of the CPU kernels: error bars, gradients, torch.compile."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import dasr_ops
from dasr_ops._library import _switches
from dasr_ops.models import DASR
from tests import reference
from tests.reference import max_error, rms_error

pytestmark = pytest.mark.skipif(
    not dasr_ops.backends()["cpu"].startswith("available"), reason="the extension is not built"
)

# What set_cpu_precision promises. Sums of n <= 1600 products, formed of sums of at most 256, err by
# about sqrt(256) roundoffs of 6e-8, 1e-6 of a typical value and less of the largest; F(4x4,3x3) and
# F(2x2,5x5) amplify that a few times.
FORWARD_BAR = {"fast": 3e-6, "precise": 1e-6}
GRADIENT_BAR = 2e-6

INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "unit": lambda x: x,
    "after-relu": lambda x: x.clamp(min=0),
    "offset": lambda x: x + 3,
    "scale-1e3": lambda x: 1e3 * x,
}
# batch, input channels, output channels, height, width
SHAPES = [
    (1, 64, 64, 24, 40),
    (2, 64, 64, 17, 19),
    (2, 13, 7, 11, 23),
    (1, 65, 130, 9, 14),
    (1, 9, 64, 40, 33),
    (3, 5, 9, 3, 3),
    (1, 64, 3, 21, 40),
]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = dasr_ops.get_cpu_precision()
    yield
    dasr_ops.set_cpu_precision(before)


def problem(shape: tuple[int, ...], kind: str = "unit", kernel: int = 3) -> tuple[Tensor, ...]:
    batch, in_channels, out_channels, *size = shape
    weight = torch.randn(4, out_channels, in_channels, kernel, kernel)
    weight /= kernel * in_channels**0.5
    x = INPUTS[kind](torch.randn(batch, in_channels, *size))
    return x, weight, torch.randn(batch, 4), torch.randn(4, out_channels)


def convolve(*tensors: Tensor) -> Tensor:
    return dasr_ops.dynamic_conv2d(*tensors, padding=1)


@pytest.mark.parametrize("precision", ["fast", "precise"])
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_error_bars(precision: str, kind: str, kernel: int, seed: int) -> None:
    dasr_ops.set_cpu_precision(precision)
    torch.manual_seed(seed)
    for shape in SHAPES:
        tensors = problem(shape, kind, kernel)
        exact = [t.double().requires_grad_() for t in tensors]
        expected = reference.dynamic_conv2d(*exact, padding=kernel // 2)
        leaves = [t.requires_grad_() for t in tensors]
        output = dasr_ops.dynamic_conv2d(*leaves, padding=kernel // 2)
        assert max_error(output, expected) <= FORWARD_BAR[precision], shape
        grad = torch.randn_like(output)
        grads = torch.autograd.grad(output, leaves, grad)
        expected_grads = torch.autograd.grad(expected, exact, grad.double())
        for got, want in zip(grads, expected_grads, strict=True):
            assert rms_error(got, want) <= GRADIENT_BAR, shape


def test_a_whole_network_errs_little_more_than_in_pure_pytorch() -> None:
    torch.manual_seed(0)
    model = DASR().eval()
    lr = torch.rand(2, 3, 21, 18)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(lr.double())
        ours = model(lr)
        with dasr_ops.use_backend("eager"):
            official = model(lr)
    least = 1e-6 * float(exact.max() - exact.min())
    assert (ours - exact).abs().max() <= (official - exact).abs().max() + least


def gradients(output: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(7))
    return torch.autograd.grad(output, leaves, grad)


def test_the_modes_differ_and_backward_keeps_to_its_forward() -> None:
    tensors = problem((2, 16, 12, 10, 13))
    leaves = [t.requires_grad_() for t in tensors]
    results = {}
    for precision in ("fast", "precise"):
        dasr_ops.set_cpu_precision(precision)
        output = convolve(*leaves)
        results[precision] = [output, *gradients(output, leaves)]
        if precision == "fast":
            late = convolve(*leaves)
    # The bias only sums up gradients, and that in the same order.
    differ = [not torch.equal(a, b) for a, b in zip(*results.values(), strict=True)]
    assert differ == [True, True, True, True, False]
    for got, want in zip(gradients(late, leaves), results["fast"][1:], strict=True):
        assert torch.equal(got, want)


# Rounded to 11 bits, a few of the 3,120 values still differ; bfloat16 may hide it.
@pytest.mark.parametrize(
    ("dtype", "same"), [(torch.float32, False), (torch.float16, False), (torch.float64, True)]
)
def test_per_sample_kernels_and_other_types(dtype: torch.dtype, same: bool) -> None:
    x, weight = torch.randn(2, 16, 10, 13, dtype=dtype), torch.randn(2, 12, 16, 3, 3, dtype=dtype)
    results = []
    for precision in ("fast", "precise"):
        dasr_ops.set_cpu_precision(precision)
        results.append(dasr_ops.per_sample_conv2d(x, weight, padding=1))
    assert torch.equal(*results) == same


def test_emulated_cuda_kernels_round_nothing_to_tf32() -> None:
    for precision in ("fast", "precise"):
        dasr_ops.set_cpu_precision(precision)
        assert _switches(torch.zeros(1), "cuda") == (False, precision == "fast")
        assert _switches(torch.zeros(1), "cpu") == (False, False)


def test_compiled_code_follows_the_switch() -> None:
    torch._dynamo.reset()
    tensors = problem((1, 16, 12, 10, 13))
    leaves = [t.requires_grad_() for t in tensors]
    compiled = torch.compile(convolve, fullgraph=True, backend="aot_eager")
    for precision in ("fast", "precise", "fast"):
        dasr_ops.set_cpu_precision(precision)
        results = []
        for function in (convolve, compiled):
            output = function(*leaves)
            results.append([output, *gradients(output, leaves)])
        for got, want in zip(*results, strict=True):
            assert torch.equal(got, want), precision


@pytest.mark.parametrize("fast_fp32", [False, True])
def test_opcheck(fast_fp32: bool) -> None:
    tensors = [t.requires_grad_() for t in problem((1, 9, 8, 5, 6))]
    options = ([1, 1], [1, 1, 1, 1], [1, 1], 1, None, 1.0, 1)
    args = (*tensors, None, *options, False, False, fast_fp32)
    torch.library.opcheck(torch.ops.dasr_ops.dynamic_conv2d.default, args)


def test_default_and_bad_values() -> None:
    assert dasr_ops.get_cpu_precision() == "fast"
    dasr_ops.set_cpu_precision("precise")
    for wrong in ("exact", None, True):
        with pytest.raises(
            ValueError, match=f"precision: expected 'fast' or 'precise', got {wrong!r}"
        ):
            dasr_ops.set_cpu_precision(wrong)
    assert dasr_ops.get_cpu_precision() == "precise"
