"""The operators against float64: values and gradients over shapes, layouts, types and options."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dasr_ops
from tests import reference
from tests.reference import ROUNDOFF, max_error, rms_error

# Sums over n products in float32 err by about sqrt(n) roundoffs; F(4x4,3x3) amplifies that, its
# bar is 3e-6 of the largest value and 2e-6 RMS in gradients whatever n. Narrow types add one
# rounding of the kernel, of the output and, where there is one, of the saved output or gradient.
FORWARD_BAR = {torch.float32: 3e-6, torch.float64: 1e-14}
GRADIENT_BAR = {torch.float32: 2e-6, torch.float64: 1e-14}


def forward_bar(dtype: torch.dtype) -> float:
    return FORWARD_BAR.get(dtype, 2 * ROUNDOFF[dtype])


def gradient_bar(dtype: torch.dtype) -> float:
    return GRADIENT_BAR.get(dtype, 2 * ROUNDOFF[dtype])


def problem(
    batch: int = 2,
    channels: tuple[int, int] = (6, 8),
    size: tuple[int, int] = (9, 7),
    kernel: tuple[int, int] = (3, 3),
    experts: int = 4,
    groups: int = 1,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> dict[str, Any]:
    in_channels, out_channels = channels
    fan_in = in_channels // groups * kernel[0] * kernel[1]
    x = torch.randn(batch, in_channels, *size, dtype=dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(experts, out_channels, in_channels // groups, *kernel, dtype=dtype)
    return {
        "input": x,
        "weight": weight / fan_in**0.5,
        "routing_weights": torch.randn(batch, experts, dtype=dtype),
        "bias": torch.randn(experts, out_channels, dtype=dtype) if bias else None,
        "groups": groups,
    }


def split(args: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {k: v for k, v in args.items() if isinstance(v, Tensor)}
    return tensors, {k: v for k, v in args.items() if k not in tensors}


def check(args: dict[str, Any], backend: str, dtype: torch.dtype, op: str = "dynamic") -> None:
    """Compare the output and every gradient with the reference in float64."""
    tensors, options = split(args)
    actual_fn = getattr(dasr_ops, f"{op}_conv2d")
    expected_fn = getattr(reference, f"{op}_conv2d")

    expected_in = {k: v.detach().double().requires_grad_() for k, v in tensors.items()}
    expected = expected_fn(**expected_in, **options)
    actual_in = {k: v.detach().requires_grad_() for k, v in tensors.items()}
    with dasr_ops.use_backend(backend):
        actual = actual_fn(**actual_in, **options)
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    assert max_error(actual, expected) <= forward_bar(dtype), "output"

    grad = torch.randn_like(expected).to(dtype)
    expected_grads = torch.autograd.grad(expected, list(expected_in.values()), grad.double())
    actual_grads = torch.autograd.grad(actual, list(actual_in.values()), grad)
    bar = gradient_bar(dtype)
    for name, got, want in zip(tensors, actual_grads, expected_grads, strict=True):
        assert got.dtype == tensors[name].dtype, name
        assert got.shape == tensors[name].shape, name
        assert rms_error(got, want) <= bar, name


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (5, 3), (2, 4)])
def test_dtypes_and_layouts(
    backend: str, dtype: torch.dtype, kernel: tuple[int, int], channels_last: bool
) -> None:
    if backend == "eager" and dtype in (torch.bfloat16, torch.float16):
        pytest.skip("eager rounds every intermediate result in narrow types")
    args = problem(kernel=kernel, dtype=dtype, channels_last=channels_last)
    check(args | {"padding": 1}, backend, dtype)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"stride": (1, 3), "padding": (2, 0), "dilation": (2, 1)},
        {"padding": "same", "dilation": 2},
        {"padding": "valid"},
        {"padding": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("groups", [1, 2])
def test_geometry(backend: str, options: dict[str, Any], groups: int) -> None:
    check(problem(groups=groups) | options, backend, torch.float32)


def test_many_phases_of_few_taps(backend: str) -> None:
    # As in the patch embedding of a transformer.
    args = problem(channels=(3, 6), size=(24, 17), kernel=(8, 8), experts=2)
    check(args | {"stride": 8}, backend, torch.float32)
    check(args | {"stride": (4, 8), "padding": (1, 3)}, backend, torch.float32)


def test_strided_gradients_of_few_channels(backend: str) -> None:
    # Pixels of a phase lie as far apart as a vector of channels is long, on one instruction set.
    for channels in (2, 4, 8):
        args = problem(channels=(channels, 6), size=(9, 12), channels_last=True)
        check(args | {"stride": 2, "padding": 1}, backend, torch.float32)


def test_phases_of_another_length_than_the_gradients_rows(backend: str) -> None:
    # Where one tap is left, and nothing is padded before the image.
    args = problem(size=(5, 4), kernel=(1, 2))
    check(args | {"stride": (1, 2), "padding": (0, 1)}, backend, torch.float32)


def test_same_padding_of_even_kernels(backend: str) -> None:
    check(problem(kernel=(2, 4)) | {"padding": "same"}, backend, torch.float32)
    check(problem(kernel=(4, 3), groups=2) | {"padding": "same"}, backend, torch.float32)


def test_depthwise(backend: str) -> None:
    args = problem(channels=(6, 6), groups=6, batch=3)
    check(args | {"padding": 1, "activation": "relu"}, backend, torch.float32)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": (1, 2), "activation": "relu"},
        {"padding": 1, "upscale_factor": 2, "activation": "leaky_relu", "negative_slope": 0.2},
        {"padding": "same", "activation": "leaky_relu", "negative_slope": -0.5, "residual": True},
    ],
    ids=str,
)
def test_groups(backend: str, options: dict[str, Any], batch: int, channels_last: bool) -> None:
    # On the CPU wide groups are computed by kernels of our own, narrow ones of large images and,
    # where channels lie in planes, 1x1 convolutions of such by ATen.
    large = (34, 41) if backend == "cpu" else (8, 5)
    for channels, size, kernel in (
        ((40, 72), (7, 6), (3, 3)),
        ((6, 24), large, (4, 3)),
        ((34, 48), large, (1, 1)),
    ):
        groups = 3 if channels[0] == 6 else 2
        args = problem(batch, channels, size, kernel, 2, groups, channels_last=channels_last)
        args |= options
        if args.pop("residual", False):
            residual = torch.randn(batch, channels[1], *size)
            args |= {"residual": residual, "residual_scale": 0.7}
        check(args, backend, torch.float32)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 2)])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_taps_that_meet_nothing_but_padding(
    backend: str, size: tuple[int, int], groups: int
) -> None:
    args = problem(channels=(8, 8), size=size, kernel=(5, 3), groups=groups)
    for options in ({}, {"stride": 2}, {"dilation": 2}):
        padding = (4, 2) if options else (2, 1)
        check(args | {"padding": padding} | options, backend, torch.float32)
    # Some results see no pixel at all.
    args = problem(channels=(8, 8), size=size, kernel=(1, 1), groups=groups)
    check(args | {"stride": 2, "padding": 3}, backend, torch.float32)


@pytest.mark.parametrize("op", ["dynamic", "per_sample"])
@pytest.mark.parametrize("residual", [False, True])
def test_inference_computes_the_same(backend: str, op: str, residual: bool) -> None:
    args = problem(batch=4) | {"padding": 1, "activation": "leaky_relu", "upscale_factor": 2}
    if op == "per_sample":
        del args["routing_weights"]
    if residual:
        args |= {"residual": torch.randn(4, 2, 18, 14), "residual_scale": 0.7}
    tensors, options = split(args)
    function = getattr(dasr_ops, f"{op}_conv2d")
    with dasr_ops.use_backend(backend):
        trained = function(**{k: v.clone().requires_grad_() for k, v in tensors.items()}, **options)
        assert trained.requires_grad
        for context in (nullcontext(), torch.no_grad(), torch.inference_mode()):
            with context:
                assert torch.equal(function(**tensors, **options), trained)


@pytest.mark.parametrize(
    ("activation", "slope", "with_residual", "factor"),
    [
        *itertools.product([None, "relu", "leaky_relu"], [0.1], [False, True], [1, 2]),
        ("leaky_relu", -0.5, False, 2),
        ("leaky_relu", -0.5, True, 1),
    ],
)
@pytest.mark.parametrize("kernel", [(3, 3), (1, 3)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_fused(
    backend: str,
    activation: str | None,
    slope: float,
    with_residual: bool,
    factor: int,
    kernel: tuple[int, int],
    channels_last: bool,
) -> None:
    args = problem(kernel=kernel, channels_last=channels_last)
    args |= {"padding": 1, "activation": activation, "negative_slope": slope}
    args |= {"upscale_factor": factor}
    if with_residual:
        tensors, options = split(args)
        shape = reference.dynamic_conv2d(**tensors, **options).shape
        args |= {"residual": torch.randn(shape), "residual_scale": 0.7}
    check(args, backend, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_in_turns(backend: str, dtype: torch.dtype) -> None:
    """Kernels, and their gradients, of more samples than the CUDA operators take at once."""
    if backend == "eager" and dtype == torch.bfloat16:
        pytest.skip("eager rounds every intermediate result in narrow types")
    args = problem(40, (48, 40), (4, 6), dtype=dtype, channels_last=True)
    residual = torch.randn(40, 10, 8, 12, dtype=dtype)
    options = {"padding": 1, "upscale_factor": 2, "residual": residual}
    check(args | options, backend, dtype)
    args = {
        "input": args["input"],
        "weight": torch.randn(40, 40, 48, 3, 3, dtype=dtype) / 20,
        "bias": torch.randn(40, 40, dtype=dtype),
    }
    check(args | options, backend, dtype, "per_sample")
    args = problem(600, (32, 32), (3, 3), groups=32, dtype=dtype)
    check(args | {"padding": 1}, backend, dtype)


def test_per_sample(backend: str) -> None:
    args = problem()
    for options in ({"padding": 1}, {"stride": 2}, {"padding": 1, "activation": "relu"}):
        per_sample = {
            "input": args["input"],
            "weight": torch.randn(2, 8, 6, 3, 3) / 7,
            "bias": torch.randn(2, 8),
        }
        check(per_sample | options, backend, torch.float32, "per_sample")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (8, 6, 3, 3), (4099,)])
def test_aggregate(backend: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    weight = torch.randn(5, *shape, dtype=dtype, requires_grad=True)
    routing = torch.randn(3, 5, dtype=dtype, requires_grad=True)
    with dasr_ops.use_backend(backend):
        actual = dasr_ops.aggregate_experts(weight, routing)
    assert actual.dtype == dtype
    expected_in = [t.detach().double().requires_grad_() for t in (weight, routing)]
    expected = reference.aggregate_experts(*expected_in)
    # 5 products and sums in float32, one rounding to the result's type.
    bar = ROUNDOFF[dtype] * (6 if dtype.itemsize >= 4 else 1.01)
    assert max_error(actual, expected) <= bar
    grad = torch.randn_like(actual)
    actual_grads = torch.autograd.grad(actual, [weight, routing], grad)
    expected_grads = torch.autograd.grad(expected, expected_in, grad.double())
    # The routing gradient sums over all elements of an expert.
    for got, want in zip(actual_grads, expected_grads, strict=True):
        assert rms_error(got, want) <= 4 * ROUNDOFF[dtype] * max(1, weight[0].numel()) ** 0.25


def test_aggregate_dtype(backend: str) -> None:
    with dasr_ops.use_backend(backend):
        out = dasr_ops.aggregate_experts(torch.randn(2, 3), torch.randn(4, 2), dtype=torch.float16)
    assert out.dtype == torch.float16


def test_mixed_dtypes(backend: str) -> None:
    # What autocast hands over: a narrow input, wide experts and routing weights.
    args = problem()
    args["input"] = args["input"].bfloat16()
    with dasr_ops.use_backend(backend):
        actual = dasr_ops.dynamic_conv2d(**args, padding=1)
    assert actual.dtype == torch.bfloat16
    expected = reference.dynamic_conv2d(**args, padding=1)
    assert max_error(actual, expected) <= 3 * ROUNDOFF[torch.bfloat16]


@pytest.mark.parametrize("groups", [1, 6])
def test_kernels_wider_than_sums(backend: str, groups: int) -> None:
    args = {
        "input": torch.randn(2, 6, 9, 7),
        "weight": torch.randn(2, 6, 6 // groups, 3, 3, dtype=torch.float64) / 7,
        "bias": torch.randn(2, 6, dtype=torch.float64),
        "padding": 1,
        "groups": groups,
    }
    check(args, backend, torch.float32, op="per_sample")


def test_zero_routing_skips_expert() -> None:
    if "cpu" not in dasr_ops.backends() or not dasr_ops.backends()["cpu"].startswith("available"):
        pytest.skip("the extension is not built")
    for kernel in ((3, 3), (1, 1)):
        args = problem(kernel=kernel)
        args["weight"][1] = float("nan")
        args["bias"][1] = float("inf")
        args["routing_weights"][:, 1] = 0
        assert dasr_ops.dynamic_conv2d(**args).isfinite().all()


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5)])
def test_noncontiguous_inputs(backend: str, kernel: tuple[int, int]) -> None:
    args = problem(kernel=kernel, size=(18, 14))
    args["input"] = args["input"][:, :, ::2, 1::2]
    args["weight"] = args["weight"].transpose(3, 4)
    args["routing_weights"] = torch.randn(4, 2).t()
    args["bias"] = args["bias"].t().contiguous().t()
    check(args | {"padding": 2}, backend, torch.float32)
    args["input"] = args["input"].transpose(2, 3)
    check(args | {"padding": 2}, backend, torch.float32)
    args["input"] = torch.randn(2, 1, 9, 7).expand(2, 6, 9, 7)
    check(
        args
        | {
            "padding": 2,
            "residual": torch.randn(1, 8, 1, 1).expand(
                2, 8, *((11, 9) if kernel == (3, 3) else (9, 7))
            ),
        },
        backend,
        torch.float32,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("fused", [{}, {"activation": "relu"}, {"negative_slope": -0.5}], ids=str)
def test_expanded_inputs(
    backend: str, dtype: torch.dtype, groups: int, fused: dict[str, Any]
) -> None:
    # A cast makes dense tensors of other strides of them.
    if "negative_slope" in fused:
        fused = fused | {"activation": "leaky_relu"}
    args = problem(dtype=dtype, groups=groups) | {"padding": 1, **fused}
    vectors = torch.randn(2, 6, dtype=dtype)
    rows = torch.randn(2, 9, 1, 6, dtype=dtype).permute(0, 3, 1, 2)  # channels_last
    for image in (vectors[:, :, None, None], vectors[:1, :, None, None], rows):
        args["input"] = image.expand(2, 6, 9, 7)
        check(args, backend, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("padding", [2, (0, 1)])
def test_images_that_are_nothing_but_padding(
    backend: str, dtype: torch.dtype, batch: int, padding: int | tuple[int, int]
) -> None:
    size = (0, 5) if padding == 2 else (4, 0)
    args = problem(batch, size=size, kernel=(3, 2), dtype=dtype)
    tensors, options = split(args)
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    with dasr_ops.use_backend(backend):
        output = dasr_ops.dynamic_conv2d(**leaves, **options, padding=padding)
    expected = reference.aggregate_experts(args["bias"], args["routing_weights"])
    expected = expected[:, :, None, None].expand(output.shape)
    assert output.numel() and max_error(output, expected) <= forward_bar(dtype)
    output.sum().backward()
    assert leaves["input"].grad.shape == leaves["input"].shape
    assert not leaves["weight"].grad.any()
    pixels = output.shape[2] * output.shape[3]
    expected = args["routing_weights"].detach().double().sum(0)[:, None] * pixels
    assert max_error(leaves["bias"].grad, expected.expand(4, 8)) <= forward_bar(dtype)


@pytest.mark.parametrize("kernel", [(3, 3), (1, 1)])
@pytest.mark.parametrize("residual", [False, True])
def test_zero_batch(backend: str, kernel: tuple[int, int], residual: bool) -> None:
    args = problem(batch=0, kernel=kernel)
    tensors, options = split(args)
    if residual:
        tensors["residual"] = torch.randn(0, 8, 9 - kernel[0] + 1, 7 - kernel[1] + 1)
    leaves = {k: v.requires_grad_() for k, v in tensors.items()}
    with dasr_ops.use_backend(backend):
        out = dasr_ops.dynamic_conv2d(**leaves, **options, activation="relu")
    assert out.shape == (0, 8, 9 - kernel[0] + 1, 7 - kernel[1] + 1)
    out.sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None and leaf.grad.shape == leaf.shape, name
        assert not leaf.grad.any(), name


def test_memory_format(backend: str) -> None:
    for kernel in ((3, 3), (1, 1)):
        for batch in (1, 3):
            for channels_last in (False, True):
                args = problem(batch=batch, kernel=kernel, channels_last=channels_last)
                args["input"].requires_grad_()
                with dasr_ops.use_backend(backend):
                    out = dasr_ops.dynamic_conv2d(**args, upscale_factor=2)
                wanted = torch.channels_last if channels_last else torch.contiguous_format
                assert out.is_contiguous(memory_format=wanted)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_legal_call(data: st.DataObject) -> None:
    draw = data.draw
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    factor = draw(st.sampled_from([1, 1, 2]))
    kernel = draw(st.sampled_from([(3, 3), (3, 3), (1, 1), (1, 3), (5, 5), (7, 2)]))
    size = (draw(st.integers(1, 13)), draw(st.integers(1, 13)))
    dilation = draw(st.sampled_from([1, 1, 2]))
    padding = (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
    extent = [dilation * (k - 1) + 1 for k in kernel]
    if any(s + 2 * p < e for s, p, e in zip(size, padding, extent, strict=True)):
        return
    args = problem(
        batch=draw(st.integers(1, 4)),
        channels=(groups * draw(st.integers(1, 9)), groups * factor**2 * draw(st.integers(1, 6))),
        size=size,
        kernel=kernel,
        experts=draw(st.integers(1, 6)),
        groups=groups,
        bias=draw(st.booleans()),
        channels_last=draw(st.booleans()),
    )
    args |= {
        "stride": draw(st.sampled_from([1, 1, 2, (2, 1)])),
        "padding": padding,
        "dilation": dilation,
        "activation": draw(st.sampled_from([None, "relu", "leaky_relu"])),
        "negative_slope": draw(st.sampled_from([0.1, -0.3, 0.0, 1.5])),
        "upscale_factor": factor,
    }
    if draw(st.booleans()):
        tensors, options = split(args)
        args["residual"] = torch.randn(reference.dynamic_conv2d(**tensors, **options).shape)
        args["residual_scale"] = 0.3
    for name, description in dasr_ops.backends().items():
        if name in ("cpu", "eager") and description.startswith("available"):
            check(args, name, torch.float32)
