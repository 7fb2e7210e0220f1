"""Any legal call of the convolutions on emulated CUDA kernels, against float64, element by element.

Every bound follows from the arithmetic: roundings of operands and results, and of each sum.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dasr_ops
from dasr_ops import _library
from dasr_ops._backends import eager

from .emulation import build, operators
from .reference import ROUNDOFF

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(build.missing() is not None, reason=str(build.missing())),
]

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
CHANNELS = [1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 24, 29, 32, 33, 37, 40, 48, 61, 64, 65, 72, 80]
MAX_PRODUCTS = 400_000  # of a call: the emulation is slow


@dataclass
class Call:
    tensors: dict[str, Tensor]
    options: dict[str, Any]
    padding: tuple[int, int, int, int]
    dynamic: bool
    tf32: bool
    unread: int | None = None  # expert that is NaN where its routing weight is 0

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors["input"].dtype


def moved(r: random.Random, values: Tensor) -> Tensor:
    """The same values elsewhere in memory: permuted, with gaps, off alignment."""
    dims = list(range(values.dim()))
    where = r.choice(["contiguous", "contiguous", "last", "permuted", "gaps", "offset", "last"])
    if where == "last" and len(dims) > 2:
        dims = [0, *dims[-2:], *dims[1:-2]]
    elif where == "permuted":
        r.shuffle(dims)
    source = values.permute(dims)
    steps = [r.choice([1, 1, 2, 3]) if where == "gaps" else 1 for _ in dims]
    offset = r.choice([0, 0, 1, 2, 3, 4, 8])
    strides, stride = [], 1
    for size, step in zip(reversed(source.shape), reversed(steps), strict=True):
        strides.insert(0, stride * step)
        stride *= max(size, 1) * step + (r.choice([0, 1, 3]) if where == "gaps" else 0)
    memory = torch.full((stride + offset,), math.nan, dtype=values.dtype)
    view = memory.as_strided(source.shape, strides, offset).copy_(source)
    return view.permute([dims.index(d) for d in range(len(dims))])


def drawn(r: random.Random, shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1) -> Tensor:
    values = (torch.randn(shape, dtype=F64) * scale).to(dtype)
    if r.random() < 0.08 and values.numel():
        return values.narrow(r.randrange(len(shape)), 0, 1).expand(shape)
    return moved(r, values)


def sizes(r: random.Random) -> tuple[int, int, int, int]:
    """Groups, input and output channels of a group, and a pixel shuffle that suits them."""
    while True:
        kind = r.choice(["one", "one", "one", "groups", "depthwise"])
        groups = {"one": 1, "groups": r.randint(2, 5), "depthwise": r.choice(CHANNELS)}[kind]
        most = 20 if kind == "groups" else 80
        group_in, group_out = (
            r.choice([c for c in CHANNELS if c <= most] + [r.randint(1, most)]) for _ in range(2)
        )
        if kind == "depthwise":
            group_in, group_out = 1, r.choice([1, 1, 1, 2, 3])
        upscale = r.choice([1, 1, 1, 2, 3])
        if r.random() < 0.5:
            group_out *= upscale**2
        if groups * group_out % upscale**2 == 0 and groups * group_out <= 320:
            return groups, group_in, group_out, upscale


def drawn_call(r: random.Random) -> Call | None:
    """None: more than the emulation can do in reasonable time."""
    groups, group_in, group_out, upscale = sizes(r)
    channels, out_channels = groups * group_in, groups * group_out
    edge = r.choice([1, 3, 5, 7])
    kernel = (edge, edge) if r.random() < 0.4 else (r.randint(1, 7), r.randint(1, 7))
    same = r.random() < 0.3
    stride = (1, 1) if same or r.random() < 0.6 else (r.randint(1, 4), r.randint(1, 4))
    dilation = (1, 1) if r.random() < 0.7 else (r.randint(1, 3), r.randint(1, 3))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    both = r.choice([(0, 0), (kernel[0] // 2, kernel[1] // 2), (r.randint(0, 4), r.randint(0, 4))])
    before = [n // 2 for n in reach] if same else list(both)
    after = [n - b for n, b in zip(reach, before, strict=True)] if same else list(both)
    batch = 300 if r.random() < 0.02 else r.choice([0, 1, 1, 2, 2, 3, 4, 5, 9])
    more = 3 if batch == 300 else r.choice([12, 12, 12, 40])
    smallest = [max(1, n + 1 - b - a) for n, b, a in zip(reach, before, after, strict=True)]
    size = [n + r.randint(0, more) for n in smallest]
    out = [
        (n + b + a - e - 1) // s + 1
        for n, b, a, e, s in zip(size, before, after, reach, stride, strict=True)
    ]
    per_pixel = out_channels * group_in * math.prod(kernel)
    if batch * math.prod(out) * per_pixel > MAX_PRODUCTS or batch * per_pixel > 10 * MAX_PRODUCTS:
        return None

    dtype = r.choice([F64, F32, F32, F16, BF16, BF16])
    types = r.choice([lambda: dtype, lambda: r.choice([dtype, F32, F64, BF16, F16])])
    dynamic = r.random() < 0.6
    n_kernels = r.choice([1, 2, 5, 8, 33] if per_pixel < 2000 else [1, 2, 5]) if dynamic else batch
    scale = (group_in * math.prod(kernel)) ** -0.5
    t = {
        "input": drawn(r, (batch, channels, *size), dtype),
        "weight": drawn(r, (n_kernels, out_channels, group_in, *kernel), types(), scale),
    }
    if r.random() < 0.6:
        t["bias"] = drawn(r, (n_kernels, out_channels), types())
    unread = None
    if dynamic:
        routing = torch.randn(batch, n_kernels, dtype=F64) * (torch.rand(batch, n_kernels) > 0.15)
        if n_kernels > 1 and r.random() < 0.25:
            unread = r.randrange(n_kernels)
            routing[:, unread] = 0
            for name in {"weight", "bias"} & t.keys():
                t[name] = t[name].clone()
                t[name][unread] = math.nan
        t["routing_weights"] = moved(r, routing.to(types()))
    if r.random() < 0.35:
        shape = (batch, out_channels // upscale**2, out[0] * upscale, out[1] * upscale)
        t["residual"] = drawn(r, shape, types())
    options = {
        "stride": stride,
        "padding": "same" if same else both,
        "dilation": dilation,
        "groups": groups,
        "activation": r.choice([None, None, "relu", "leaky_relu", "leaky_relu"]),
        "negative_slope": r.choice([0.0, 0.2, 0.01, -0.3, -1.5, 1.7]),
        "residual_scale": r.choice([1.0, 0.2, -0.5, 0.0, 3.0]),
        "upscale_factor": upscale,
    }
    padding = (before[0], after[0], before[1], after[1])
    return Call(t, options, padding, dynamic, dtype == F32 and r.random() < 0.5, unread)


class Expected:
    """Values in float64, and how far off by the arithmetic a kernel may be."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.t = {name: value.detach().double().clone() for name, value in call.tensors.items()}
        if call.unread is not None:
            for name in {"weight", "bias"} & self.t.keys():
                self.t[name][call.unread] = 0
        self.roundoff = ROUNDOFF[call.dtype]
        # Where its relative error ends, a type has an absolute one.
        self.least = torch.finfo(call.dtype).smallest_normal
        # The reference errs as much as a kernel in float64; products and sums round once each.
        self.unit = 2 * (2.0**-53 if call.dtype == F64 else 2.0**-24)
        self.tf32 = 2.0**-10 + 2.0**-22 if call.tf32 else 0.0
        t, o = self.t, call.options
        self.kernel, self.kernel_size = self.mixed("weight")
        shape = self.kernel.shape
        c = self.convolve(t["input"], self.kernel)
        size = self.convolve(t["input"].abs() + self.least, self.kernel_size + self.least)
        if "bias" in t:
            bias, bias_size = self.mixed("bias")
            c, size = c + bias[:, :, None, None], size + bias_size[:, :, None, None]
        terms = math.prod(shape[2:]) + self.experts + 6
        c_bound = (terms * self.unit + self.roundoff + self.tf32) * size
        self.c, self.c_bound = (F.pixel_shuffle(v, o["upscale_factor"]) for v in (c, c_bound))

    @property
    def experts(self) -> int:
        return len(self.t["weight"]) if self.call.dynamic else 0

    @property
    def slope(self) -> float:
        o = self.call.options
        return {None: 1.0, "relu": 0.0, "leaky_relu": o["negative_slope"]}[o["activation"]]

    @property
    def scale(self) -> float:
        return self.call.options["residual_scale"] if "residual" in self.t else 1.0

    def mixed(self, name: str) -> tuple[Tensor, Tensor]:
        """Kernels or biases of each sample, and what their magnitudes add up to."""
        w = self.t[name]
        if not self.call.dynamic:
            return w, w.abs()
        a = self.t["routing_weights"]
        return torch.tensordot(a, w, 1), torch.tensordot(a.abs(), w.abs(), 1)

    def convolve(self, x: Tensor, w: Tensor) -> Tensor:
        o = self.call.options
        top, bottom, left, right = self.call.padding
        x = F.pad(x, (left, right, top, bottom))
        if not len(x):
            return F.conv2d(x, w.sum(0), None, o["stride"], 0, o["dilation"], o["groups"])
        groups = len(x) * o["groups"]
        folded = x.reshape(1, -1, *x.shape[2:])
        out = F.conv2d(folded, w.flatten(0, 1), None, o["stride"], 0, o["dilation"], groups)
        return out.view(len(x), w.shape[1], *out.shape[2:])

    def gradients(self, x: Tensor, w: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
        return torch.autograd.grad(self.convolve(x, w), (x, w), grad)

    def output(self) -> tuple[Tensor, Tensor]:
        y, bound = self.c, self.c_bound
        if self.call.options["activation"] is not None:
            # The error of a sum near 0 is passed on by the steeper side.
            y = torch.where(y > 0, y, y * self.slope)
            bound = bound * max(1, abs(self.slope)) + self.unit * y.abs()
        if "residual" in self.t:
            r = self.t["residual"]
            bound = abs(self.scale) * (bound + self.unit * y.abs()) + 2 * self.unit * r.abs()
            y = r + self.scale * y
        return y, bound

    def of_gradients(self, grad: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """For every tensor; grad is 0 where the sign of a sum is in doubt."""
        t, o, unit = self.t, self.call.options, self.unit
        result = {"residual": (grad, torch.zeros_like(grad))}
        g = torch.where(self.c > 0, grad, grad * self.slope) * self.scale
        # An empty tensor cannot be shuffled back.
        size = (*self.kernel.shape[:2], *(n // o["upscale_factor"] for n in g.shape[2:]))
        g = F.pixel_unshuffle(g, o["upscale_factor"]) if len(g) else g.new_zeros(size)
        relative = 4 * unit + self.roundoff + self.tf32  # rounded to the input's type on the way
        g_size = g.abs() + self.least
        of_x, of_w = self.gradients(t["input"], self.kernel, g)
        x_size, w_size = self.gradients(t["input"].abs(), self.kernel_size + self.least, g_size)
        terms = self.kernel.shape[1] * math.prod(self.kernel.shape[3:]) + self.experts + 6
        result["input"] = of_x, (terms * unit + relative + self.roundoff) * x_size
        pixels = math.prod(g.shape[2:]) + 8
        of_b, b_size = g.sum((2, 3)), g_size.sum((2, 3))
        parts = {
            "weight": (of_w, (pixels * unit + relative) * w_size, w_size),
            "bias": (of_b, (pixels + 4) * unit * b_size, b_size),
        }
        if not self.call.dynamic:
            return result | {name: part[:2] for name, part in parts.items()}
        a, of_a = t["routing_weights"], [0.0, 0.0]
        for name, (value, bound, size) in parts.items():
            if name not in t:
                continue
            bound_k = bound + (len(a) + 2) * unit * size
            result[name] = (
                torch.tensordot(a.t(), value, 1),
                torch.tensordot(a.abs().t(), bound_k, 1),
            )
            experts = t[name].flatten(1).t()
            bound_a = bound + (experts.shape[0] + 2) * unit * size
            of_a[0] = of_a[0] + value.flatten(1) @ experts
            of_a[1] = of_a[1] + bound_a.flatten(1) @ experts.abs()
        return result | {"routing_weights": (of_a[0], of_a[1])}


def check(name: str, got: Tensor, expected: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    value, bound = expected
    assert (got.dtype, got.shape) == (dtype, value.shape), name
    least = torch.finfo(dtype).smallest_normal
    bound = bound + ((value.abs() + bound) * 1.001 + least) * ROUNDOFF[dtype]
    error = (got.detach().double() - value).abs()
    assert (error <= bound).all(), f"{name}: {(error / bound).nan_to_num(math.inf).max():.3g}"


def check_call(r: random.Random, call: Call, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setattr(_library, "_switches", lambda *_: (False, call.tf32))
    wanted = [name for name in call.tensors if r.random() < 0.75]
    leaves = {name: t.detach().requires_grad_(name in wanted) for name, t in call.tensors.items()}
    op = dasr_ops.dynamic_conv2d if call.dynamic else dasr_ops.per_sample_conv2d
    with dasr_ops.use_backend(backend):
        out = op(**leaves, **call.options)
    memory_format = eager.memory_format(leaves["input"])
    assert out.is_contiguous(memory_format=memory_format)
    assert out.requires_grad == bool(wanted)
    with torch.no_grad():
        expected = Expected(call)
        check("output", out, expected.output(), call.dtype)
    if not wanted:
        return
    grad = drawn(r, tuple(out.shape), call.dtype)
    if call.options["activation"] is not None:
        grad = moved(r, grad * (expected.c.abs() > expected.c_bound))
    grads = torch.autograd.grad(out, [leaves[name] for name in wanted], grad)
    bounds = expected.of_gradients(grad.double())
    for name, got in zip(wanted, grads, strict=True):
        value, bound = bounds[name]
        if name == "routing_weights" and call.unread is not None:
            got[:, call.unread] = value[:, call.unread].to(got.dtype)  # that of NaN experts
        check(name, got, (value, bound), call.tensors[name].dtype)
        if name == "input":
            assert got.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("chunk", range(10))
def test_any_legal_call(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    done = 0
    for seed in itertools.count(1000 * chunk):
        torch.manual_seed(seed)
        r = random.Random(seed)
        call = drawn_call(r)
        if call is None:
            continue
        try:
            check_call(r, call, monkeypatch, operators.backend().name)
        except (AssertionError, RuntimeError) as error:
            shapes = {k: (tuple(v.shape), v.stride(), v.dtype) for k, v in call.tensors.items()}
            raise AssertionError(f"seed {seed}: {error}\n{shapes}\n{call.options}") from error
        done += 1
        if done == 50:
            return
