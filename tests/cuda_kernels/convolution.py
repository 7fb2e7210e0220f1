"""Convolutions and their gradients, through the operators that call them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernel import Case, Kernel, Tensors, random, with_rounding

_F64, _F32, _F16, _BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
_TYPES = [(_BF16, False), (_F16, False), (_F32, True), (_F32, False), (_F64, False)]

# Input [B, I, H, W], kernel [O, I/g, kh, kw], then stride, padding (top, bottom, left, right),
# dilation and groups.
_PLAIN = ((1, 1), (0, 0, 0, 0), (1, 1), 1)
_SAME = ((1, 1), (1, 1, 1, 1), (1, 1), 1)
_GEMM = [
    # patches with a halo of 128 pixels, and with 8 channels; few channels; gathered pixels
    ((2, 64, 17, 19), (64, 64, 3, 3), _SAME),
    ((2, 40, 19, 33), (3, 40, 3, 3), _SAME),
    ((2, 3, 19, 33), (40, 3, 5, 5), ((1, 1), (2, 2, 2, 2), (1, 1), 1)),
    ((2, 48, 9, 13), (72, 48, 1, 1), _PLAIN),
    ((2, 32, 9, 13), (32, 32, 3, 3), _SAME),
    ((2, 37, 9, 13), (67, 37, 3, 3), _SAME),
    ((2, 16, 13, 18), (64, 16, 3, 3), ((2, 3), (1, 1, 1, 1), (1, 1), 1)),
    ((2, 16, 13, 18), (64, 16, 3, 2), ((1, 1), (4, 1, 0, 3), (2, 3), 1)),
    ((2, 48, 9, 10), (96, 16, 3, 3), ((1, 1), (1, 1, 1, 1), (1, 1), 3)),
    ((1, 8, 12, 11), (40, 8, 7, 7), ((2, 2), (3, 3, 3, 3), (1, 1), 1)),
]
# Enough samples that patches of 256 pixels fill a device.
_LARGE = ((66, 24, 16, 16), (72, 24, 3, 3), _SAME)
_LARGE_IMAGE = ((1, 16, 65, 70), (16, 16, 3, 3), _SAME)
_DEPTHWISE = [
    ((2, 24, 17, 19), (24, 1, 3, 3), ((1, 1), (1, 1, 1, 1), (1, 1), 24)),
    ((2, 37, 15, 40), (74, 1, 5, 3), ((2, 1), (2, 2, 1, 1), (1, 2), 37)),
]


# 64 channels and others, parts of tiles, of 64 channels and of groups; the gradient is served, too.
_WGMMA = [
    ((2, 64, 17, 19), (64, 64, 3, 3), _SAME),
    ((1, 64, 33, 9), (128, 64, 1, 1), _PLAIN),
    ((2, 96, 16, 8), (96, 48, 3, 3), ((1, 1), (1, 1, 1, 1), (1, 1), 2)),
    ((2, 80, 9, 13), (80, 80, 3, 2), ((1, 1), (4, 1, 0, 3), (2, 3), 1)),
    ((2, 48, 9, 13), (64, 48, 1, 7), ((1, 1), (0, 0, 3, 3), (1, 1), 1)),
]
# More tiles than multiprocessors, and more kernels.
_WGMMA_LARGE = [
    ((1, 64, 130, 150), (64, 64, 3, 3), _SAME),
    ((150, 64, 9, 9), (64, 64, 3, 3), _SAME),
]
_CHOICE = "DASR_OPS_CUDA_CONV"


def _cases(shapes: Sequence[Any]) -> list[Case]:
    return [(*shape, *types, last) for shape in shapes for types in _TYPES for last in (0, 1)]


def _output_size(size: Sequence[int], kernel: Sequence[int], options: Any) -> tuple[int, ...]:
    stride, padding, dilation, _ = options
    extents = (
        (size[2 + d] + padding[2 * d] + padding[2 * d + 1] - dilation[d] * (kernel[2 + d] - 1) - 1)
        // stride[d]
        + 1
        for d in (0, 1)
    )
    return (size[0], kernel[0], *extents)


def _inputs(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    options: Any,
    dtype: torch.dtype,
    tf32: bool,
    channels_last: bool,
) -> Tensors:
    generator = torch.Generator().manual_seed(sum(size) + sum(kernel))

    def draw(*shape: int) -> Tensor:
        tensor = random(generator, *shape, dtype=dtype, offset=0)
        if channels_last and len(shape) == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    out = _output_size(size, kernel, options)
    stride, padding, dilation, groups = options
    return {
        "input": draw(*size),
        "weight": draw(size[0], *kernel),
        "bias": draw(size[0], kernel[0]),
        "grad": draw(*out),
        # Of the same layout; its signs are those of the activation's argument.
        "output": draw(*out),
        "options": torch.tensor([*stride, *padding, *dilation, groups, tf32]),
    }


def _options(inputs: Tensors) -> tuple[Any, bool]:
    values = inputs["options"].tolist()
    stride, padding, dilation, (groups, tf32) = values[:2], values[2:6], values[6:8], values[8:]
    return (tuple(stride), tuple(padding), tuple(dilation), groups), bool(tf32)


def _run(
    ops: Any, device: str, inputs: Tensors, names: Sequence[str], slope: float | None
) -> Tensors:
    """What is named of out, grad_input, grad_weight and grad_bias, by the operators ``ops``."""
    (stride, padding, dilation, groups), tf32 = _options(inputs)
    x, w, bias, grad, output = (
        inputs[name].to(device) for name in ("input", "weight", "bias", "grad", "output")
    )
    options = (list(stride), list(padding), list(dilation), groups, slope, 1.0, 1)
    result = {}
    if "out" in names:
        arguments = (x, w, bias, None, *options, False, False, tf32)
        result["out"] = ops.per_sample_conv2d(*arguments)[0]
    gradients = ("grad_input", "grad_weight", "grad_bias")
    wanted = [name in names for name in gradients]
    if any(wanted):
        saved = None if slope is None else output
        arguments = (grad, x, w, bias, saved, None, *options, wanted, False, tf32)
        found = ops.per_sample_conv2d_backward(*arguments)
        result |= {n: g for n, g, want in zip(gradients, found, wanted, strict=True) if want}
    return result


def _convolve(x: Tensor, w: Tensor, options: Any) -> Tensor:
    stride, (top, bottom, left, right), dilation, groups = options
    padded = F.pad(x, (left, right, top, bottom)).flatten(0, 1).unsqueeze(0)
    out = F.conv2d(padded, w.flatten(0, 1), None, stride, 0, dilation, len(x) * groups)
    return out.view(len(x), w.shape[1], *out.shape[2:])


def _gradients(x: Tensor, w: Tensor, grad: Tensor, options: Any) -> tuple[Tensor, Tensor]:
    leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
    return torch.autograd.grad(_convolve(*leaves, options), leaves, grad)


def _reference(
    inputs: Tensors, names: Sequence[str], slope: float | None
) -> tuple[Tensors, Tensors]:
    options, tf32 = _options(inputs)
    dtype = inputs["input"].dtype
    x, w, bias, grad = (inputs[name].double() for name in ("input", "weight", "bias", "grad"))
    # The reference errs as much as a kernel in float64.
    unit = 2.0**-52 if dtype == _F64 else 2.0**-24
    operands = 2.0**-10 + 2.0**-22 if tf32 else 0.0  # both rounded to tf32
    if slope is not None:
        grad = torch.where(inputs["output"].double() > 0, grad, grad * slope)
        # Rounded before it is multiplied.
        operands += torch.finfo(dtype).eps / 2 + unit
    expected = {"out": _convolve(x, w, options) + bias[:, :, None, None]}
    sizes = {"out": _convolve(x.abs(), w.abs(), options) + bias.abs()[:, :, None, None]}
    expected["grad_input"], expected["grad_weight"] = _gradients(x, w, grad, options)
    sizes["grad_input"], sizes["grad_weight"] = _gradients(x.abs(), w.abs(), grad.abs(), options)
    expected["grad_bias"], sizes["grad_bias"] = grad.sum((2, 3)), grad.abs().sum((2, 3))
    terms = {
        "out": math.prod(w.shape[2:]),
        "grad_input": w.shape[1] * math.prod(w.shape[3:]),
        "grad_weight": math.prod(grad.shape[2:]),
        "grad_bias": math.prod(grad.shape[2:]),
    }
    bounds = {}
    for name in names:
        bound = ((terms[name] + 3) * unit + operands) * sizes[name]
        bounds[name] = with_rounding(bound, expected[name], dtype)
    return {name: expected[name] for name in names}, bounds


def _on_device(names: Sequence[str], slope: float | None) -> Callable[[Tensors], Tensors]:
    return lambda inputs: _run(torch.ops.dasr_ops, "cuda", inputs, names, slope)


def _emulated(names: Sequence[str], slope: float | None) -> Callable[[Tensors], Tensors]:
    def run(inputs: Tensors) -> Tensors:
        from ..emulation import operators

        operators.backend()
        return _run(torch.ops.dasr_ops_emulated, "cpu", inputs, names, slope)

    return run


def _kernel(
    launcher: str,
    shapes: Sequence[Any],
    names: Sequence[str],
    slope: float | None = None,
    large: Sequence[Any] = (),
) -> Kernel:
    cases = _cases(shapes)
    return Kernel(
        launcher=launcher,
        cases=cases + [(*shape, _BF16, False, last) for shape in large for last in (0, 1)],
        small=[*cases[:10], *cases[-10:]],
        inputs=_inputs,
        device=_on_device(names, slope),
        emulated=_emulated(names, slope),
        reference=lambda inputs: _reference(inputs, names, slope),
        same_bits=False,
    )


def _by_wgmma(run: Callable[[Tensors], Tensors]) -> Callable[[Tensors], Tensors]:
    """``run`` with wgmma wherever it serves: on Hopper and in the emulation."""

    def chosen(inputs: Tensors) -> Tensors:
        before = os.environ.get(_CHOICE)
        os.environ[_CHOICE] = "wgmma"
        try:
            return run(inputs)
        finally:
            if before is None:
                del os.environ[_CHOICE]
            else:
                os.environ[_CHOICE] = before

    return chosen


def _wgmma_kernel() -> Kernel:
    names = ("out", "grad_input")
    small = [(*shape, dtype, False, 1) for shape in _WGMMA for dtype in (_BF16, _F16)]
    return Kernel(
        launcher="conv_wgmma",
        cases=small + [(*shape, _BF16, False, 1) for shape in _WGMMA_LARGE],
        small=small,
        inputs=_inputs,
        device=_by_wgmma(_on_device(names, None)),
        emulated=_by_wgmma(_emulated(names, None)),
        reference=lambda inputs: _reference(inputs, names, None),
        same_bits=False,
    )


CONVOLUTION = [
    _kernel("conv_weight_grad", _GEMM, ("grad_weight",)),
    # What adds up the splits of large images.
    _kernel("reduce_splits", [_LARGE_IMAGE], ("grad_weight",)),
    _kernel("conv_gemm", _GEMM, ("out", "grad_input"), large=[_LARGE]),
    _wgmma_kernel(),
    _kernel("conv_depthwise", _DEPTHWISE, ("out", "grad_input")),
    _kernel("conv_depthwise_weight", _DEPTHWISE, ("grad_weight",)),
    _kernel("conv_epilogue_backward", _GEMM[2:6], ("grad_input", "grad_bias"), slope=0.2),
]
