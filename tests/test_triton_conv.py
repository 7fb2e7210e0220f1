"""Convolutions of the Triton backend, interpreted, against float64: values and every gradient."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import dasr_ops
from dasr_ops._library import unpack_mask
from tests import reference, triton_env
from tests.reference import max_error
from tests.test_op import check, forward_bar, problem, split

pytestmark = [
    pytest.mark.skipif(triton_env.missing() is not None, reason=str(triton_env.missing())),
    pytest.mark.usefixtures("exact_bfloat16", "one_thread"),
]

BACKEND = "triton"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (5, 3), (2, 4)])
def test_dtypes_and_layouts(
    dtype: torch.dtype, kernel: tuple[int, int], channels_last: bool
) -> None:
    args = problem(kernel=kernel, dtype=dtype, channels_last=channels_last)
    check(args | {"padding": 1}, BACKEND, dtype)


# Below 16 channels taps and channels are one dimension; above, tiles may be whole or not.
@pytest.mark.parametrize("channels", [(1, 1), (3, 20), (16, 3), (16, 16), (17, 33), (32, 24)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_channels(channels: tuple[int, int], channels_last: bool) -> None:
    args = problem(channels=channels, size=(5, 6), channels_last=channels_last)
    check(args | {"padding": 1}, BACKEND, torch.float32)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"stride": (1, 3), "padding": (2, 0), "dilation": (2, 1)},
        {"padding": "same", "dilation": 2},
        {"padding": 4},
        # Only some phases of the input have taps.
        {"stride": 4, "padding": 3, "dilation": 2},
        {"stride": (9, 5)},
    ],
    ids=str,
)
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_geometry(options: dict[str, Any], groups: int) -> None:
    args = problem(channels=(6, 12), groups=groups)
    check(args | options, BACKEND, torch.float32)


def test_same_padding_of_even_kernels() -> None:
    check(problem(kernel=(2, 4)) | {"padding": "same"}, BACKEND, torch.float32)
    check(problem(kernel=(4, 3), groups=2) | {"padding": "same"}, BACKEND, torch.float32)


@pytest.mark.parametrize("multiplier", [1, 2, 9])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_depthwise(multiplier: int, dtype: torch.dtype) -> None:
    args = problem(channels=(3, 3 * multiplier), groups=3, batch=3, size=(6, 7), dtype=dtype)
    check(args | {"padding": 1}, BACKEND, dtype)


@pytest.mark.parametrize(
    ("activation", "slope", "with_residual", "factor"),
    [
        *itertools.product([None, "relu", "leaky_relu"], [0.1], [False, True], [1, 2]),
        ("leaky_relu", -0.5, False, 2),
        ("leaky_relu", -0.5, True, 1),
    ],
)
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("channels_last", [False, True])
def test_fused(
    activation: str | None,
    slope: float,
    with_residual: bool,
    factor: int,
    groups: int,
    channels_last: bool,
) -> None:
    # 4 groups: one input channel each, formed directly.
    args = problem(channels=(4, 8), size=(5, 7), groups=groups, channels_last=channels_last)
    args |= {"padding": 1, "activation": activation, "negative_slope": slope}
    args |= {"upscale_factor": factor}
    if with_residual:
        shape = (2, 8 // factor**2, 5 * factor, 7 * factor)
        args |= {"residual": torch.randn(shape), "residual_scale": 0.7}
    check(args, BACKEND, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
def test_fused_in_narrow_types(dtype: torch.dtype, with_residual: bool) -> None:
    args = problem(channels=(6, 8), size=(4, 5), dtype=dtype, channels_last=True)
    args |= {"padding": 1, "activation": "leaky_relu", "negative_slope": 0.1, "upscale_factor": 2}
    if with_residual:
        args["residual"] = torch.randn(2, 2, 8, 10, dtype=dtype)
    check(args, BACKEND, dtype)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("groups", [1, 4])
def test_mask_in_the_order_of_memory(channels_last: bool, factor: int, groups: int) -> None:
    args = problem(3, (4, 12), (3, 5), groups=groups, channels_last=channels_last)
    tensors, _ = split(args)
    options = ([1, 1], [1, 1, 1, 1], [1, 1], groups, 0.2, 1.0, factor)
    residual = torch.randn(3, 12 // factor**2, 3 * factor, 5 * factor)
    output, mask = torch.ops.dasr_ops_triton.dynamic_conv2d(
        *tensors.values(), residual, *options, True, False, False
    )
    assert mask.shape == ((output.numel() + 7) // 8,)
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    sums = reference.dynamic_conv2d(**args, padding=1, upscale_factor=factor)
    assert torch.equal(unpack_mask(mask, output.shape, wanted), sums > 0)


def test_infinite_sums_and_relu() -> None:
    args = problem(size=(4, 4))
    args["bias"][:, 0], args["bias"][:, 1] = float("inf"), float("nan")
    args["routing_weights"] = args["routing_weights"].abs() + 0.1
    args["bias"][:, 2] = -float("inf")
    with dasr_ops.use_backend(BACKEND):
        out = dasr_ops.dynamic_conv2d(**args, activation="relu")
    assert out[:, 0].isposinf().all() and out[:, 1].isnan().all() and not out[:, 2].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [1, 4])
def test_per_sample(dtype: torch.dtype, groups: int) -> None:
    args = {
        "input": torch.randn(2, 4, 6, 5, dtype=dtype),
        "weight": torch.randn(2, 8, 4 // groups, 3, 3, dtype=dtype) / 6,
        "bias": torch.randn(2, 8, dtype=dtype),
        "groups": groups,
    }
    for options in ({"padding": 1}, {"stride": 2}, {"padding": 1, "activation": "relu"}):
        check(args | options, BACKEND, dtype, "per_sample")


def test_kernels_of_a_stack_are_read_in_place() -> None:
    weights = [torch.randn(3, 8, 16, 3, 3) / 12, torch.randn(3, 8, 6, 3, 3) / 7]
    routing, x = torch.randn(2, 3), torch.randn(2, 16, 5, 5)
    with dasr_ops.use_backend(BACKEND):
        kernels = dasr_ops.aggregate_experts_stack(weights, routing)
        for kernel, weight in zip(kernels, weights, strict=True):
            input = x[:, : weight.shape[2]]
            got = dasr_ops.per_sample_conv2d(input, kernel, padding=1)
            want = reference.dynamic_conv2d(input, weight, routing, padding=1)
            assert max_error(got, want) <= forward_bar(torch.float32)
    assert kernels[0].stride(2) == 1 and kernels[1].is_contiguous()


@pytest.mark.parametrize("groups", [1, 6])
def test_kernels_wider_than_sums(groups: int) -> None:
    args = {
        "input": torch.randn(2, 6, 5, 7),
        "weight": torch.randn(2, 6, 6 // groups, 3, 3, dtype=torch.float64) / 7,
        "bias": torch.randn(2, 6, dtype=torch.float64),
        "padding": 1,
        "groups": groups,
    }
    check(args, BACKEND, torch.float32, op="per_sample")


def test_mixed_dtypes() -> None:
    # What autocast hands over: a narrow input, wide experts and routing weights.
    args = problem()
    args["input"] = args["input"].bfloat16()
    with dasr_ops.use_backend(BACKEND):
        actual = dasr_ops.dynamic_conv2d(**args, padding=1)
    assert actual.dtype == torch.bfloat16
    expected = reference.dynamic_conv2d(**args, padding=1)
    assert max_error(actual, expected) <= 3 * reference.ROUNDOFF[torch.bfloat16]


@pytest.mark.parametrize("groups", [1, 6])
def test_zero_routing_skips_expert(groups: int) -> None:
    args = problem(channels=(6, 6), groups=groups, batch=3)
    args["weight"][1], args["bias"][1] = float("nan"), float("inf")
    args["routing_weights"][:, 1] = 0
    # An expert that one sample uses and another does not.
    args["weight"][2], args["bias"][2] = float("nan"), float("nan")
    args["routing_weights"][:, 2] = torch.tensor([0.0, 0.0, 1.0])
    with dasr_ops.use_backend(BACKEND):
        out = dasr_ops.dynamic_conv2d(**args)
    assert out[:2].isfinite().all() and out[2].isnan().all()


@pytest.mark.parametrize("experts", [1, 9])
def test_few_and_many_experts(experts: int) -> None:
    check(problem(experts=experts) | {"padding": 1}, BACKEND, torch.float32)


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5)])
@pytest.mark.parametrize("groups", [1, 6])
def test_noncontiguous_inputs(kernel: tuple[int, int], groups: int) -> None:
    args = problem(channels=(6, 6), kernel=kernel, size=(14, 12), groups=groups)
    args["input"] = args["input"][:, :, ::2, 1::2]
    args["weight"] = args["weight"].transpose(3, 4)
    args["routing_weights"] = torch.randn(4, 2).t()
    args["bias"] = args["bias"].t().contiguous().t()
    check(args | {"padding": 2}, BACKEND, torch.float32)
    args["input"] = args["input"].transpose(2, 3)
    check(args | {"padding": 2}, BACKEND, torch.float32)
    args["input"] = torch.randn(2, 1, 7, 6).expand(2, 6, 7, 6)
    size = (9, 8) if kernel == (3, 3) else (7, 6)
    args["residual"] = torch.randn(1, 6, 1, 1).expand(2, 6, *size)
    check(args | {"padding": 2}, BACKEND, torch.float32)


@pytest.mark.parametrize("batch", [1, 2])
def test_images_that_are_nothing_but_padding(batch: int) -> None:
    args = problem(batch, size=(0, 5))
    tensors, options = split(args)
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    with dasr_ops.use_backend(BACKEND):
        output = dasr_ops.dynamic_conv2d(**leaves, **options, padding=2)
    expected = reference.aggregate_experts(args["bias"], args["routing_weights"])
    assert max_error(output, expected[:, :, None, None].expand(output.shape)) <= 3e-6
    output.sum().backward()
    assert leaves["input"].grad.shape == leaves["input"].shape
    assert not leaves["weight"].grad.any() and leaves["bias"].grad.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_expanded_inputs(dtype: torch.dtype) -> None:
    args = problem(dtype=dtype, size=(5, 6)) | {"padding": 1, "activation": "relu"}
    rows = torch.randn(2, 5, 1, 6, dtype=dtype).permute(0, 3, 1, 2)  # channels_last
    for image in (torch.randn(2, 6, 1, 1, dtype=dtype), rows):
        check(args | {"input": image.expand(2, 6, 5, 6)}, BACKEND, dtype)


@pytest.mark.parametrize("layout", ["channels_last", "expanded", "strided"])
def test_strided_gradients(layout: str) -> None:
    args = problem(channels=(6, 8), size=(4, 5))
    tensors, options = split(args)
    grad = torch.randn(2, 8, 4, 5)
    if layout == "channels_last":
        grad = grad.contiguous(memory_format=torch.channels_last)
    elif layout == "expanded":
        grad = torch.randn(2, 1, 1, 1).expand(2, 8, 4, 5)
    else:
        grad = torch.randn(2, 8, 8, 10)[:, :, ::2, ::2]
    results = []
    for leaves, fn in (
        ({k: v.double() for k, v in tensors.items()}, reference.dynamic_conv2d),
        (tensors, dasr_ops.dynamic_conv2d),
    ):
        leaves = {k: v.detach().requires_grad_() for k, v in leaves.items()}
        with dasr_ops.use_backend(BACKEND):
            out = fn(**leaves, **options, padding=1)
        results.append(torch.autograd.grad(out, list(leaves.values()), grad.to(out.dtype)))
    for want, got, name in zip(*results, tensors, strict=True):
        assert max_error(got, want) <= 3e-6, name


@pytest.mark.parametrize("kernel", [(3, 3), (1, 1)])
@pytest.mark.parametrize("residual", [False, True])
def test_zero_batch(kernel: tuple[int, int], residual: bool) -> None:
    args = problem(batch=0, kernel=kernel)
    tensors, options = split(args)
    if residual:
        tensors["residual"] = torch.randn(0, 8, 9 - kernel[0] + 1, 7 - kernel[1] + 1)
    leaves = {k: v.requires_grad_() for k, v in tensors.items()}
    with dasr_ops.use_backend(BACKEND):
        out = dasr_ops.dynamic_conv2d(**leaves, **options, activation="relu")
    assert out.shape == (0, 8, 9 - kernel[0] + 1, 7 - kernel[1] + 1)
    out.sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None and leaf.grad.shape == leaf.shape, name
        assert not leaf.grad.any(), name


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1)])
def test_memory_format(channels_last: bool, kernel: tuple[int, int]) -> None:
    args = problem(batch=3, size=(5, 4), kernel=kernel, channels_last=channels_last)
    with dasr_ops.use_backend(BACKEND):
        out = dasr_ops.dynamic_conv2d(**args, upscale_factor=2)
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    assert out.is_contiguous(memory_format=wanted)


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_in_turns(groups: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels, and their gradients, of more samples than are taken at once."""
    from dasr_ops._backends.triton import convolve, weight_grad

    for module in (convolve, weight_grad):
        monkeypatch.setattr(module, "MAX_KERNEL_BYTES", 2 * 4 * 8 * 8 // groups * 9)
    args = problem(5, (8, 8), (4, 5), groups=groups, dtype=dtype)
    residual = torch.randn(5, 2, 8, 10, dtype=dtype)
    options = {"padding": 1, "upscale_factor": 2, "residual": residual, "activation": "relu"}
    options |= {"negative_slope": 0.1} if groups == 8 else {}
    check(args | options, BACKEND, dtype)
    per_sample = {
        "input": args["input"],
        "weight": torch.randn(5, 8, 8 // groups, 3, 3, dtype=dtype) / 8,
        "bias": torch.randn(5, 8, dtype=dtype),
        "groups": groups,
    }
    check(per_sample | options, BACKEND, dtype, "per_sample")


@pytest.mark.parametrize("groups", [1, 8])
def test_gradients_split_over_pixels(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from dasr_ops._backends.triton import weight_grad

    monkeypatch.setattr(weight_grad, "_MIN_PIXELS", 16)
    args = problem(1, (8, 8), (24, 20), groups=groups)
    tensors, _ = split(args)
    check(args | {"padding": 1, "activation": "relu"}, BACKEND, torch.float32)
    shape = weight_grad.ConvShape(
        1, groups, 8, 8, (24, 20), (24, 20), (3, 3), (1, 1), (1, 1), (1, 1)
    )
    grad = torch.randn(1, 8, 24, 20)
    parts = weight_grad.weight_gradients(grad, tensors["input"], shape, False, False)
    assert parts.shape[0] > 1


@pytest.mark.parametrize("groups", [1, 8])
def test_numbers_of_pixels_in_64_bits(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from dasr_ops._backends.triton import convolve, depthwise, epilogue, weight_grad

    for module in (convolve, depthwise, epilogue, weight_grad):
        monkeypatch.setattr(module, "is_wide", lambda pixels: True)
    args = problem(channels=(8, 16), size=(5, 6), groups=groups)
    check(args | {"padding": 1, "stride": (1, 2), "activation": "relu"}, BACKEND, torch.float32)


def test_same_bits_on_every_run() -> None:
    args = problem(3, (8, 16), (9, 8), dtype=torch.bfloat16, channels_last=True)
    tensors, _ = split(args)
    grad = torch.randn(3, 16, 9, 8, dtype=torch.bfloat16)

    def run() -> list[Tensor]:
        leaves = {k: v.detach().requires_grad_() for k, v in tensors.items()}
        with dasr_ops.use_backend(BACKEND):
            out = dasr_ops.dynamic_conv2d(**leaves, padding=1, activation="relu")
        return [out.detach(), *torch.autograd.grad(out, list(leaves.values()), grad)]

    first = run()
    torch.use_deterministic_algorithms(True)
    try:
        again = run()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
