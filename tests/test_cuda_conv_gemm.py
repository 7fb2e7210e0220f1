"""The CUDA convolutions on tensor cores and without, run by the emulation, against float64."""

import math

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
)
from .emulation.conv_gemm_calls import conv_gemm, conv_reference

pytestmark = pytest.mark.usefixtures("one_thread")

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64


def check_forward(
    size,
    weight_size,
    dtype=BF16,
    format="nchw",
    out_format=None,
    tf32=False,
    stride=(1, 1),
    padding=(0, 0, 0, 0),
    dilation=(1, 1),
    groups=1,
    offset=0,
    experts=0,
    bias=False,
    upscale=1,
    slope=None,
    residual=None,
    scale=1.0,
    mask=False,
    multiprocessors=132,
    launcher="conv_gemm",
):
    torch.manual_seed(0)
    batch = size[0]
    x = random(size, format, dtype, offset)
    w = torch.randn(batch, *weight_size, dtype=F64).to(dtype)
    options = (stride, padding, dilation, groups)
    routing = torch.randn(batch, experts) if experts else None
    b = torch.randn(experts or batch, weight_size[0]) if bias else None
    expected = conv_reference(x, w, *options)
    magnitude = conv_reference(x.abs(), w.abs(), *options)
    bound = bound_of_sum(magnitude, math.prod(weight_size[1:]), dtype, tf32)
    unit = 2.0**-53 if dtype == F64 else 2.0**-24
    if bias:
        mixed = b.double() if routing is None else routing.double() @ b.double()
        sizes = b.double().abs() if routing is None else routing.double().abs() @ b.double().abs()
        expected = expected + mixed[:, :, None, None]
        bound = bound + ((experts + 2) * unit * sizes)[:, :, None, None] + unit * expected.abs()
    expected, bound = F.pixel_shuffle(expected, upscale), F.pixel_shuffle(bound, upscale)
    positive, doubtful = expected > 0, expected.abs() <= bound
    if slope is not None:
        expected = torch.where(positive, expected, expected * slope)
        bound = bound * max(1, abs(slope)) * (1 + unit)
    extra = None
    if residual is not None:
        extra = random(tuple(expected.shape), residual[0], residual[1])
        expected = extra.double() + scale * expected
        bound = abs(scale) * bound + 2 * unit * expected.abs()
    bits = torch.zeros((expected.numel() + 31) // 32 * 4, dtype=torch.uint8) if mask else None
    out, guard = guarded(tuple(expected.shape), out_format or format, dtype, offset)
    conv_gemm(
        x,
        w,
        out,
        size,
        *options,
        allow_tf32=tf32,
        bias=b,
        routing=routing,
        upscale=upscale,
        negative_slope=slope,
        residual=extra,
        residual_scale=scale,
        mask=bits,
        multiprocessors=multiprocessors,
        launcher=launcher,
    )
    check_guards(guard)
    compare("out", out, expected, rounded(bound, expected, dtype))
    if mask:
        flat = torch.arange(out.numel())
        got = (bits[flat // 8] >> (flat % 8).to(torch.uint8) & 1).bool()
        got = got.as_strided(out.shape, out.stride())
        assert (got == positive)[~doubtful].all() and not bits.view(torch.int32)[:0].any()


def check_transposed(
    size,
    weight_size,
    dtype=BF16,
    format="nchw",
    out_format=None,
    tf32=False,
    stride=(1, 1),
    padding=(0, 0, 0, 0),
    dilation=(1, 1),
    groups=1,
    offset=0,
    multiprocessors=132,
    launcher="conv_gemm",
):
    torch.manual_seed(0)
    x = torch.randn(size, dtype=F64, requires_grad=True)
    w = torch.randn(size[0], *weight_size, dtype=F64).to(dtype)
    options = (stride, padding, dilation, groups)
    y = conv_reference(x, w, *options)
    grad = random(tuple(y.shape), format, dtype, offset)
    (expected,) = torch.autograd.grad(y, x, grad.double(), retain_graph=True)
    magnitude = torch.zeros_like(x)
    if size[0]:
        y_abs = conv_reference(x, w.abs(), *options)
        (magnitude,) = torch.autograd.grad(y_abs, x, grad.double().abs())
    n_products = weight_size[0] // groups * weight_size[2] * weight_size[3]
    out, guard = guarded(size, out_format or format, dtype, offset)
    conv_gemm(
        grad,
        w,
        out,
        size,
        *options,
        transposed=True,
        allow_tf32=tf32,
        multiprocessors=multiprocessors,
        launcher=launcher,
    )
    check_guards(guard)
    bound = bound_of_sum(magnitude, n_products, dtype, tf32)
    compare("grad_input", out, expected, rounded(bound, expected, dtype))


SAME3 = dict(padding=(1, 1, 1, 1))
ARITHMETIC = [(BF16, False), (F16, False), (F32, True), (F32, False), (F64, False)]


@pytest.mark.parametrize("format", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype, tf32", ARITHMETIC, ids=str)
@pytest.mark.parametrize("run", [check_forward, check_transposed], ids=["forward", "transposed"])
def test_arithmetic(run, dtype, tf32, format):
    more = dict(dtype=dtype, tf32=tf32, format=format)
    # Patches of 128 and of 256 pixels, gathered pixels, 8 and 32 columns, few channels.
    run((2, 64, 17, 19), (64, 64, 3, 3), **SAME3, **more)
    run((1, 40, 17, 35), (72, 40, 3, 3), **SAME3, **more, multiprocessors=1)
    run((2, 48, 9, 13), (72, 48, 1, 1), **more)
    run((2, 40, 9, 17), (3, 40, 3, 3), **SAME3, **more)
    run((2, 3, 9, 17), (40, 3, 3, 3), **SAME3, **more)
    run((2, 32, 9, 17), (24, 32, 3, 3), **SAME3, **more)


# input, weight, options
SHAPES = {
    "one of each": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "no samples": ((0, 16, 5, 5), (16, 16, 3, 3), SAME3),
    "one pixel": ((2, 16, 1, 1), (64, 16, 3, 3), SAME3),
    "odd channels": ((2, 37, 9, 11), (67, 37, 3, 3), SAME3),
    "small image": ((3, 32, 7, 7), (128, 32, 3, 3), SAME3),
    "wide": ((1, 16, 2, 50), (64, 16, 3, 3), SAME3),
    "high": ((1, 16, 50, 2), (64, 16, 3, 3), SAME3),
    "stride": ((2, 16, 13, 16), (24, 16, 3, 3), dict(stride=(2, 3), padding=(1, 1, 1, 1))),
    "stride above kernel": ((1, 16, 13, 16), (24, 16, 1, 1), dict(stride=(3, 2))),
    "dilation": ((1, 16, 13, 16), (64, 16, 3, 3), dict(dilation=(2, 3), padding=(2, 2, 3, 3))),
    "dilation beyond a halo": (
        (1, 16, 40, 41),
        (64, 16, 3, 3),
        dict(dilation=(19, 19), padding=(19, 19, 19, 19)),
    ),
    "stride and dilation": (
        (1, 20, 17, 18),
        (40, 20, 3, 2),
        dict(stride=(2, 3), dilation=(3, 2), padding=(2, 1, 0, 3)),
    ),
    "asymmetric": ((1, 16, 9, 10), (64, 16, 3, 3), dict(padding=(0, 2, 3, 1))),
    "much padding": ((1, 16, 5, 6), (64, 16, 3, 3), dict(padding=(4, 5, 6, 4))),
    "5x5": ((1, 24, 9, 20), (64, 24, 5, 5), dict(padding=(2, 2, 2, 2))),
    "7x7": ((1, 8, 12, 11), (40, 8, 7, 7), dict(padding=(3, 3, 3, 3))),
    "1x7": ((1, 24, 9, 20), (64, 24, 1, 7), dict(padding=(0, 0, 3, 3))),
    "7x1": ((1, 24, 9, 20), (64, 24, 7, 1), dict(padding=(3, 3, 0, 0))),
    "1x2": ((1, 24, 9, 20), (64, 24, 1, 2), dict(padding=(0, 0, 0, 1))),
    "even kernel": ((1, 24, 9, 20), (64, 24, 4, 4), dict(padding=(1, 2, 1, 2))),
    "groups": ((2, 48, 9, 10), (96, 16, 3, 3), dict(groups=3, **SAME3)),
    "odd groups": ((2, 35, 9, 10), (15, 7, 3, 3), dict(groups=5, **SAME3)),
    "groups of 64": ((1, 128, 9, 10), (128, 64, 3, 3), dict(groups=2, **SAME3)),
    "depthwise": ((2, 12, 9, 10), (12, 1, 3, 3), dict(groups=12, **SAME3)),
    "depthwise of stride 2": (
        (2, 12, 9, 10),
        (24, 1, 3, 3),
        dict(groups=12, stride=(2, 2), padding=(1, 1, 1, 1)),
    ),
    "one channel": ((2, 1, 20, 30), (64, 1, 3, 3), SAME3),
    "first layer of 5x5": ((1, 3, 20, 30), (64, 3, 5, 5), dict(padding=(2, 2, 2, 2))),
    "first layer of stride 2": (
        (1, 3, 20, 30),
        (64, 3, 7, 7),
        dict(stride=(2, 2), padding=(3,) * 4),
    ),
    "last layer": ((1, 64, 20, 30), (3, 64, 3, 3), SAME3),
}


@pytest.mark.parametrize("format", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [BF16, F32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, dtype, format):
    size, weight_size, options = SHAPES[shape]
    check_forward(size, weight_size, dtype, format, **options)
    check_transposed(size, weight_size, dtype, format, **options)


@pytest.mark.parametrize("format", ["nchw", "nhwc", "nhcw", "wchn"])
@pytest.mark.parametrize("out_format", ["nchw", "nhwc"])
def test_any_layout(format, out_format):
    for run in (check_forward, check_transposed):
        run((2, 32, 9, 18), (64, 32, 3, 3), BF16, format, out_format, **SAME3)
        run((2, 32, 9, 18), (64, 32, 1, 1), F32, format, out_format)


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", [BF16, F32, F64], ids=str)
def test_any_alignment(dtype, offset):
    for run in (check_forward, check_transposed):
        run((2, 32, 9, 11), (32, 32, 3, 3), dtype, "nhwc", offset=offset, **SAME3)


def test_expanded_and_cropped_inputs():
    torch.manual_seed(0)
    w = torch.randn(3, 64, 16, 3, 3).bfloat16()
    big = torch.randn(1, 16, 40, 40).bfloat16()
    views = {
        "expanded batch": big.expand(3, -1, -1, -1)[..., 5:14, 3:20],
        "cropped": torch.randn(3, 32, 40, 40).bfloat16()[:, ::2, ::3, 1::2][..., :9, :17],
        "flipped storage": torch.randn(17, 9, 16, 3).bfloat16().permute(3, 2, 1, 0),
        "one channel for all": torch.randn(3, 1, 9, 17).bfloat16().expand(-1, 16, -1, -1),
    }
    for name, x in views.items():
        out, guard = guarded((3, 64, 9, 17), "nhwc", BF16)
        conv_gemm(x, w, out, tuple(x.shape), padding=(1, 1, 1, 1))
        check_guards(guard)
        expected = conv_reference(x, w, padding=(1, 1, 1, 1))
        magnitude = conv_reference(x.abs(), w.abs(), padding=(1, 1, 1, 1))
        bound = rounded(bound_of_sum(magnitude, 144, BF16, False), expected, BF16)
        compare(name, out, expected, bound)


@pytest.mark.parametrize("format", ["nchw", "nhwc"])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_epilogues(epilogue, format):
    options = EPILOGUES[epilogue]
    check_forward((2, 32, 9, 11), (72, 32, 3, 3), BF16, format, **SAME3, **options)
    check_forward((2, 3, 5, 11), (36, 3, 3, 3), F32, format, **SAME3, **options)
    check_forward(
        (1, 17, 5, 7), (9 if options.get("upscale") == 3 else 8, 17, 1, 1), F64, format, **options
    )


@pytest.mark.parametrize("order", ["reverse", "shuffled"])
def test_order_of_threads_does_not_matter(order):
    torch.manual_seed(0)
    x, w = torch.randn(2, 40, 9, 20).bfloat16(), torch.randn(2, 72, 40, 3, 3).bfloat16()
    results = []
    for o in ("forward", order):
        calls.module().set_order(o, 5)
        for stride in ((1, 1), (2, 1)):
            height = 9 if stride == (1, 1) else 5
            out = torch.full((2, 72, height, 20), math.nan, dtype=BF16)
            conv_gemm(x, w, out, tuple(x.shape), stride, (1, 1, 1, 1))
            results.append(out)
    calls.module().set_order("forward")
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])


def test_nothing_outside_of_the_image_is_read():
    """NaN around a cropped image, in the channels of other groups and in its padding."""
    memory = torch.full((2, 48, 12, 21), math.nan)
    x = memory[:, 8:40, 2:11, 1:20]
    x.copy_(torch.randn(x.shape))
    for format in (torch.contiguous_format, torch.channels_last):
        whole = memory.contiguous(memory_format=format)
        for dtype in (BF16, F32):
            crop = whole.to(dtype)[:, 8:40, 2:11, 1:20]
            for size in ((64, 32, 3, 3), (24, 32, 3, 3), (4, 32, 3, 3)):
                w = torch.randn(2, *size).to(dtype)
                out = torch.full((2, size[0], 9, 19), math.nan, dtype=dtype)
                conv_gemm(crop, w, out, tuple(crop.shape), padding=(1, 1, 1, 1))
                assert not out.isnan().any()


def test_special_values_stay_where_they_are():
    x = torch.randn(1, 32, 9, 20)
    x[0, 3, 4, 5] = math.nan
    x[0, 7, 0, 0] = math.inf
    w = torch.rand(1, 64, 32, 3, 3) + 0.5
    for dtype, tf32 in ((BF16, False), (F32, True), (F32, False)):
        out = torch.empty(1, 64, 9, 20, dtype=dtype)
        conv_gemm(x.to(dtype), w.to(dtype), out, (1, 32, 9, 20), padding=(1,) * 4, allow_tf32=tf32)
        assert out[0, :, 3:6, 4:7].isnan().all() and out[0, :, :2, :2].isinf().all()
        assert out.isfinite().sum() == 64 * (180 - 9 - 4)


def test_huge_strides():
    """Offsets beyond 2^31 elements, over address space that is never touched."""
    memory = torch.empty(3 << 30, dtype=torch.uint8).view(BF16)
    step = (3 << 29) // 17
    x = memory.as_strided((1, 16, 3, 17), (0, 1, 16, step - step % 8))
    x.copy_(torch.randn(x.shape))
    w = torch.randn(1, 64, 16, 3, 3).bfloat16()
    out = torch.full((1, 64, 3, 17), math.nan, dtype=BF16)
    conv_gemm(x, w, out, tuple(x.shape), padding=(1,) * 4)
    again = torch.empty_like(out)
    conv_gemm(x.contiguous(), w, again, tuple(x.shape), padding=(1,) * 4)
    assert torch.equal(out, again)


@pytest.fixture
def shared_limit():
    yield calls.module().set_shared_limit
    calls.module().set_shared_limit(227 * 1024)


# Input channels, output channels, kernel, multiprocessors, and blocks of a Hopper multiprocessor
# that csrc/README.md counts on; one KB of each is the system's.
OCCUPANCY = {
    "halo 256x64": (64, 64, 3, 1, 2),
    "halo 128x64": (64, 64, 3, 132, 4),
    "halo 256x8": (64, 3, 3, 132, 4),
    "gathered 64": (64, 64, 1, 132, 4),
    "few channels": (3, 64, 3, 132, 4),
}


@pytest.mark.parametrize("tile", OCCUPANCY)
def test_blocks_share_a_multiprocessor(tile, shared_limit):
    c_in, c_out, k, multiprocessors, blocks = OCCUPANCY[tile]
    shared_limit(228 * 1024 // blocks - 1024)
    options = dict(padding=(k // 2,) * 4, multiprocessors=multiprocessors)
    check_forward((1, c_in, 32, 32), (c_out, c_in, k, k), BF16, "nhwc", **options)
    with pytest.raises(RuntimeError, match="invalid argument"):
        shared_limit(40 * 1024)
        check_forward((1, c_in, 32, 32), (c_out, c_in, k, k), BF16, "nhwc", **options)


def test_small_shared_memory(shared_limit):
    """Everything fits the 99 KB of sm_86, sm_89 and sm_120."""
    shared_limit(99 * 1024)
    check_forward((1, 72, 17, 35), (72, 72, 7, 7), padding=(3,) * 4, multiprocessors=1)
    check_forward((1, 72, 17, 35), (72, 72, 3, 3), dilation=(7, 7), padding=(7,) * 4)
    check_forward((1, 64, 17, 35), (3, 64, 7, 7), F32, tf32=True, padding=(3,) * 4)
    # Halos that would fit if there were no biases.
    check_forward((1, 16, 18, 245), (40, 16, 3, 18), dilation=(1, 5))
    check_forward((1, 16, 35, 113), (3, 16, 4, 8), dilation=(1, 7))


def test_bad_sizes_are_refused():
    m = calls.module()
    p = m.ConvGemmParams()
    shape = p.shape
    shape.groups = 0
    p.shape = shape
    with pytest.raises(RuntimeError, match="invalid argument"):
        m.conv_gemm(p)
