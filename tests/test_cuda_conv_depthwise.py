"""The CUDA convolutions with one input channel per group, run by the emulation, against float64."""

import math
import os

import pytest
import torch
import torch.nn.functional as F

from .emulation import build

if build.missing():
    pytest.skip(build.missing(), allow_module_level=True)

from .emulation import calls
from .emulation.checks import (
    EPILOGUES,
    bound_of_sum,
    check_guards,
    compare,
    guarded,
    random,
    rounded,
    unit_of,
)
from .emulation.conv_depthwise_calls import conv_depthwise, conv_depthwise_weight
from .emulation.conv_gemm_calls import conv_reference, torch_memory

pytestmark = pytest.mark.usefixtures("one_thread")

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
DTYPES = [F32, F16, BF16, F64]
VARIANT = os.environ.get("DASR_EMULATION_VARIANT", "plain")


def check_forward(
    size,
    weight_size,
    dtype=BF16,
    format="nchw",
    out_format=None,
    stride=(1, 1),
    padding=(0, 0, 0, 0),
    dilation=(1, 1),
    weight_dtype=None,
    offset=0,
    experts=0,
    bias=False,
    upscale=1,
    slope=None,
    residual=None,
    scale=1.0,
    mask=False,
):
    """weight_size: O, kh, kw."""
    torch.manual_seed(0)
    batch = size[0]
    x = random(size, format, dtype, offset)
    o, kh, kw = weight_size
    w = torch.randn(batch, o, 1, kh, kw, dtype=F64).to(weight_dtype or dtype)
    routing = torch.randn(batch, experts) if experts else None
    b = torch.randn(experts or batch, o) if bias else None
    options = (stride, padding, dilation)
    expected = conv_reference(x, w, *options, groups=size[1])
    magnitude = conv_reference(x.abs(), w.abs(), *options, groups=size[1])
    bound = bound_of_sum(magnitude, kh * kw, dtype)
    unit = unit_of(dtype)
    if bias:
        mixed = b.double() if routing is None else routing.double() @ b.double()
        sizes = b.double().abs() if routing is None else routing.double().abs() @ b.double().abs()
        expected = expected + mixed[:, :, None, None]
        bound = bound + ((experts + 2) * unit * sizes)[:, :, None, None] + unit * expected.abs()
    expected, bound = F.pixel_shuffle(expected, upscale), F.pixel_shuffle(bound, upscale)
    positive, doubtful = expected > 0, expected.abs() <= bound
    if slope is not None:
        expected = torch.where(positive, expected, expected * slope)
        bound = bound * max(1, abs(slope)) + 2 * unit * expected.abs()
    extra = None
    if residual is not None:
        extra = random(tuple(expected.shape), residual[0], residual[1] or dtype)
        bound = abs(scale) * bound + 2 * unit * (scale * expected).abs()
        expected = extra.double() + scale * expected
        bound = bound + 2 * unit * expected.abs()
    bits = torch.zeros((expected.numel() + 31) // 32 * 4, dtype=torch.uint8) if mask else None
    out, guard = guarded(tuple(expected.shape), out_format or format, dtype, offset)
    conv_depthwise(
        x,
        w,
        out,
        size,
        *options,
        bias=b,
        routing=routing,
        upscale=upscale,
        negative_slope=slope,
        residual=extra,
        residual_scale=scale,
        mask=bits,
    )
    check_guards(guard)
    compare("out", out, expected, rounded(bound, expected, dtype))
    if mask:
        flat = torch.arange(out.numel())
        got = (bits[flat // 8] >> (flat % 8).to(torch.uint8) & 1).bool()
        got = got.as_strided(out.shape, out.stride())
        assert (got == positive)[~doubtful].all()
    return out


def check_backward(
    size,
    weight_size,
    dtype=BF16,
    format="nchw",
    out_format=None,
    stride=(1, 1),
    padding=(0, 0, 0, 0),
    dilation=(1, 1),
    weight_dtype=None,
    offset=0,
):
    torch.manual_seed(0)
    o, kh, kw = weight_size
    inner = random(size, format, dtype, offset)
    w = torch.randn(size[0], o, 1, kh, kw, dtype=F64).to(weight_dtype or dtype)
    options = (stride, padding, dilation)

    def gradients(x, w, grad):
        x, w = x.double().requires_grad_(), w.double().requires_grad_()
        y = conv_reference(x, w, *options, groups=size[1])
        if grad is None:
            return y
        return torch.autograd.grad(y, (x, w), grad.double())

    with torch.no_grad():
        shape = tuple(gradients(inner, w, None).shape)
    grad = random(shape, out_format or format, dtype, offset)
    if size[0]:
        expected = gradients(inner, w, grad)
        magnitude = gradients(inner.abs(), w.abs(), grad.abs())
    else:
        expected = magnitude = (inner.double(), w.double())

    grad_input, guard = guarded(size, format, dtype, offset)
    conv_depthwise(grad, w, grad_input, size, *options, transposed=True)
    check_guards(guard)
    bound = bound_of_sum(magnitude[0], kh * kw * (o // size[1]), dtype)
    compare("grad_input", grad_input, expected[0], rounded(bound, expected[0], dtype))

    acc = F64 if dtype == F64 else F32
    grad_weight, guard = guarded(tuple(w.shape), None, acc, offset)
    conv_depthwise_weight(inner, grad, grad_weight, *options)
    check_guards(guard)
    bound = bound_of_sum(magnitude[1], shape[2] * shape[3], dtype)
    compare("grad_weight", grad_weight, expected[1], rounded(bound, expected[1], acc))
    return grad_input, grad_weight


def check(size, weight_size, dtype=BF16, format="nchw", out_format=None, **options):
    check_forward(size, weight_size, dtype, format, out_format, **options)
    check_backward(size, weight_size, dtype, format, out_format, **options)


def same(k):
    return dict(padding=(k // 2,) * 4)


# input, O and kernel, options
SHAPES = {
    "one of each": ((1, 1, 1, 1), (1, 1, 1), {}),
    "no samples": ((0, 8, 5, 5), (8, 3, 3), same(3)),
    "one pixel": ((2, 16, 1, 1), (16, 3, 3), same(3)),
    "3x3": ((3, 24, 9, 11), (24, 3, 3), same(3)),
    "3x3 without padding": ((1, 24, 9, 11), (24, 3, 3), {}),
    "5x5": ((1, 24, 9, 12), (24, 5, 5), same(5)),
    "7x7": ((1, 20, 12, 11), (20, 7, 7), same(7)),
    "odd channels": ((2, 37, 9, 11), (37, 3, 3), same(3)),
    "144 channels": ((1, 144, 5, 6), (144, 3, 3), same(3)),
    "many channels": ((1, 264, 4, 3), (264, 3, 3), same(3)),
    "wide": ((1, 4, 3, 131), (4, 3, 3), same(3)),
    "high": ((1, 4, 131, 3), (4, 3, 3), same(3)),
    "stride": ((2, 12, 13, 16), (12, 3, 3), dict(stride=(2, 3), padding=(1,) * 4)),
    "stride along x": ((2, 12, 13, 16), (12, 3, 3), dict(stride=(1, 2), padding=(1,) * 4)),
    "stride above kernel": ((1, 12, 13, 16), (12, 1, 1), dict(stride=(3, 2))),
    "dilation": ((1, 12, 13, 16), (12, 3, 3), dict(dilation=(2, 3), padding=(2, 2, 3, 3))),
    "dilation along x": ((1, 12, 13, 16), (12, 5, 5), dict(dilation=(1, 3), padding=(2, 2, 6, 6))),
    "stride and dilation": (
        (1, 12, 17, 18),
        (12, 3, 2),
        dict(stride=(2, 3), dilation=(3, 2), padding=(2, 1, 0, 3)),
    ),
    "stride 4 of 7x7": ((1, 8, 29, 30), (8, 7, 7), dict(stride=(4, 4), padding=(3,) * 4)),
    "asymmetric": ((1, 12, 9, 10), (12, 3, 3), dict(padding=(0, 2, 3, 1))),
    "much padding": ((1, 12, 5, 6), (12, 3, 3), dict(padding=(4, 5, 6, 4))),
    "1x7": ((1, 12, 9, 20), (12, 1, 7), dict(padding=(0, 0, 3, 3))),
    "7x1": ((1, 12, 9, 20), (12, 7, 1), dict(padding=(3, 3, 0, 0))),
    "3x5": ((1, 12, 9, 20), (12, 3, 5), dict(padding=(1, 1, 2, 2))),
    "even kernel": ((1, 12, 9, 10), (12, 4, 4), dict(padding=(1, 2, 1, 2))),
    "11x11": ((1, 128, 5, 9), (128, 11, 11), dict(padding=(5,) * 4)),
    "long columns": ((1, 36, 403, 5), (36, 400, 2), {}),
    "multiplier 2": ((2, 6, 9, 10), (12, 3, 3), same(3)),
    "multiplier 3, stride": ((2, 5, 9, 10), (15, 3, 3), dict(stride=(2, 2), padding=(1,) * 4)),
    "multiplier 8": ((1, 4, 9, 10), (32, 5, 5), same(5)),
    "first layer of one channel": ((2, 1, 20, 17), (64, 3, 3), same(3)),
    "first layer of stride 2": ((1, 1, 20, 17), (40, 7, 7), dict(stride=(2, 2), padding=(3,) * 4)),
}


@pytest.mark.parametrize("format", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, format):
    size, weight_size, options = SHAPES[shape]
    for dtype in (BF16, F32, F64):
        check(size, weight_size, dtype, format, **options)


@pytest.mark.parametrize("format", ["nchw", "nhwc"])
@pytest.mark.parametrize("weight_dtype", [None, F32], ids=["same", "fp32"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_types(dtype, weight_dtype, format):
    for k in (1, 3, 5, 7):
        check((2, 12, 9, 10), (12, k, k), dtype, format, weight_dtype=weight_dtype, **same(k))


@pytest.mark.parametrize("format", ["nchw", "nhwc", "nhcw", "wchn"])
@pytest.mark.parametrize("out_format", ["nchw", "nhwc", "hcnw"])
def test_any_layout(format, out_format):
    check((2, 16, 9, 18), (16, 3, 3), BF16, format, out_format, **same(3))
    check((2, 8, 9, 18), (16, 3, 3), F32, format, out_format, **same(3))


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_alignment(dtype, offset):
    check((2, 16, 5, 7), (16, 3, 3), dtype, "nhwc", offset=offset, **same(3))


def test_expanded_and_cropped_inputs():
    torch.manual_seed(0)
    w = torch.randn(3, 16, 1, 3, 3).bfloat16()

    def randn(*size):
        return torch.randn(size).bfloat16()

    views = {
        "expanded batch": randn(1, 16, 40, 40).expand(3, -1, -1, -1)[..., 5:14, 3:20],
        "cropped": randn(3, 32, 40, 40)[:, ::2, ::3, 1::2][..., :9, :17],
        "flipped storage": randn(17, 9, 16, 3).permute(3, 2, 1, 0),
        "one channel for all": randn(3, 1, 9, 17).expand(-1, 16, -1, -1),
        "one number": randn(1, 1, 1, 1).expand(3, 16, 9, 17),
        "cropped channels_last": randn(3, 20, 30, 32).permute(0, 3, 1, 2)[:, 8:24, 2:11, :17],
    }
    for name, x in views.items():
        for format in ("nchw", "nhwc"):
            out, guard = guarded((3, 16, 9, 17), format, BF16)
            conv_depthwise(x, w, out, tuple(x.shape), padding=(1, 1, 1, 1))
            check_guards(guard)
            expected = conv_reference(x, w, padding=(1, 1, 1, 1), groups=16)
            magnitude = conv_reference(x.abs(), w.abs(), padding=(1, 1, 1, 1), groups=16)
            bound = rounded(bound_of_sum(magnitude, 9, BF16), expected, BF16)
            compare(name, out, expected, bound)


@pytest.mark.parametrize("format", ["nchw", "nhwc"])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_epilogues(epilogue, format):
    options = EPILOGUES[epilogue]
    check_forward((2, 36, 9, 11), (36, 3, 3), BF16, format, **same(3), **options)
    check_forward((1, 9, 5, 7), (36, 3, 3), F32, format, **same(3), **options)
    check_forward((3, 36, 5, 7), (36, 2, 2), F64, format, stride=(2, 1), **options)


@pytest.mark.parametrize("format", ["nchw", "nhwc"])
def test_order_of_threads_does_not_matter(format):
    results = []
    for order, seed in (("forward", 0), ("reverse", 0), ("shuffled", 5)):
        calls.module().set_order(order, seed)
        found = []
        for size, weight_size, stride in (
            ((1, 40, 30, 20), (40, 3, 3), (1, 1)),
            ((2, 9, 23, 25), (18, 5, 5), (2, 1)),
            ((1, 128, 5, 9), (128, 11, 11), (1, 1)),
        ):
            options = dict(stride=stride, **same(weight_size[1]))
            found.append(check_forward(size, weight_size, F32, format, **options))
            found += check_backward(size, weight_size, F32, format, **options)
        results.append(found)
    calls.module().set_order("forward")
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.skipif(VARIANT != "plain", reason="too many blocks for instrumented code")
@pytest.mark.parametrize("format", ["nchw", "nhwc"])
def test_threads_walk_over_positions(format):
    torch.manual_seed(0)
    size = (1300, 8, 17, 23)
    x = random(size, format, F32)
    w = torch.randn(1, 8, 1, 3, 3)
    out, guard = guarded(size, format, F32)
    for transposed in (False, True):
        conv_depthwise(
            x, w.repeat(1300, 1, 1, 1, 1), out, size, padding=(1,) * 4, transposed=transposed
        )
        check_guards(guard)
        kernel = w[0].flip(2, 3) if transposed else w[0]
        expected = F.conv2d(x.double(), kernel.double(), padding=1, groups=8)
        magnitude = F.conv2d(x.abs().double(), kernel.abs().double(), padding=1, groups=8)
        bound = rounded(bound_of_sum(magnitude, 9, F32), expected, F32)
        compare("out", out, expected, bound)
        out.fill_(math.nan)


@pytest.mark.parametrize("format", ["nchw", "nhwc"])
def test_nothing_outside_of_the_image_is_read(format):
    """NaN around a cropped image, beside its channels and behind its rows."""
    crops = []
    for shape in ((2, 24, 12, 21), (2, 24, 12, 21)):
        memory = torch_memory(shape, format, F32).fill_(math.nan)
        crop = memory[:, 4:20, 2:11, 1:20]
        crop.copy_(torch.randn(crop.shape))
        crops.append(crop)
    for k in (2, 3, 5, 7):
        w = torch.randn(2, 16, 1, k, k)
        pad = (k // 2, (k - 1) // 2, k // 2, (k - 1) // 2)
        out = torch_memory(crops[0].shape, format, F32)
        for transposed in (False, True):
            out.fill_(math.nan)
            conv_depthwise(crops[1], w, out, tuple(out.shape), padding=pad, transposed=transposed)
            assert not out.isnan().any()
        grad_weight = torch.full_like(w, math.nan)
        conv_depthwise_weight(*crops, grad_weight, padding=pad)
        assert not grad_weight.isnan().any()


def test_special_values_stay_where_they_are():
    x = torch.randn(1, 8, 9, 20)
    x[0, 3, 4, 5] = math.nan
    x[0, 7, 0, 0] = math.inf
    w = torch.rand(1, 8, 1, 3, 3) + 0.5
    for format in ("nchw", "nhwc"):
        out = torch_memory(x.shape, format, F32)
        source = torch_memory(x.shape, format, F32).copy_(x)
        conv_depthwise(source, w, out, tuple(x.shape), padding=(1,) * 4)
        assert out[0, 3, 3:6, 4:7].isnan().all() and out[0, 7, :2, :2].isinf().all()
        assert out.isfinite().sum() == out.numel() - 9 - 4


def test_huge_strides():
    """Offsets beyond 2^31 elements, over address space that is never touched."""
    memory = torch.empty(3 << 30, dtype=torch.uint8).view(BF16)
    step = (3 << 29) // 17
    x = memory.as_strided((1, 16, 3, 17), (0, 1, 16, step - step % 8))
    x.copy_(torch.randn(x.shape))
    w = torch.randn(1, 16, 1, 3, 3).bfloat16()
    for format in ("nchw", "nhwc"):
        out, again = (torch_memory(x.shape, format, BF16) for _ in range(2))
        conv_depthwise(x, w, out, tuple(x.shape), padding=(1,) * 4)
        conv_depthwise(x.contiguous(), w, again, tuple(x.shape), padding=(1,) * 4)
        assert torch.equal(out, again)


def test_empty_gradients_are_zero():
    w = torch.full((2, 4, 1, 3, 3), math.nan)
    empty = torch.empty(2, 4, 0, 5)
    conv_depthwise_weight(torch.empty(2, 4, 2, 7), empty, w)
    assert (w == 0).all()


def test_workspace_is_bounded():
    m = calls.module()
    p = m.ConvDepthwiseWeightParams()
    for batch, channels, size in ((8, 144, 56), (1, 3, 8000), (64, 1024, 7), (1, 1, 30_000)):
        s = m.ConvShape()
        s.batch, s.groups, s.in_channels, s.out_channels = batch, channels, channels, channels
        s.kernel_h = s.kernel_w = 3
        s.in_height = s.in_width = s.out_height = s.out_width = size
        p.shape = s
        for strides in ([0, 1, 1, 1], [0, 1, channels, channels]):
            tensor = m.ConvTensor()
            tensor.stride = strides
            p.grad = tensor
            used = m.conv_depthwise_weight_workspace_size(p)
            assert used <= 1184 * 32 * 9 * 4


def test_bad_arguments_are_refused():
    m = calls.module()
    p = m.ConvDepthwiseParams()
    s = p.shape
    s.batch, s.groups, s.in_channels, s.out_channels = 1, 2, 4, 4
    p.shape = s
    with pytest.raises(RuntimeError, match="invalid argument"):
        m.conv_depthwise(p)
    w = m.ConvDepthwiseWeightParams()
    w.shape = s
    with pytest.raises(RuntimeError, match="invalid argument"):
        m.conv_depthwise_weight(w)
