"""The CUDA gradient of per-sample kernels, run by the emulation, against float64."""

import math
import os

import pytest
import torch

from .emulation import build

if build.missing():
    pytest.skip(build.missing(), allow_module_level=True)

from .emulation import calls
from .emulation.checks import bound_of_sum, check_guards, compare, guarded, random, rounded
from .emulation.conv_gemm_calls import conv_reference, torch_memory
from .emulation.conv_weight_grad_calls import conv_weight_grad, reduce_splits

pytestmark = pytest.mark.usefixtures("one_thread")

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
TYPES = {"bf16": (BF16, False), "fp16": (F16, False), "tf32": (F32, True), "fp32": (F32, False)}
TYPES["fp64"] = (F64, False)
VARIANT = os.environ.get("DASR_EMULATION_VARIANT", "plain")


def gradient(x, grad, weight_size, stride, padding, dilation, groups):
    w = torch.zeros(len(x), *weight_size, dtype=F64, requires_grad=True)
    y = conv_reference(x, w, stride, padding, dilation, groups)
    return torch.autograd.grad(y, w, grad.double())[0]


def check(
    size,
    weight_size,
    dtype=BF16,
    tf32=False,
    format="nchw",
    grad_format=None,
    stride=(1, 1),
    padding=(0, 0, 0, 0),
    dilation=(1, 1),
    groups=1,
    offset=0,
):
    """weight_size: O, I/g, kh, kw."""
    torch.manual_seed(0)
    options = (stride, padding, dilation, groups)
    x = random(size, format, dtype, offset)
    out_size = conv_reference(x, torch.zeros(size[0], *weight_size), *options).shape
    grad = random(tuple(out_size), grad_format or format, dtype, offset)
    parts = conv_weight_grad(x, grad, weight_size, *options, allow_tf32=tf32)
    expected = gradient(x, grad, weight_size, *options)
    magnitude = gradient(x.abs(), grad.abs(), weight_size, *options)
    bound = bound_of_sum(magnitude, out_size[2] * out_size[3], dtype, tf32)
    compare("parts", parts.sum(0, dtype=F64), expected, rounded(bound, expected, parts.dtype))
    out, guard = guarded(expected.shape, "", parts.dtype)
    reduce_splits(parts, out)
    check_guards(guard)
    compare("sum", out, expected, rounded(bound, expected, parts.dtype))
    return parts


def same(k):
    return dict(padding=(k // 2,) * 4)


SHAPES = {
    "one of each": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "one pixel": ((2, 16, 1, 1), (16, 16, 3, 3), same(3)),
    "3x3": ((2, 32, 9, 17), (64, 32, 3, 3), same(3)),
    "3x3 without padding": ((1, 32, 9, 18), (64, 32, 3, 3), {}),
    "several tiles of channels": ((1, 72, 8, 16), (136, 72, 3, 3), same(3)),
    "odd channels": ((2, 37, 9, 11), (67, 37, 3, 3), same(3)),
    "few channels": ((2, 3, 9, 20), (40, 3, 3, 3), same(3)),
    "few output channels": ((2, 40, 9, 20), (3, 40, 3, 3), same(3)),
    "1x1": ((2, 48, 9, 13), (72, 48, 1, 1), {}),
    "1x3": ((1, 24, 9, 20), (40, 24, 1, 3), dict(padding=(0, 0, 1, 1))),
    "5x5": ((1, 8, 12, 18), (16, 8, 5, 5), same(5)),
    "7x7": ((1, 8, 12, 18), (16, 8, 7, 7), same(7)),
    "11x11": ((1, 8, 12, 13), (8, 8, 11, 11), same(11)),
    "stride": ((2, 16, 13, 18), (24, 16, 3, 3), dict(stride=(2, 3), padding=(1,) * 4)),
    "dilation": ((1, 16, 13, 18), (24, 16, 3, 3), dict(dilation=(2, 3), padding=(2, 2, 3, 3))),
    "halo beyond shared memory": ((1, 16, 9, 60), (16, 16, 3, 3), dict(dilation=(1, 20))),
    "stride and dilation": (
        (1, 12, 17, 18),
        (12, 12, 3, 2),
        dict(stride=(2, 3), dilation=(3, 2), padding=(2, 1, 0, 3)),
    ),
    "groups": ((2, 48, 9, 10), (96, 16, 3, 3), dict(padding=(1,) * 4, groups=3)),
    "groups of 4": ((1, 16, 9, 10), (16, 4, 3, 3), dict(padding=(1,) * 4, groups=4)),
    "even kernel": ((1, 12, 9, 10), (20, 12, 4, 4), dict(padding=(1, 2, 1, 2))),
    "much padding": ((1, 12, 5, 6), (12, 12, 3, 3), dict(padding=(4, 5, 6, 4))),
    "many splits": ((1, 16, 40, 50), (16, 16, 3, 3), same(3)),
}


@pytest.mark.parametrize("format", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, format):
    size, weight_size, options = SHAPES[shape]
    for dtype, tf32 in ((BF16, False), (F32, True), (F32, False)):
        check(size, weight_size, dtype, tf32, format, **options)


@pytest.mark.parametrize("format", ["nchw", "nhwc"])
@pytest.mark.parametrize("type", TYPES)
def test_types(type, format):
    for k, stride in ((1, (1, 1)), (3, (1, 1)), (3, (2, 1))):
        check((2, 40, 9, 17), (72, 40, k, k), *TYPES[type], format, stride=stride, **same(k))


@pytest.mark.parametrize("format", ["nchw", "nhwc", "wchn"])
@pytest.mark.parametrize("grad_format", ["nchw", "nhwc", "hcnw"])
def test_any_layout(format, grad_format):
    check((2, 16, 9, 18), (24, 16, 3, 3), BF16, False, format, grad_format, **same(3))
    check((2, 8, 9, 18), (16, 8, 3, 3), F32, False, format, grad_format, stride=(2, 2), **same(3))


@pytest.mark.parametrize("offset", [1, 4])
@pytest.mark.parametrize("type", TYPES)
def test_any_alignment(type, offset):
    check((1, 16, 5, 7), (16, 16, 3, 3), *TYPES[type], "nhwc", offset=offset, **same(3))


def test_no_samples_and_no_pixels():
    grad = torch.empty(0, 8, 5, 5)
    assert conv_weight_grad(torch.empty(0, 4, 7, 7), grad, (8, 4, 3, 3)).shape[1:] == (
        0,
        8,
        4,
        3,
        3,
    )
    empty = torch.empty(2, 8, 0, 5)
    parts = conv_weight_grad(torch.empty(2, 4, 2, 7), empty, (8, 4, 3, 3))
    assert (parts == 0).all()


def test_samples_in_turns():
    torch.manual_seed(0)
    x, grad = torch.randn(5, 16, 9, 18), torch.randn(5, 24, 9, 18)
    options = ((24, 16, 3, 3), (1, 1), (1, 1, 1, 1))
    turns = [conv_weight_grad(x, grad, *options, samples=s) for s in ((0, 2), (2, 2), (4, 1))]
    together = conv_weight_grad(x, grad, *options).sum(0)
    for part, rows in zip(turns, (slice(0, 2), slice(2, 4), slice(4, 5)), strict=True):
        # Other splits, other order of sums.
        assert (part.sum(0) - together[rows]).abs().max() <= 162 * 2.0**-23 * 162


@pytest.mark.parametrize("type", TYPES)
def test_order_of_threads_does_not_matter(type):
    results = []
    for order, seed in (("forward", 0), ("reverse", 0), ("shuffled", 5)):
        calls.module().set_order(order, seed)
        dtype, tf32 = TYPES[type]
        results.append(
            [
                check((1, 40, 17, 20), (72, 40, 3, 3), dtype, tf32, "nhwc", **same(3)),
                check((2, 9, 13, 15), (18, 9, 2, 2), dtype, tf32, stride=(2, 1)),
            ]
        )
    calls.module().set_order("forward")
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("format", ["nchw", "nhwc"])
def test_nothing_outside_of_the_image_is_read(format):
    """NaN around a cropped image, beside its channels and behind its rows."""
    crops = []
    for _ in range(2):
        memory = torch_memory((2, 24, 12, 21), format, F32).fill_(math.nan)
        crop = memory[:, 4:20, 2:11, 1:20]
        crop.copy_(torch.randn(crop.shape))
        crops.append(crop)
    for tf32 in (False, True):
        for k in (1, 3, 4):
            pad = (k // 2, (k - 1) // 2, k // 2, (k - 1) // 2)
            options = ((16, 16, k, k), (1, 1), pad)
            assert conv_weight_grad(*crops, *options, allow_tf32=tf32).isfinite().all()


def test_huge_strides():
    """Offsets beyond 2^31 elements, over address space that is never touched."""
    memory = torch.empty(3 << 30, dtype=torch.uint8).view(BF16)
    step = (3 << 29) // 17
    x = memory.as_strided((1, 16, 3, 17), (0, 1, 16, step - step % 8))
    x.copy_(torch.randn(x.shape))
    dense = x.contiguous()
    for far, near in (((x, dense), (dense, dense)), ((dense, x), (dense, dense))):
        options = ((16, 16, 3, 3), (1, 1), (1, 1, 1, 1))
        assert torch.equal(conv_weight_grad(*far, *options), conv_weight_grad(*near, *options))


@pytest.mark.parametrize("splits", [0, 1, 3, 8, 9, 300])
def test_reduce_splits(splits):
    for n in (1, 31, 257, 1000):
        for dtype, out_dtype in ((F32, F32), (F32, BF16), (F32, F16), (F64, F64), (F64, F32)):
            partial = torch.randn(splits, n, dtype=F64).to(dtype)
            out, guard = guarded((n,), "", out_dtype)
            reduce_splits(partial, out)
            check_guards(guard)
            expected, magnitude = partial.double().sum(0), partial.double().abs().sum(0)
            bound = bound_of_sum(magnitude, splits, dtype)
            compare("out", out, expected, rounded(bound, expected, out_dtype))


@pytest.mark.skipif(VARIANT != "plain", reason="too many blocks for instrumented code")
def test_reduce_splits_walks_over_elements():
    n = 8192 * 32 + 77  # more than one grid covers, for nine splits
    partial = torch.ones(1, n).expand(9, n).contiguous()
    out = torch.full((n,), math.nan)
    reduce_splits(partial, out)
    assert (out == 9).all()


def test_bad_arguments_are_refused():
    m = calls.module()
    p = m.ConvWeightGradParams()
    s = p.shape
    s.groups = 0
    p.shape = s
    with pytest.raises(RuntimeError, match="invalid argument"):
        m.conv_weight_grad(p)
    r = m.ReduceSplitsParams()
    r.numel, r.partial_type = 1, m.DType.float16
    with pytest.raises(RuntimeError, match="invalid argument"):
        m.reduce_splits(r)
