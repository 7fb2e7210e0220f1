"""The convolution by wgmma (csrc/cuda/conv_wgmma.h), run by the emulation, against float64."""

import math
import os
from functools import partial

import pytest
import torch

from .emulation import build

if build.missing():
    pytest.skip(build.missing(), allow_module_level=True)

from . import test_cuda_conv_gemm as gemm
from .cuda_kernels.convolution import CONVOLUTION
from .emulation import calls, operators
from .emulation.checks import (
    EPILOGUES,
    bound_of_sum,
    check_guards,
    compare,
    guarded,
    random,
    rounded,
)
from .emulation.conv_gemm_calls import conv_gemm, conv_reference, torch_memory

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
conv_wgmma = partial(conv_gemm, launcher="conv_wgmma")
check_forward = partial(gemm.check_forward, format="nhwc", launcher="conv_wgmma")
check_transposed = partial(gemm.check_transposed, format="nhwc", launcher="conv_wgmma")
BOTH = pytest.mark.parametrize("run", [check_forward, check_transposed], ids=["forward", "grad"])
SAME3 = dict(padding=(1, 1, 1, 1))


def padding(p):
    return dict(padding=(p, p, p, p))


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@BOTH
def test_arithmetic(run, dtype):
    run((2, 64, 17, 9), (64, 64, 3, 3), dtype, **SAME3)
    run((1, 64, 16, 8), (64, 64, 1, 1), dtype)


# Input, kernel, options; of the gradient the channels change roles.
SHAPES = {
    "one pixel": ((1, 64, 1, 1), (64, 64, 3, 3), SAME3),
    "one whole tile": ((1, 64, 16, 8), (64, 64, 3, 3), SAME3),
    "one column more": ((1, 64, 16, 9), (64, 64, 3, 3), SAME3),
    "one row more": ((1, 64, 17, 8), (64, 64, 3, 3), SAME3),
    "one less of each": ((1, 64, 15, 7), (64, 64, 3, 3), SAME3),
    "wide": ((1, 64, 2, 41), (64, 64, 3, 3), SAME3),
    "high": ((1, 64, 41, 2), (64, 64, 3, 3), SAME3),
    "no samples": ((0, 64, 9, 9), (64, 64, 3, 3), SAME3),
    "three samples": ((3, 64, 9, 9), (64, 64, 3, 3), SAME3),
    "48 channels": ((1, 48, 9, 9), (48, 48, 3, 3), SAME3),
    "80 channels": ((1, 80, 9, 9), (80, 80, 3, 3), SAME3),
    "128 channels": ((1, 128, 9, 9), (128, 128, 1, 1), {}),
    "groups": ((2, 96, 9, 9), (96, 48, 3, 3), dict(groups=2, **SAME3)),
    "groups of 64": ((1, 192, 9, 9), (192, 64, 3, 3), dict(groups=3, **SAME3)),
    "dilation": ((1, 48, 9, 10), (48, 48, 3, 3), dict(dilation=(2, 3), padding=(2, 2, 3, 3))),
    "asymmetric": ((1, 48, 9, 10), (48, 48, 3, 3), dict(padding=(0, 2, 3, 1))),
    "much padding": ((1, 48, 5, 6), (48, 48, 3, 3), dict(padding=(4, 5, 6, 4))),
    "no padding": ((1, 48, 19, 12), (48, 48, 3, 3), {}),
    "1x1": ((1, 64, 9, 10), (64, 64, 1, 1), {}),
    "1x7": ((1, 48, 9, 20), (48, 48, 1, 7), dict(padding=(0, 0, 3, 3))),
    "7x1": ((1, 48, 9, 20), (48, 48, 7, 1), dict(padding=(3, 3, 0, 0))),
    "even kernel": ((1, 48, 9, 10), (48, 48, 4, 2), dict(padding=(1, 2, 1, 0))),
}


@pytest.mark.parametrize("shape", SHAPES)
@BOTH
def test_shapes(run, shape):
    size, weight_size, options = SHAPES[shape]
    run(size, weight_size, **options)


# Channels of the source and of the result, kernel: what its other role would not allow.
CHANNELS = [(16, 64, 3), (16, 33, 1), (32, 64, 5), (32, 40, 3), (32, 256, 3), (64, 96, 3)]


@pytest.mark.parametrize("source, result, kernel", CHANNELS)
def test_channels(source, result, kernel):
    more = padding(kernel // 2)
    check_forward((1, source, 9, 9), (result, source, kernel, kernel), **more)
    check_transposed((1, result, 9, 9), (source, result, kernel, kernel), **more)


@pytest.mark.parametrize("multiprocessors", [1, 2, 3, 5, 7, 40])
def test_shares_of_the_work(multiprocessors):
    """Several tiles for each warpgroup, several kernels for each block, parts of both."""
    check_forward((2, 32, 33, 20), (96, 32, 3, 3), multiprocessors=multiprocessors, **SAME3)
    check_forward((3, 96, 9, 9), (96, 48, 1, 1), groups=2, multiprocessors=multiprocessors)


@pytest.mark.parametrize("dilation", [1, 2], ids=["three warpgroups", "two"])
def test_as_many_warpgroups_as_fit(dilation):
    options = dict(dilation=(dilation, dilation), **padding(dilation))
    check_forward((1, 64, 40, 17), (64, 64, 3, 3), multiprocessors=1, **options)


@pytest.mark.parametrize("out_format", ["nhwc", "nchw", "wchn"])
def test_any_layout_of_the_output(out_format):
    for run in (check_forward, check_transposed):
        run((2, 48, 9, 9), (48, 48, 3, 3), out_format=out_format, **SAME3)


def test_any_alignment_of_the_output():
    torch.manual_seed(0)
    x, w = random((1, 32, 9, 9), "nhwc", BF16), torch.randn(1, 64, 32, 3, 3).bfloat16()
    results = []
    for offset in (0, 1, 4):
        out, guard = guarded((1, 64, 9, 9), "nhwc", BF16, offset)
        conv_wgmma(x, w, out, tuple(x.shape), **SAME3)
        check_guards(guard)
        results.append(out)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("out_format", ["nchw", "nhwc"])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_epilogues(epilogue, out_format):
    options = EPILOGUES[epilogue]
    check_forward((2, 32, 9, 11), (72, 32, 3, 3), out_format=out_format, **SAME3, **options)


def test_every_kernel_has_its_own_biases():
    more = dict(bias=True, slope=0.1, multiprocessors=1)
    check_forward((3, 32, 9, 9), (128, 32, 3, 3), **SAME3, **more)
    check_forward((2, 64, 9, 9), (128, 32, 1, 1), groups=2, experts=3, **more)


@pytest.mark.parametrize("order", ["reverse", "shuffled"])
def test_order_of_threads_does_not_matter(order):
    torch.manual_seed(0)
    x = random((2, 32, 33, 20), "nhwc", BF16)
    w = torch.randn(2, 96, 32, 3, 3).bfloat16()
    results = []
    for o, multiprocessors in (("forward", 132), (order, 132), (order, 2)):
        calls.module().set_order(o, 5)
        out = torch_memory((2, 96, 33, 20), "nhwc", BF16).fill_(math.nan)
        conv_wgmma(x, w, out, tuple(x.shape), multiprocessors=multiprocessors, **SAME3)
        results.append(out)
    calls.module().set_order("forward")
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_the_same_sums_as_by_mma():
    """Products of small integers add up exactly, whatever their order."""
    torch.manual_seed(0)
    x = random((1, 64, 17, 9), "nhwc", BF16).copy_(torch.randint(-4, 5, (1, 64, 17, 9)))
    w = torch.randint(-4, 5, (1, 64, 64, 3, 3)).bfloat16()
    results = [torch_memory((1, 64, 17, 9), "nhwc", BF16).fill_(math.nan) for _ in range(2)]
    conv_wgmma(x, w, results[0], tuple(x.shape), **SAME3)
    conv_gemm(x, w, results[1], tuple(x.shape), **SAME3)
    assert torch.equal(*results)


def test_nothing_outside_of_the_image_is_read():
    memory = torch.full((2, 48, 12, 21), math.nan).contiguous(memory_format=torch.channels_last)
    memory[:, 8:40, 2:11, 1:20] = torch.randn(2, 32, 9, 19)
    crop = memory.bfloat16()[:, 8:40, 2:11, 1:20]
    w = torch.randn(2, 64, 32, 3, 3).bfloat16()
    out = torch.full((2, 64, 9, 19), math.nan, dtype=BF16)
    conv_wgmma(crop, w, out, tuple(crop.shape), **SAME3)
    assert not out.isnan().any()


def test_expanded_samples():
    torch.manual_seed(0)
    x = random((1, 32, 9, 9), "nhwc", BF16).expand(3, -1, -1, -1)
    w = torch.randn(3, 64, 32, 3, 3).bfloat16()
    out = torch.full((3, 64, 9, 9), math.nan, dtype=BF16)
    conv_wgmma(x, w, out, tuple(x.shape), **SAME3)
    magnitude = conv_reference(x.abs(), w.abs(), **SAME3)
    expected = conv_reference(x, w, **SAME3)
    bound = bound_of_sum(magnitude, 288, BF16, False)
    compare("out", out, expected, rounded(bound, expected, BF16))


def test_some_of_the_samples():
    torch.manual_seed(0)
    x, w = random((3, 32, 9, 9), "nhwc", BF16), torch.randn(3, 64, 32, 3, 3).bfloat16()
    bias = torch.randn(3, 64)
    results = [torch.zeros(3, 64, 9, 9, dtype=BF16) for _ in range(2)]
    conv_wgmma(x, w, results[0], (3, 32, 9, 9), bias=bias, **SAME3)
    # Kernels are those of the samples computed, all else is of the whole batch.
    conv_wgmma(x, w[1:], results[1], (2, 32, 9, 9), bias=bias, first_sample=1, **SAME3)
    assert (results[1][0] == 0).all() and torch.equal(results[0][1:], results[1][1:])


def test_special_values_stay_where_they_are():
    x = random((1, 32, 9, 20), "nhwc", BF16)
    x[0, 3, 4, 5], x[0, 7, 0, 0] = math.nan, math.inf
    w = (torch.rand(1, 64, 32, 3, 3) + 0.5).bfloat16()
    out = torch.empty(1, 64, 9, 20, dtype=BF16)
    conv_wgmma(x, w, out, tuple(x.shape), **SAME3)
    assert out[0, :, 3:6, 4:7].isnan().all() and out[0, :, :2, :2].isinf().all()
    assert out.isfinite().sum() == 64 * (180 - 9 - 4)


def test_huge_strides():
    """Offsets beyond 2^31 elements, over address space that is never touched."""
    memory = torch.empty(3 << 30, dtype=torch.uint8).view(BF16)
    step = (3 << 29) // 17
    x = memory.as_strided((1, 16, 3, 17), (0, 1, 16, step - step % 8))
    x.copy_(torch.randn(x.shape))
    w = torch.randn(1, 64, 16, 3, 3).bfloat16()
    results = [torch.full((1, 64, 3, 17), math.nan, dtype=BF16) for _ in range(2)]
    conv_wgmma(x, w, results[0], tuple(x.shape), **SAME3)
    dense = x.contiguous(memory_format=torch.channels_last)
    conv_wgmma(dense, w, results[1], tuple(x.shape), **SAME3)
    assert torch.equal(*results)


REFUSED = {
    "stride": ((1, 64, 9, 9), (64, 64, 3, 3), dict(stride=(2, 1))),
    "few channels of the result": ((1, 64, 9, 9), (32, 64, 3, 3), {}),
    "odd channels": ((1, 72, 9, 9), (64, 72, 3, 3), {}),
    "few channels": ((1, 8, 9, 9), (64, 8, 3, 3), {}),
    "fp32": ((1, 64, 9, 9), (64, 64, 3, 3), dict(dtype=F32, tf32=True)),
    "layout": ((1, 64, 9, 9), (64, 64, 3, 3), dict(format="nchw")),
    "alignment": ((1, 64, 9, 9), (64, 64, 3, 3), dict(offset=1)),
    "too large a kernel": ((1, 128, 9, 9), (64, 128, 3, 3), {}),
    "too large a halo": ((1, 64, 40, 40), (64, 64, 3, 3), dict(dilation=(8, 8))),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_does_not_serve_is_refused(case):
    size, weight_size, options = REFUSED[case]
    with pytest.raises(RuntimeError, match="invalid argument"):
        check_forward(size, weight_size, **options)


def test_the_cases_for_a_device_are_served():
    (entry,) = (kernel for kernel in CONVOLUTION if kernel.launcher == "conv_wgmma")
    for case in entry.cases:
        inputs = entry.inputs(*case)
        stride, pads, dilation, (groups, _) = (
            inputs["options"].tolist()[i:j] for i, j in ((0, 2), (2, 6), (6, 8), (8, 10))
        )
        size = tuple(inputs["input"].shape)
        for source, transposed in (("input", False), ("grad", True)):
            assert conv_gemm(
                inputs[source],
                inputs["weight"],
                torch.empty(0, 0, 0, 0),
                size,
                stride,
                pads,
                dilation,
                groups,
                transposed=transposed,
                launcher="conv_wgmma_serves",
            )


@pytest.mark.skipif(
    os.environ.get("DASR_EMULATION_VARIANT") == "asan", reason="the operators are not instrumented"
)
def test_operators_choose_by_name(monkeypatch):
    operators.backend()
    torch.manual_seed(0)
    x = random((1, 64, 17, 19), "nhwc", F16)
    w, bias = torch.randn(1, 64, 64, 3, 3).half(), torch.randn(1, 64)
    results = {}
    for choice in ("", "mma", "wgmma"):
        monkeypatch.setenv("DASR_OPS_CUDA_CONV", choice)
        arguments = (x, w, bias, None, [1, 1], [1, 1, 1, 1], [1, 1], 1, None, 1.0, 1)
        results[choice] = torch.ops.dasr_ops_emulated.per_sample_conv2d(
            *arguments, False, False, False
        )[0]
    # The two add up in different orders.
    assert torch.equal(results[""], results["mma"])
    assert not torch.equal(results["mma"], results["wgmma"])
    assert torch.allclose(results["mma"], results["wgmma"], atol=0.2)
    monkeypatch.setenv("DASR_OPS_CUDA_CONV", "wmma")
    with pytest.raises(RuntimeError, match="must be wgmma or mma"):
        torch.ops.dasr_ops_emulated.per_sample_conv2d(*arguments, False, False, False)
