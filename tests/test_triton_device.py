"""The Triton backend on a real device: against float64, and against the CUDA kernels."""

from __future__ import annotations

import pytest
import torch

import dasr_ops
from tests import reference
from tests import test_cuda_conv_device as cuda
from tests.reference import ROUNDOFF, max_error, rms_error

AVAILABLE = dasr_ops.backends()["triton"].startswith("available")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and AVAILABLE), reason="no GPU that Triton takes"
    ),
]

BACKEND, DEVICE = "triton", "cuda"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _triton_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks of the CUDA backend, on this one."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(cuda, "BACKEND", BACKEND)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path", cuda.PATHS)
def test_against_float64(path: str, dtype: torch.dtype, channels_last: bool) -> None:
    channels, kernel, groups, options = cuda.PATHS[path]
    args = cuda.problem(2, channels, (17, 35), kernel, groups, dtype, channels_last)
    cuda.check(args, groups=groups, **options)


@pytest.mark.parametrize("path", cuda.PATHS)
def test_tf32(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    channels, kernel, groups, options = cuda.PATHS[path]
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    args = cuda.problem(2, channels, (17, 35), kernel, groups)
    # Triton leaves the operands to the tensor cores, which cut off digits: twice the error of
    # rounding to the nearest.
    cuda.check(args, 2 * cuda.TF32, groups=groups, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path", cuda.PATHS)
def test_against_the_cuda_kernels(path: str, dtype: torch.dtype) -> None:
    if not dasr_ops.backends()["cuda"].startswith("available"):
        pytest.skip("the extension is built without CUDA")
    channels, kernel, groups, options = cuda.PATHS[path]
    args = cuda.problem(2, channels, (17, 35), kernel, groups, dtype, True)
    floor = max(3e-6, 2 * ROUNDOFF[dtype])
    grad = cuda.random_gradient(args, tolerance=floor, groups=groups, **options)
    ours = cuda.run(args, BACKEND, grad, groups=groups, **options)
    theirs = cuda.run(args, "cuda", grad, groups=groups, **options)
    for name in ours:
        assert rms_error(ours[name], theirs[name].double()) <= floor, name


def test_residual_mask_and_pixel_shuffle() -> None:
    for channels_last in (False, True):
        args = cuda.problem(dtype=torch.bfloat16, channels_last=channels_last)
        args["residual"] = torch.randn(2, 16, 34, 38, device=DEVICE, dtype=torch.bfloat16)
        options = {"padding": 1, "upscale_factor": 2, "residual_scale": -0.5}
        cuda.check(args, **options)
        cuda.check(args, activation="leaky_relu", negative_slope=0.2, **options)


@pytest.mark.parametrize("batch", [0, 1, 257])
def test_batches(batch: int) -> None:
    args = cuda.problem(batch, (16, 16), (5, 4), dtype=torch.bfloat16)
    got = cuda.run(args, BACKEND, torch.randn_like(args["input"]), padding=1)
    assert got["out"].shape == (batch, 16, 5, 4)
    if batch:
        cuda.check(args, padding=1)


def test_more_than_two_to_the_31_elements() -> None:
    if torch.cuda.mem_get_info()[0] < 30 << 30:
        pytest.skip("needs 30 GB")
    x = torch.randn(1, 8, 16_500, 16_500, device=DEVICE, dtype=torch.float16)
    args = cuda.problem(1, (8, 8), (9, 9), dtype=torch.float16)
    with torch.no_grad(), dasr_ops.use_backend(BACKEND):
        args["input"] = x
        out = dasr_ops.dynamic_conv2d(**args, padding=1)
        args["input"] = x[:, :, -64:, -64:].contiguous()
        corner = dasr_ops.dynamic_conv2d(**args, padding=1)
    assert torch.equal(out[:, :, -32:, -32:], corner[:, :, -32:, -32:])


@pytest.mark.parametrize("deterministic", [False, True])
def test_same_bits_on_every_run(deterministic: bool) -> None:
    args = cuda.problem(6, (64, 64), (64, 64), dtype=torch.bfloat16, channels_last=True)
    grad = torch.randn_like(args["input"])
    torch.use_deterministic_algorithms(deterministic)
    try:
        runs = [cuda.run(args, BACKEND, grad, padding=1, activation="relu") for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    for again in runs[1:]:
        assert all(torch.equal(runs[0][name], again[name]) for name in again)


def test_zero_routing_skips_expert() -> None:
    args = cuda.problem(dtype=torch.bfloat16)
    args["weight"][1], args["bias"][1] = float("nan"), float("inf")
    args["routing_weights"][:, 1] = 0
    with dasr_ops.use_backend(BACKEND):
        assert dasr_ops.dynamic_conv2d(**args, padding=1).isfinite().all()


def test_nothing_synchronises() -> None:
    with dasr_ops.use_backend(BACKEND):
        call = cuda.step(cuda.problem(dtype=torch.bfloat16))
        call()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_in_a_cuda_graph() -> None:
    with dasr_ops.use_backend(BACKEND):
        cuda.test_in_a_cuda_graph()


def test_on_another_stream() -> None:
    with dasr_ops.use_backend(BACKEND):
        cuda.test_on_another_stream()


def test_on_the_second_device() -> None:
    cuda.test_on_the_second_device()


def test_measured_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    from dasr_ops._backends.triton import tuning

    monkeypatch.setenv(tuning.AUTOTUNE_VARIABLE, "1")
    monkeypatch.setattr(tuning, "_measured", {})
    args = cuda.problem(2, (64, 64), (33, 35), dtype=torch.bfloat16, channels_last=True)
    cuda.check(args, padding=1)
    assert {key[0] for key in tuning._measured} == {"convolve", "weight_grad"}


def test_stack() -> None:
    weights = [torch.randn(5, 64, 64, 3, 3, device=DEVICE) / 24 for _ in range(3)]
    routing = torch.rand(2, 5, device=DEVICE)
    with dasr_ops.use_backend(BACKEND):
        kernels = dasr_ops.aggregate_experts_stack(weights, routing, dtype=torch.bfloat16)
    for kernel, weight in zip(kernels, weights, strict=True):
        want = reference.aggregate_experts(weight.cpu(), routing.cpu())
        assert max_error(kernel.cpu(), want) <= 1.01 * ROUNDOFF[torch.bfloat16]
