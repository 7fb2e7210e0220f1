"""Convolutions of the CUDA backend on a real device: values, and how they live with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dasr_ops
from dasr_ops._backends import eager
from tests import reference
from tests.reference import ROUNDOFF, max_error, rms_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

BACKEND, DEVICE = "cuda", "cuda"
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TF32 = 2.0**-11


@pytest.fixture(autouse=True)
def _no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def problem(
    batch: int = 2,
    channels: tuple[int, int] = (64, 64),
    size: tuple[int, int] = (17, 19),
    kernel: tuple[int, int] = (3, 3),
    groups: int = 1,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    experts: int = 5,
) -> dict[str, Tensor]:
    in_channels, out_channels = channels
    fan_in = in_channels // groups * kernel[0] * kernel[1]
    x = torch.randn(batch, in_channels, *size, device=DEVICE, dtype=dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(experts, out_channels, in_channels // groups, *kernel, device=DEVICE)
    return {
        "input": x,
        "weight": (weight / fan_in**0.5).to(dtype),
        "routing_weights": torch.randn(batch, experts, device=DEVICE).to(dtype),
        "bias": torch.randn(experts, out_channels, device=DEVICE).to(dtype),
    }


def random_gradient(
    args: dict[str, Tensor],
    dtype: torch.dtype | None = None,
    tolerance: float = 0.0,
    **options: Any,
) -> Tensor:
    """Of the output; 0 where an error may turn the sign of what the activation sees.

    ``tolerance`` is how large that may be, as a part of the largest sum.
    """
    x = args["input"]
    operands = {k: v.detach().cpu() for k, v in args.items() if k != "residual"}
    sums = reference.dynamic_conv2d(**operands, **{**options, "activation": None})
    grad = torch.randn(sums.shape)
    if options.get("activation") is not None and sums.numel():
        grad[sums.abs() <= tolerance * sums.abs().max()] = 0
    return grad.to(x.device, dtype or x.dtype).contiguous(memory_format=eager.memory_format(x))


def run(args: dict[str, Tensor], backend: str, grad: Tensor, **options: Any) -> dict[str, Tensor]:
    """The output and every gradient."""
    leaves = {k: v.detach().requires_grad_() for k, v in args.items()}
    with dasr_ops.use_backend(backend):
        out = dasr_ops.dynamic_conv2d(**leaves, **options)
    grads = torch.autograd.grad(out, list(leaves.values()), grad)
    return {"out": out.detach(), **dict(zip(args, grads, strict=True))}


def expected_of(args: dict[str, Tensor], grad: Tensor, **options: Any) -> dict[str, Tensor]:
    leaves = {k: v.detach().cpu().double().requires_grad_() for k, v in args.items()}
    out = reference.dynamic_conv2d(**leaves, **options)
    grads = torch.autograd.grad(out, list(leaves.values()), grad.cpu().double())
    return {"out": out.detach(), **dict(zip(args, grads, strict=True))}


def check(args: dict[str, Tensor], unit: float | None = None, **options: Any) -> None:
    dtype = args["input"].dtype
    # Sums of n products in fp32 err by far less than n roundoffs; narrow results are rounded once,
    # and gradients see a rounded kernel, output or gradient of the sums before that.
    floor = {torch.float64: 1e-13}.get(dtype, 3e-6)
    unit = ROUNDOFF[dtype] if unit is None else unit
    grad = random_gradient(args, tolerance=max(floor, 2 * unit), **options)
    got, want = run(args, BACKEND, grad, **options), expected_of(args, grad, **options)
    assert max_error(got["out"].cpu(), want["out"]) <= max(floor, 2 * unit), "output"
    for name in args:
        assert got[name].dtype == args[name].dtype
        assert rms_error(got[name].cpu(), want[name]) <= max(floor, 3 * unit), name


# What each path of the backend serves: channels, kernel, groups, options.
PATHS = {
    "body": ((64, 64), (3, 3), 1, {"padding": 1}),
    "upsampling": ((64, 256), (3, 3), 1, {"padding": 1, "upscale_factor": 2}),
    "first": ((3, 64), (3, 3), 1, {"padding": 1}),
    "last": ((64, 3), (3, 3), 1, {"padding": 1}),
    "1x1": ((64, 128), (1, 1), 1, {}),
    "5x5": ((40, 24), (5, 5), 1, {"padding": 2}),
    "7x7 of stride 2": ((3, 64), (7, 7), 1, {"padding": 3, "stride": 2}),
    "stride": ((48, 72), (3, 3), 1, {"padding": 1, "stride": (2, 1)}),
    "dilation": ((48, 72), (3, 3), 1, {"padding": 2, "dilation": 2}),
    "groups": ((48, 96), (3, 3), 3, {"padding": 1}),
    "depthwise": ((48, 48), (3, 3), 48, {"padding": 1}),
    "odd": ((37, 29), (2, 4), 1, {"padding": "same"}),
    "relu": ((64, 64), (3, 3), 1, {"padding": 1, "activation": "relu"}),
    "negative slope": (
        (16, 64),
        (3, 3),
        1,
        {"padding": 1, "activation": "leaky_relu", "negative_slope": -0.2},
    ),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_against_float64(path: str, dtype: torch.dtype, channels_last: bool) -> None:
    channels, kernel, groups, options = PATHS[path]
    args = problem(2, channels, (17, 35), kernel, groups, dtype, channels_last)
    check(args, groups=groups, **options)


@pytest.mark.parametrize("path", PATHS)
def test_tf32(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    channels, kernel, groups, options = PATHS[path]
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    args = problem(2, channels, (17, 35), kernel, groups)
    check(args, TF32, groups=groups, **options)


def test_switches_of_tf32() -> None:
    """Either of PyTorch's; a compiled function follows them, too."""
    args = problem(2, (64, 64), (17, 35))
    want = expected_of(args, torch.zeros(2, 64, 17, 35), padding=1)["out"]

    def convolve(args: dict[str, Tensor]) -> Tensor:
        return dasr_ops.dynamic_conv2d(**args, padding=1)

    cudnn = torch.backends.cudnn
    try:
        for call in (convolve, torch.compile(convolve, fullgraph=True, backend="aot_eager")):
            for allowed in (True, False):
                cudnn.allow_tf32 = allowed
                assert (max_error(call(args).cpu(), want) > 3e-5) == allowed
            for precision in ("tf32", "ieee"):
                cudnn.conv.fp32_precision = precision
                assert (max_error(call(args).cpu(), want) > 3e-5) == (precision == "tf32")
    finally:
        cudnn.allow_tf32 = False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_less_exact_than_grouped_convolution(dtype: torch.dtype) -> None:
    """The bar of the design: the error of PyTorch's own path on the same inputs."""
    for path in ("body", "first", "last", "1x1", "stride"):
        channels, kernel, groups, options = PATHS[path]
        args = problem(4, channels, (33, 35), kernel, groups, dtype, True)
        grad = random_gradient(args, **options)
        ours, theirs = run(args, BACKEND, grad, **options), run(args, "eager", grad, **options)
        want = expected_of(args, grad, **options)
        for name in want:
            error = rms_error(ours[name].cpu(), want[name])
            # Equal methods differ by chance.
            assert error <= 1.1 * rms_error(theirs[name].cpu(), want[name]) + 1e-8, (path, name)


def test_residual_and_its_gradient() -> None:
    args = problem(dtype=torch.bfloat16, channels_last=True)
    args["residual"] = torch.randn_like(args["input"])
    check(args, padding=1, residual_scale=0.2)
    check(args, padding=1, residual_scale=-0.5, activation="relu")


@pytest.mark.parametrize("batch", [0, 1, 257])
def test_batches(batch: int) -> None:
    args = problem(batch, (16, 16), (5, 4), dtype=torch.bfloat16)
    got = run(args, BACKEND, torch.randn_like(args["input"]), padding=1)
    assert got["out"].shape == (batch, 16, 5, 4)
    if batch:
        check(args, padding=1)


def test_more_samples_than_a_grid_has_rows() -> None:
    args = problem(70_001, (8, 8), (1, 1), (1, 1), dtype=torch.float16)
    got = run(args, BACKEND, torch.randn_like(args["input"]))
    mixed = torch.einsum("bk,koi->boi", args["routing_weights"], args["weight"].flatten(2))
    bias = args["routing_weights"].double() @ args["bias"].double()
    want = torch.einsum("boi,bi->bo", mixed.double(), args["input"].flatten(1).double()) + bias
    assert max_error(got["out"].flatten(1).cpu(), want.cpu()) <= 3 * ROUNDOFF[torch.float16]


def test_more_than_two_to_the_31_elements() -> None:
    if torch.cuda.mem_get_info()[0] < 30 << 30:
        pytest.skip("needs 30 GB")
    x = torch.randn(1, 8, 16_500, 16_500, device=DEVICE, dtype=torch.float16)
    args = problem(1, (8, 8), (9, 9), dtype=torch.float16)
    with torch.no_grad():
        args["input"] = x
        out = dasr_ops.dynamic_conv2d(**args, padding=1)
        args["input"] = x[:, :, -64:, -64:].contiguous()
        corner = dasr_ops.dynamic_conv2d(**args, padding=1)
    assert torch.equal(out[:, :, -32:, -32:], corner[:, :, -32:, -32:])


@pytest.mark.parametrize("deterministic", [False, True])
def test_same_bits_on_every_run(deterministic: bool) -> None:
    """With PyTorch's switch and without it, which must not be an error either."""
    args = problem(6, (64, 64), (64, 64), dtype=torch.bfloat16, channels_last=True)
    grad = torch.randn_like(args["input"])
    torch.use_deterministic_algorithms(deterministic)
    try:
        runs = [run(args, BACKEND, grad, padding=1, activation="relu") for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    for again in runs[1:]:
        assert all(torch.equal(runs[0][name], again[name]) for name in again)


def test_zero_routing_skips_expert() -> None:
    args = problem(dtype=torch.bfloat16)
    args["weight"][1], args["bias"][1] = float("nan"), float("inf")
    args["routing_weights"][:, 1] = 0
    with dasr_ops.use_backend(BACKEND):
        assert dasr_ops.dynamic_conv2d(**args, padding=1).isfinite().all()


def step(args: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    leaves = {k: v.detach().requires_grad_() for k, v in args.items()}
    grad = torch.randn(2, 64, 17, 19, device=DEVICE, dtype=args["input"].dtype)

    def call() -> dict[str, Tensor]:
        out = dasr_ops.dynamic_conv2d(**leaves, padding=1, activation="relu")
        grads = torch.autograd.grad(out, list(leaves.values()), grad)
        return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}

    return call


def test_nothing_synchronises() -> None:
    call = step(problem(dtype=torch.bfloat16))
    call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_on_another_stream() -> None:
    args = problem(dtype=torch.bfloat16)
    call = step(args)
    call()
    other_input = torch.randn_like(args["input"])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        args["input"].copy_(other_input)  # what does not wait for the stream reads the old one
        other = call()
    torch.cuda.current_stream().wait_stream(stream)
    expected = call()
    assert all(torch.equal(expected[name], other[name]) for name in expected)


def test_in_a_cuda_graph() -> None:
    args = problem(dtype=torch.bfloat16)
    call = step(args)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for _ in range(2):
        for value in args.values():
            value.copy_(torch.randn_like(value))
        graph.replay()
        expected = call()
        assert all(torch.equal(expected[name], captured[name]) for name in expected)


def test_compiled_with_reduced_overhead() -> None:
    layer = dasr_ops.DynamicConv2d(64, 64, 3, padding=1, num_experts=5).to(DEVICE)
    compiled = torch.compile(layer, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):  # eager, recorded, replayed
        x, a = torch.randn(2, 64, 17, 19, device=DEVICE), torch.rand(2, 5, device=DEVICE)
        results = []
        for module in (layer, compiled):
            torch.compiler.cudagraph_mark_step_begin()
            layer.zero_grad()  # gradients in the memory of a graph live until its next run
            out = module(x, a)
            out.square().mean().backward()
            grads = [p.grad.clone() for p in layer.parameters()]
            results.append([out.detach().clone(), *grads])
        for got, want in zip(*results, strict=True):
            assert torch.allclose(got, want, atol=1e-5)


def test_under_autocast() -> None:
    args = problem()
    grad = random_gradient(args, torch.bfloat16, padding=1)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        got = run(args, BACKEND, grad, padding=1)
    assert got["out"].dtype == torch.bfloat16
    assert all(got[name].dtype == torch.float32 for name in args)
    want = expected_of(args, grad, padding=1)
    for name in want:
        assert rms_error(got[name].cpu(), want[name]) <= 4 * ROUNDOFF[torch.bfloat16], name


def test_on_the_second_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    args = {k: v.to("cuda:1") for k, v in problem(dtype=torch.bfloat16).items()}
    check(args, padding=1)
    assert torch.cuda.current_device() == 0


def test_memory_of_a_layer() -> None:
    """Beside its output a forward pass takes no more than the aggregated kernels."""
    args = problem(6, (64, 64), (128, 128), dtype=torch.bfloat16, channels_last=True)
    with torch.no_grad():
        dasr_ops.dynamic_conv2d(**args, padding=1)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        out = dasr_ops.dynamic_conv2d(**args, padding=1)
        extra = torch.cuda.max_memory_allocated() - before - out.nbytes
    assert extra <= 6 * 64 * 64 * 9 * 2 + 4096


def test_opcheck() -> None:
    args = problem(2, (8, 8), (5, 6))
    leaves = [args[name].requires_grad_() for name in args]
    options = ([1, 1], [1, 1, 1, 1], [1, 1], 1, 0.0, 1.0, 1, False, False, False)
    torch.library.opcheck(torch.ops.dasr_ops.dynamic_conv2d.default, (*leaves, None, *options))
