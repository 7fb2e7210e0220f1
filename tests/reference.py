"""The operators written out in float64, one sample and one expert at a time, and error measures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Unit roundoff of the types results are rounded to.
ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}


def aggregate_experts(weight: Tensor, routing_weights: Tensor) -> Tensor:
    samples = []
    for row in routing_weights.double():
        total = torch.zeros_like(weight[0], dtype=torch.float64)
        for k, a in enumerate(row):
            total = total + a * weight[k].double()
        samples.append(total)
    if not samples:
        return weight.new_zeros((0, *weight.shape[1:]), dtype=torch.float64)
    return torch.stack(samples)


def dynamic_conv2d(
    input: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    **options: object,
) -> Tensor:
    mixed = aggregate_experts(weight, routing_weights)
    mixed_bias = None if bias is None else aggregate_experts(bias, routing_weights)
    return per_sample_conv2d(input, mixed, mixed_bias, residual, **options)


def per_sample_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    stride: object = 1,
    padding: object = 0,
    dilation: object = 1,
    groups: int = 1,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual_scale: float = 1.0,
    upscale_factor: int = 1,
) -> Tensor:
    samples = [
        F.conv2d(
            input[b : b + 1].double(),
            weight[b].double(),
            None if bias is None else bias[b].double(),
            stride,
            padding,
            dilation,
            groups,
        )
        for b in range(input.shape[0])
    ]
    output = torch.cat(samples)
    output = F.pixel_shuffle(output, upscale_factor)
    if activation == "relu":
        output = F.relu(output)
    elif activation == "leaky_relu":
        output = F.leaky_relu(output, negative_slope)
    if residual is not None:
        output = residual.double() + residual_scale * output
    return output


def max_error(actual: Tensor, expected: Tensor) -> float:
    """Largest error over the largest expected magnitude."""
    if expected.numel() == 0:
        return 0.0
    scale = expected.abs().max().item()
    return (actual.double() - expected).abs().max().item() / (scale or 1.0)


def rms_error(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the error over that of the expected values."""
    if expected.numel() == 0:
        return 0.0
    scale = expected.double().square().mean().sqrt().item()
    return (actual.double() - expected).square().mean().sqrt().item() / (scale or 1.0)
