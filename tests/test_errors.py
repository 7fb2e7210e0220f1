"""Bad arguments: the error names the argument, what was expected and what came."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import dasr_ops
from dasr_ops import DynamicConv2d


def good() -> dict[str, Any]:
    return {
        "input": torch.randn(2, 6, 8, 8),
        "weight": torch.randn(4, 8, 6, 3, 3),
        "routing_weights": torch.randn(2, 4),
        "bias": torch.randn(4, 8),
    }


BAD_DYNAMIC = [
    ("input", "not a tensor", TypeError, "expected a Tensor, got str"),
    ("input", torch.randn(6, 8, 8), ValueError, r"expected a 4-D tensor .* got \[6, 8, 8\]"),
    ("input", torch.randn(2, 5, 8, 8), ValueError, r"expected 6 channels .* got \[2, 5, 8, 8\]"),
    ("input", torch.ones(2, 6, 8, 8, dtype=torch.int32), TypeError, "got torch.int32"),
    ("input", torch.randn(2, 6, 8, 8, dtype=torch.complex64), TypeError, "got torch.complex64"),
    ("input", torch.randn(2, 6, 8, 8).to(torch.float8_e4m3fn), TypeError, "float8"),
    ("input", torch.randn(2, 6, 8, 8).to_sparse(), TypeError, "expected a dense tensor"),
    ("input", torch.nested.nested_tensor([torch.randn(6, 8, 8)] * 2), TypeError, "nested"),
    ("input", torch.randn(2, 6, 2, 8), ValueError, "too small: 2x8 after padding"),
    ("weight", torch.randn(8, 6, 3, 3), ValueError, "expected a 5-D tensor"),
    ("weight", torch.randn(0, 8, 6, 3, 3), ValueError, "at least one expert"),
    ("weight", torch.randn(4, 8, 6, 0, 3), ValueError, "kernel of at least 1x1"),
    ("weight", torch.randn(4, 8, 0, 3, 3), ValueError, r"at least one channel, got \[4, 8, 0, 3"),
    (
        "weight",
        torch.randn(4, 8, 6, 3, 3, device="meta"),
        ValueError,
        "on cpu like input, got meta",
    ),
    ("routing_weights", torch.randn(2, 5), ValueError, r"K = 4 experts, got \[2, 5\]"),
    ("routing_weights", torch.randn(3, 4), ValueError, "one row for each of the 2 images"),
    ("routing_weights", torch.randn(4), ValueError, r"\[B, K\] with K = 4"),
    ("bias", torch.randn(8), ValueError, r"\[K, O\] = \[4, 8\], got \[8\]"),
    ("stride", 0, ValueError, "values >= 1, got 0"),
    ("stride", (1, 2, 3), TypeError, "an int or a pair of ints"),
    ("stride", 1.5, TypeError, "an int or a pair of ints, got 1.5"),
    ("padding", -1, ValueError, "values >= 0, got -1"),
    ("padding", "full", ValueError, "'same' or 'valid', got 'full'"),
    ("dilation", (1, 0), ValueError, r"values >= 1, got \(1, 0\)"),
    ("dilation", 4, ValueError, None),
    ("groups", 0, ValueError, "at least 1, got 0"),
    ("groups", 3, ValueError, "a divisor of the 8 output channels"),
    ("groups", 2.0, TypeError, "expected an int, got 2.0"),
    ("activation", "gelu", ValueError, "None, 'relu' or 'leaky_relu', got 'gelu'"),
    ("upscale_factor", 3, ValueError, "square must divide the 8 output channels, got 3"),
    ("upscale_factor", 0, ValueError, "at least 1, got 0"),
    ("residual", torch.randn(2, 8, 8, 8), ValueError, r"\[2, 8, 6, 6\], got \[2, 8, 8, 8\]"),
    ("residual", torch.ones(2, 8, 6, 6, dtype=torch.int64), TypeError, "got torch.int64"),
    # Neither a learnable slope nor a learnable scale: these are constants.
    ("residual_scale", torch.tensor(0.5), TypeError, "expected a number, got Tensor"),
    ("residual_scale", "0.5", TypeError, "expected a number, got str"),
    ("residual_scale", None, TypeError, "expected a number, got NoneType"),
]


def test_slopes_are_numbers() -> None:
    for value in (torch.nn.Parameter(torch.tensor(0.1)), "0.1", 1j):
        with pytest.raises(TypeError, match=r"^dynamic_conv2d: negative_slope: expected a number"):
            dasr_ops.dynamic_conv2d(**good(), activation="leaky_relu", negative_slope=value)
        with pytest.raises(TypeError, match=r"^FusedConv2d: negative_slope: expected a number"):
            dasr_ops.FusedConv2d(3, 4, 3, activation="leaky_relu", negative_slope=value)
    for value in (np.float32(0.5), np.int64(2), True):
        dasr_ops.dynamic_conv2d(**good(), activation="leaky_relu", negative_slope=value)


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD_DYNAMIC)
def test_dynamic_conv2d(name: str, value: Any, error: type, message: str | None) -> None:
    # Too large a dilation is the image's fault: it is too small for the kernel's extent.
    named = "input" if (name, value) == ("dilation", 4) else name
    with pytest.raises(error, match=f"^dynamic_conv2d: {named}: .*{message or ''}"):
        dasr_ops.dynamic_conv2d(**good() | {name: value})


@pytest.mark.parametrize("name", ["stride", "padding", "dilation", "groups", "upscale_factor"])
def test_a_call_that_equals_a_good_one_is_checked_too(name: str) -> None:
    args = good() | {"padding": 1}
    dasr_ops.dynamic_conv2d(**args | {name: 1})
    with pytest.raises(TypeError, match=f"^dynamic_conv2d: {name}: .*, got 1.0"):
        dasr_ops.dynamic_conv2d(**args | {name: 1.0})
    if name in ("stride", "padding", "dilation"):
        dasr_ops.dynamic_conv2d(**args | {name: (1, 1)})
        with pytest.raises(TypeError, match=f"^dynamic_conv2d: {name}: .*, got "):
            dasr_ops.dynamic_conv2d(**args | {name: (1, 1.0)})


@pytest.mark.parametrize("name", ["input", "weight", "routing_weights", "bias"])
def test_a_tensor_that_differs_from_a_good_one_only_in(name: str) -> None:
    dasr_ops.dynamic_conv2d(**good())
    for change, error in (
        (lambda t: t.to("meta"), ValueError),
        (lambda t: t.long(), TypeError),
        (lambda t: t.to_sparse(), TypeError),
        (lambda t: t.numpy(), TypeError),
        (lambda t: t.tolist(), TypeError),
    ):
        args = good()
        with pytest.raises(error, match=r"^dynamic_conv2d: "):
            dasr_ops.dynamic_conv2d(**args | {name: change(args[name])})


def test_same_padding_needs_stride_1() -> None:
    with pytest.raises(ValueError, match="padding: 'same' needs stride 1"):
        dasr_ops.dynamic_conv2d(**good(), padding="same", stride=2)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight", torch.randn(3, 8, 6, 3, 3), "one kernel for each of the 2 images"),
        ("weight", torch.randn(8, 6, 3, 3), "5-D"),
        ("bias", torch.randn(8), r"\[B, O\] = \[2, 8\]"),
        ("input", torch.randn(2, 7, 8, 8), "6 channels"),
    ],
)
def test_per_sample_conv2d(name: str, value: Any, message: str) -> None:
    args = {"input": torch.randn(2, 6, 8, 8), "weight": torch.randn(2, 8, 6, 3, 3)}
    with pytest.raises(ValueError, match=f"^per_sample_conv2d: {name}: .*{message}"):
        dasr_ops.per_sample_conv2d(**args | {name: value})


@pytest.mark.parametrize(
    ("weight", "routing", "name"),
    [
        (torch.tensor(1.0), torch.randn(2, 1), "weight"),
        (torch.randn(0, 3), torch.randn(2, 0), "weight"),
        (torch.randn(4, 3), torch.randn(2, 3), "routing_weights"),
    ],
)
def test_aggregate_experts(weight: torch.Tensor, routing: torch.Tensor, name: str) -> None:
    with pytest.raises(ValueError, match=f"^aggregate_experts: {name}: "):
        dasr_ops.aggregate_experts(weight, routing)


def test_aggregate_experts_to_an_integer_type() -> None:
    with pytest.raises(TypeError, match=r"^aggregate_experts: dtype: .*got torch.int32"):
        dasr_ops.aggregate_experts(torch.randn(2, 3), torch.randn(1, 2), dtype=torch.int32)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"in_channels": 0}, ValueError, "in_channels: expected at least 1, got 0"),
        ({"out_channels": 2.0}, TypeError, "out_channels: expected an int, got 2.0"),
        ({"num_experts": 0}, ValueError, "num_experts"),
        ({"groups": 4}, ValueError, "in_channels: expected a multiple of groups = 4, got 6"),
        ({"kernel_size": 0}, ValueError, "kernel_size"),
        ({"kernel_size": "3"}, TypeError, "kernel_size"),
        ({"padding": "same", "stride": 2}, ValueError, "padding"),
        ({"padding_mode": "mirror"}, ValueError, "padding_mode: expected one of"),
        ({"activation": "tanh"}, ValueError, "activation"),
        ({"upscale_factor": 3}, ValueError, "upscale_factor"),
    ],
)
def test_module(kwargs: dict[str, Any], error: type, message: str) -> None:
    args = {"in_channels": 6, "out_channels": 8, "kernel_size": 3} | kwargs
    with pytest.raises(error, match=f"^DynamicConv2d: .*{message}"):
        DynamicConv2d(**args)


def test_from_conv2d() -> None:
    for wrong in (torch.nn.Conv1d(3, 4, 3), torch.nn.LazyConv2d(4, 3), None):
        with pytest.raises(TypeError, match=r"^from_conv2d: conv: expected an initialised"):
            DynamicConv2d.from_conv2d(wrong)
