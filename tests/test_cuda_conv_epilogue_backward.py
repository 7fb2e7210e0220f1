"""The CUDA backward of what follows a convolution, run by the emulation, against float64."""

import itertools
import math
import os

import pytest
import torch
import torch.nn.functional as F

from .emulation import build

if build.missing():
    pytest.skip(build.missing(), allow_module_level=True)

from .emulation import calls
from .emulation.checks import check_guards, guarded, random
from .emulation.conv_epilogue_backward_calls import conv_epilogue_backward, pack_mask
from .emulation.conv_gemm_calls import torch_memory

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
VARIANT = os.environ.get("DASR_EMULATION_VARIANT", "plain")


def check(
    size,
    format="nchw",
    dtype=BF16,
    *,
    upscale=1,
    slope=None,
    scale=1.0,
    sign="output",
    sign_format=None,
    sign_dtype=None,
    grad_dtype=None,
    wanted=(True, True),
    offset=0,
    grad_output=None,
):
    """`size` is that of the convolution's sums."""
    torch.manual_seed(0)
    batch, channels, height, width = size
    grad_dtype = grad_dtype or dtype
    sign_dtype = sign_dtype or dtype
    outer = (batch, channels // upscale**2, height * upscale, width * upscale)
    if grad_output is None:
        grad_output = random(outer, format, dtype, offset)
    output = mask = None
    expected = grad_output.double() * scale
    if slope is not None:
        output = random(outer, sign_format or format, sign_dtype, offset)
        output[..., ::5] = 0  # not positive
        positive = output > 0
        expected = torch.where(positive, expected, expected * slope)
        if sign == "mask":
            mask = pack_mask(positive)
            output = output.as_strided(output.shape, output.stride()).fill_(math.nan)
    expected = F.pixel_unshuffle(expected, upscale)
    grad, guard = guarded(size, "nhwc", grad_dtype, offset) if wanted[0] else (None, None)
    in_double = F64 in (grad_output.dtype, grad_dtype) or (
        sign == "output" and slope is not None and sign_dtype == F64
    )
    acc = F64 if in_double else F32
    bias, bias_guard = guarded((batch, channels, 1, 1), "nchw", acc) if wanted[1] else (None, None)
    bytes_used = conv_epilogue_backward(
        grad_output,
        grad,
        bias,
        upscale=upscale,
        residual_scale=scale,
        negative_slope=slope,
        output=output,
        mask=mask,
        grad_dtype=grad_dtype,
    )
    unit = 2.0**-53 if in_double else 2.0**-24
    # Two products and, for scale and slope, the rounding of the factors; float64 errs in both.
    roundings = 8
    if wanted[0]:
        check_guards(guard)
        info = torch.finfo(grad_dtype)
        bound = roundings * unit * expected.abs()
        bound += (expected.abs() + bound) * info.eps / 2 + info.smallest_normal * info.eps
        error = (grad.double() - expected).abs()
        assert (error <= bound).all(), f"grad: {(error / bound).max():.3g} times the bound"
    if wanted[1]:
        check_guards(bias_guard)
        # No sum has more terms in a row than pixels of a thread, threads, and splits.
        bound = (roundings + 2 * min(height * width, 1500)) * unit * expected.abs().sum((2, 3))
        error = (bias.double()[..., 0, 0] - expected.sum((2, 3))).abs()
        assert (error <= bound).all(), f"bias: {(error / bound).max():.3g} times the bound"
    else:
        assert bytes_used == 0
    return grad, bias


SIZES = {
    "one of each": (1, 1, 1, 1),
    "no samples": (0, 8, 3, 5),
    "no pixels": (2, 8, 0, 5),
    "one pixel": (3, 16, 1, 1),
    "vectors": (3, 64, 5, 8),
    "tails of tiles": (2, 72, 9, 12),
    "odd": (3, 37, 7, 11),
    "three channels": (1, 3, 21, 23),
    "144 channels": (1, 144, 3, 7),
    "one row": (2, 24, 1, 131),
    "one column": (2, 24, 131, 1),
    "many splits": (1, 8, 40, 52),
}


@pytest.mark.parametrize("format", ["nchw", "nhwc"])
@pytest.mark.parametrize("size", SIZES)
def test_sizes(size, format):
    for dtype in (BF16, F32, F64):
        check(SIZES[size], format, dtype)
        check(SIZES[size], format, dtype, slope=0.2, scale=0.5)
        check(SIZES[size], format, dtype, slope=-0.2, sign="mask")


@pytest.mark.parametrize("format", ["nchw", "nhwc", "nhcw", "wchn"])
@pytest.mark.parametrize("sign_format", ["nchw", "nhwc"])
@pytest.mark.parametrize("sign", ["output", "mask"])
def test_layouts(format, sign_format, sign):
    for size, upscale in (((3, 24, 5, 12), 1), ((2, 36, 3, 7), 2), ((1, 18, 5, 9), 3)):
        check(size, format, slope=0.1, sign=sign, sign_format=sign_format, upscale=upscale)


@pytest.mark.parametrize("format", ["nchw", "nhwc"])
@pytest.mark.parametrize("upscale", [2, 3, 4, 5, 9])
def test_pixel_shuffle(upscale, format):
    for channels in (1, 3, 8) if upscale < 5 else (1, 2):
        for width in (4, 7):
            size = (2, channels * upscale**2, 3, width)
            check(size, format, upscale=upscale)
            check(size, format, F32, upscale=upscale, slope=0.0, scale=-1.5)
            check(size, format, upscale=upscale, slope=-0.5, sign="mask")
    check((1, 64 * upscale**2, 2, 3), format, upscale=upscale)


TYPES = list(itertools.product([F32, F16, BF16, F64], repeat=3))


@pytest.mark.parametrize("dtypes", TYPES, ids=str)
def test_types(dtypes):
    dtype, sign_dtype, grad_dtype = dtypes
    for format, size in (("nchw", (2, 16, 3, 4)), ("nhwc", (2, 16, 3, 4)), ("nchw", (2, 5, 3, 5))):
        check(size, format, dtype, sign_dtype=sign_dtype, grad_dtype=grad_dtype, slope=0.2)


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("format", ["nchw", "nhwc"])
def test_any_alignment(format, offset):
    for dtype in (BF16, F32, F64):
        check((2, 16, 5, 8), format, dtype, slope=0.2, offset=offset)
        check((2, 16, 5, 8), format, dtype, slope=0.2, offset=offset, sign="mask")


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("format", ["nchw", "nhwc"])
def test_unwanted_gradients_are_skipped(format, wanted):
    for size in ((2, 40, 9, 11), (2, 40, 9, 12), (1, 16, 70, 70)):
        check(size, format, wanted=wanted)
        check(size, format, slope=0.0, wanted=wanted)


def test_expanded_and_cropped():
    torch.manual_seed(0)
    views = {
        "one number": torch.randn(1, 1, 1, 1).expand(2, 24, 5, 8),
        "one per sample": torch.randn(2, 1, 1, 1).expand(2, 24, 5, 8),
        "one per channel": torch.randn(1, 24, 1, 1).expand(2, 24, 5, 8),
        "one image": torch.randn(1, 1, 5, 8).expand(2, 24, 5, 8),
        "cropped": torch.randn(2, 24, 9, 16)[..., 2:7, 4:12],
        "every other": torch.randn(2, 48, 10, 16)[:, ::2, ::2, ::2],
        "flipped": torch.randn(8, 24, 5, 2).permute(3, 1, 2, 0),
        "cropped channels_last": torch.randn(2, 9, 16, 48).permute(0, 3, 1, 2)[:, 8:32, :5, 3:11],
    }
    for view in views.values():
        check((2, 24, 5, 8), dtype=BF16, sign_dtype=F32, grad_output=view, slope=0.0, sign="mask")
        for sign_format in ("nchw", "nhwc"):
            check((2, 24, 5, 8), dtype=F32, grad_output=view, slope=0.2, sign_format=sign_format)
        check((2, 96, 5, 4), dtype=F32, grad_output=view.repeat(1, 1, 2, 1), upscale=2)


@pytest.mark.parametrize("format", ["nchw", "nhwc"])
def test_special_values_follow_eager(format):
    """torch.where(positive, grad, grad * slope): 0 * inf is not a number."""
    values = torch.tensor([math.inf, -math.inf, math.nan, 1.0, -1.0, 0.0, -0.0, 3e38])
    grad_output = values.view(1, 1, 1, 8).expand(1, 8, 8, 8)
    output = torch.tensor([1.0, 0.0, -0.0, -1.0, math.nan, math.inf, -math.inf, 1e-45])
    output = torch_memory((1, 8, 8, 8), format, F32).copy_(output.view(1, 1, 8, 1))
    for slope, scale in ((0.0, 1.0), (0.2, 1.0), (0.0, 2.0), (-1.0, -2.0)):
        scaled = grad_output * scale
        expected = torch.where(output > 0, scaled, scaled * slope)
        for source in (grad_output, torch_memory((1, 8, 8, 8), format, F32).copy_(grad_output)):
            grad = torch_memory((1, 8, 8, 8), "nhwc", F32)
            conv_epilogue_backward(
                source, grad, None, negative_slope=slope, residual_scale=scale, output=output
            )
            assert torch.equal(grad.nan_to_num(7, 8, 9), expected.nan_to_num(7, 8, 9))
            assert torch.equal(grad.signbit() | grad.isnan(), expected.signbit() | grad.isnan())


@pytest.mark.parametrize("format", ["nchw", "nhwc"])
def test_order_of_threads_does_not_matter(format):
    results = []
    for order, seed in (("forward", 0), ("reverse", 0), ("shuffled", 1)):
        calls.module().set_order(order, seed)
        for size, upscale in (((2, 40, 30, 16), 1), ((2, 36, 9, 11), 1), ((1, 20, 9, 10), 2)):
            results.append(check(size, format, F32, slope=0.2, upscale=upscale))
    calls.module().set_order("forward")
    for i in range(3, 9):
        assert all(torch.equal(a, b) for a, b in zip(results[i % 3], results[i], strict=True))


@pytest.mark.skipif(VARIANT != "plain", reason="too many blocks for instrumented code")
@pytest.mark.parametrize("format", ["nchw", "nhwc"])
def test_blocks_walk_over_tiles(format):
    check((700, 3, 40, 53), format, slope=0.2)
    check((350, 8, 40, 52), format, slope=0.2)


def test_huge_strides():
    """Offsets beyond 2^31 elements, over address space that is never touched."""
    memory = torch.empty(3 << 30, dtype=torch.uint8).view(BF16)
    for strides in ((0, 1, 16, (3 << 29) // 17), ((3 << 28) - 8, 17, 300, 1)):
        view = memory.as_strided((2 if strides[0] else 1, 16, 3, 17), strides)
        view.copy_(torch.randn(view.shape))
        check(tuple(view.shape), dtype=BF16, grad_output=view)


def test_workspace_is_bounded():
    m = calls.module()
    p = m.ConvEpilogueBackwardParams()
    sizes = ((6, 64, 128, 128), (1, 3, 4320, 7680), (100_000, 256, 8, 8), (1, 4096, 1000, 1000))
    for p.batch, p.channels, p.height, p.width in sizes:
        p.grad_bias = 0
        assert m.conv_epilogue_backward_workspace_size(p) == 0
        p.grad_bias = 16
        one_split = p.batch * p.channels * 4
        assert m.conv_epilogue_backward_workspace_size(p) <= 2048 * 64 * 4 + 2 * one_split


def test_bad_sizes_are_refused():
    m = calls.module()
    p = m.ConvEpilogueBackwardParams()
    p.batch, p.channels, p.height, p.width, p.upscale = 1, 6, 2, 2, 2
    with pytest.raises(RuntimeError, match="invalid argument"):
        m.conv_epilogue_backward(p)
