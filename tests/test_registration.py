"""The operators in PyTorch: schemas, opcheck, compile, export, autocast, double backward."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx

import dasr_ops
from dasr_ops import DynamicConv2d
from dasr_ops._arguments import ConvOptions
from dasr_ops._library import _TORCH, SCHEMAS, unpack_mask

CPU = dasr_ops.backends()["cpu"].startswith("available")
needs_extension = pytest.mark.skipif(not CPU, reason="the extension is not built")

# The double backward of ATen's convolution takes symbolic sizes from some later release on.
DOUBLE_BACKWARD_CHECKS = ["test_schema", "test_autograd_registration", "test_faketensor"]
if torch.__version__ >= torch.torch_version.TorchVersion("2.13"):
    DOUBLE_BACKWARD_CHECKS.append("test_aot_dispatch_dynamic")

PLAIN = ConvOptions((1, 1), (1, 1, 1, 1), (1, 1), 1, None, 1.0, 1)
# The second is no 3x3 convolution of stride 1: it takes the other path of the CPU backend.
OPTIONS = {
    "plain": PLAIN,
    "strided": PLAIN._replace(stride=(2, 1), padding=(1, 0, 0, 1)),
    "relu": PLAIN._replace(negative_slope=0.0, upscale_factor=2),
    "residual": PLAIN._replace(negative_slope=0.2, residual_scale=0.5),
}


def tensors(dtype: torch.dtype = torch.float64, requires_grad: bool = True) -> dict[str, Tensor]:
    made = {
        "input": torch.randn(2, 3, 5, 4, dtype=dtype),
        "weight": torch.randn(3, 4, 3, 3, 3, dtype=dtype),
        "routing_weights": torch.randn(2, 3, dtype=dtype),
        "bias": torch.randn(3, 4, dtype=dtype),
    }
    return {name: t.requires_grad_(requires_grad) for name, t in made.items()}


def call(name: str, options: ConvOptions, **args: Any) -> Tensor:
    kwargs = {
        "stride": options.stride,
        "dilation": options.dilation,
        "padding": 1 if name != "strided" else 0,
        "activation": None if options.negative_slope is None else "leaky_relu",
        "negative_slope": options.negative_slope or 0.0,
        "residual_scale": options.residual_scale,
        "upscale_factor": options.upscale_factor,
    }
    return dasr_ops.dynamic_conv2d(**args, **kwargs)


@needs_extension
def test_schemas_of_python_and_extension_agree() -> None:
    for name, schema in SCHEMAS.items():
        registered = str(getattr(torch.ops.dasr_ops, name).default._schema)
        parsed = str(torch._C.parse_schema(f"dasr_ops::{name}{schema}"))
        assert registered == parsed


@needs_extension
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck_dynamic(name: str, dtype: torch.dtype) -> None:
    options = OPTIONS[name]
    t = tensors(dtype)
    residual = torch.randn(2, 4, 5, 4, dtype=dtype, requires_grad=True)
    residual = residual if name == "residual" else None
    save_mask = name == "residual"
    args = (*t.values(), residual, *options, save_mask, False, False)
    torch.library.opcheck(torch.ops.dasr_ops.dynamic_conv2d.default, args)
    with torch.no_grad():
        output, mask = torch.ops.dasr_ops.dynamic_conv2d(*args)
    grad = torch.randn_like(output, requires_grad=True)
    saved = (None, mask) if save_mask else (output, None)
    args = (grad, *t.values(), *saved, *options, [True] * 4, False, False)
    torch.library.opcheck(
        torch.ops.dasr_ops.dynamic_conv2d_backward.default, args, test_utils=DOUBLE_BACKWARD_CHECKS
    )


@needs_extension
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("routing", [False, True])
def test_opcheck_inference(name: str, routing: bool) -> None:
    t = tensors(torch.float32, requires_grad=False)
    if not routing:
        t |= {"weight": torch.randn(2, 4, 3, 3, 3), "routing_weights": None}
        t["bias"] = torch.randn(2, 4)
    o = OPTIONS[name]
    residual = torch.randn(2, 4, 5, 4) if name == "residual" else None
    geometry = [*o.stride, *o.padding, *o.dilation, o.groups, o.upscale_factor, False, True]
    args = (*t.values(), residual, geometry, o.negative_slope, o.residual_scale)
    torch.library.opcheck(torch.ops.dasr_ops.conv2d_inference.default, args)
    with pytest.raises(RuntimeError):
        torch.ops.dasr_ops.conv2d_inference(*t.values(), residual, geometry[:-1], None, 1.0)


def test_others_see_the_usual_operators(backend: str) -> None:
    """Modes that look at what is called, or record it, need not know the one for inference."""
    t = tensors(torch.float32, requires_grad=False)
    with dasr_ops.use_backend(backend), torch.no_grad():
        graph = make_fx(lambda *values: dasr_ops.dynamic_conv2d(*values))(*t.values()).graph
    called = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert not any("inference" in name for name in called)


def test_gradients_of_several_losses_at_once(backend: str) -> None:
    t = tensors(torch.float32)
    with dasr_ops.use_backend(backend):
        out = call("relu", OPTIONS["relu"], **t)
        grads = torch.randn(3, *out.shape)
        leaves = list(t.values())
        one_by_one = [torch.autograd.grad(out, leaves, g, retain_graph=True) for g in grads]
        at_once = torch.autograd.grad(out, leaves, grads, is_grads_batched=True)
    for got, want in zip(at_once, zip(*one_by_one, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(want), rtol=1e-5, atol=1e-5)


@needs_extension
def test_opcheck_others() -> None:
    t = tensors(torch.float32)
    per_sample = torch.randn(2, 4, 3, 3, 3, requires_grad=True)
    args = (t["input"], per_sample, None, None, *PLAIN, False, False, False)
    torch.library.opcheck(torch.ops.dasr_ops.per_sample_conv2d.default, args)
    grad = torch.randn(2, 4, 5, 4, requires_grad=True)
    args = (grad, t["input"], per_sample, None, None, None, *PLAIN, [True, True, False], False)
    torch.library.opcheck(
        torch.ops.dasr_ops.per_sample_conv2d_backward.default,
        (*args, False),
        test_utils=DOUBLE_BACKWARD_CHECKS,
    )
    pair = (t["weight"], t["routing_weights"])
    torch.library.opcheck(torch.ops.dasr_ops.aggregate_experts.default, (*pair, torch.bfloat16))
    grad = torch.randn(2, 4, 3, 3, 3, requires_grad=True)
    for mask in ([True, True], [True, False], [False, True]):
        torch.library.opcheck(
            torch.ops.dasr_ops.aggregate_experts_backward.default, (grad, *pair, mask)
        )


@pytest.mark.parametrize("size", [(0, 3, 5, 4), (2, 3, 5, 4)])
def test_fake_kernels_agree_on_types_and_strides(backend: str, size: tuple[int, ...]) -> None:
    """Also where there is nothing to sum, and for gradients that are not wanted."""
    namespace = {"cpu": "dasr_ops", "emulated": "dasr_ops_emulated"}.get(backend)
    if namespace is None:
        pytest.skip("no operator")
    x = torch.randn(size, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    for out_channels in (0, 4):
        weight, bias = torch.randn(3, out_channels, 3, 3, 3), torch.randn(3, out_channels)
        grad = torch.randn(size[0], out_channels, 5, 4, dtype=torch.bfloat16)
        routing = torch.randn(size[0], 3)
        op = getattr(torch.ops, namespace).dynamic_conv2d_backward.default
        for wanted in ([True] * 4, [True, False, False, False], [False] * 4):
            args = (grad, x, weight, routing, bias, None, None, *PLAIN, wanted, False, False)
            torch.library.opcheck(op, args, test_utils="test_faketensor")
            real = op(*args)
            with FakeTensorMode() as mode:
                fake = op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args))
            for got, want in zip(fake, real, strict=True):
                assert (got.dtype, got.shape) == (want.dtype, want.shape)
                assert got.stride() == want.stride()


@pytest.mark.parametrize("name", OPTIONS)
def test_gradcheck(backend: str, name: str) -> None:
    t = tensors()
    if name == "residual":
        t["residual"] = torch.randn(2, 4, 5, 4, dtype=torch.float64, requires_grad=True)

    def fn(*values: Tensor) -> Tensor:
        return call(name, OPTIONS[name], **dict(zip(t, values, strict=True)))

    with dasr_ops.use_backend(backend):
        assert torch.autograd.gradcheck(fn, tuple(t.values()))
        assert torch.autograd.gradgradcheck(fn, tuple(t.values()))


def test_gradcheck_of_the_others(backend: str) -> None:
    t = tensors()
    per_sample = torch.randn(2, 4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def conv(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return dasr_ops.per_sample_conv2d(x, w, b, padding=1, activation="relu")

    with dasr_ops.use_backend(backend):
        assert torch.autograd.gradcheck(conv, (t["input"], per_sample, bias))
        assert torch.autograd.gradgradcheck(conv, (t["input"], per_sample, bias))
        pair = (t["weight"], t["routing_weights"])
        assert torch.autograd.gradcheck(dasr_ops.aggregate_experts, pair)
        assert torch.autograd.gradgradcheck(dasr_ops.aggregate_experts, pair)


@pytest.mark.parametrize("wanted", ["input", "weight", "routing_weights", "bias", "residual"])
def test_one_gradient_at_a_time(backend: str, wanted: str) -> None:
    t = tensors(torch.float32, requires_grad=False)
    t["residual"] = torch.randn(2, 4, 5, 4)
    full = {name: value.clone().requires_grad_() for name, value in t.items()}
    t[wanted].requires_grad_()
    with dasr_ops.use_backend(backend):
        for args in (t, full):
            call("residual", OPTIONS["residual"], **args).square().sum().backward()
    torch.testing.assert_close(t[wanted].grad, full[wanted].grad, rtol=1e-5, atol=1e-5)
    assert all(value.grad is None for name, value in t.items() if name != wanted)


def test_mask_bits_follow_memory_order() -> None:
    values = torch.randn(2, 3, 5, 7)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        dense = values.contiguous(memory_format=memory_format)
        storage = dense.as_strided((dense.numel(),), (1,)) > 0
        padded = torch.nn.functional.pad(storage, (0, -storage.numel() % 8)).view(-1, 8)
        mask = (padded.to(torch.uint8) << torch.arange(8, dtype=torch.uint8)).sum(1).byte()
        assert torch.equal(unpack_mask(mask, values.shape, memory_format), values > 0)


@pytest.mark.parametrize("options", [OPTIONS["residual"], OPTIONS["relu"]], ids=["mask", "output"])
@pytest.mark.parametrize("moved", ["input", "output", "all"])
def test_saved_tensors_may_change_their_strides(
    backend: str, options: ConvOptions, moved: str
) -> None:
    """As torch.autograd.graph.save_on_cpu(pin_memory=True) lets them."""

    def pack(saved: Tensor) -> Tensor:
        chosen = moved == "all" or (saved.shape[2:] == t["input"].shape[2:]) == (moved == "input")
        return torch.empty(saved.shape, dtype=saved.dtype).copy_(saved) if chosen else saved

    t = tensors()
    t["input"] = t["input"].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    has_residual = options is OPTIONS["residual"]
    extra = {"residual": torch.randn(2, 4, 5, 4, dtype=torch.float64)} if has_residual else {}
    results = []
    for hooks in (nullcontext(), saved_tensors_hooks(pack, lambda saved: saved)):
        with dasr_ops.use_backend(backend):
            with hooks:
                # Not the leaf itself, which hooks pass by.
                values = {name: value.clone() for name, value in t.items()}
                out = call("", options, **values, **extra)
            torch.manual_seed(1)
            grads = torch.autograd.grad(
                out, list(t.values()), torch.randn_like(out), create_graph=True
            )
            results.append([*grads, *torch.autograd.grad(grads[0].square().sum(), t["weight"])])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


class Stack(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = DynamicConv2d(3, 8, 3, padding=1, num_experts=3, activation="relu")
        self.second = DynamicConv2d(8, 8, 3, padding=1, num_experts=3)
        self.last = DynamicConv2d(8, 12, 1, num_experts=3, upscale_factor=2)

    def forward(self, x: Tensor, routing: Tensor) -> Tensor:
        x = self.first(x, routing)
        return self.last(self.second(x, routing, residual=x), routing)


@pytest.mark.parametrize("channels_last", [False, True])
def test_compile_fullgraph_with_dynamic_shapes(backend: str, channels_last: bool) -> None:
    torch._dynamo.reset()
    net = Stack()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
    with dasr_ops.use_backend(backend):
        for batch, size in ((2, (8, 6)), (3, (5, 9)), (4, (11, 4))):
            x = torch.randn(batch, 3, *size)
            if channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            routing = torch.randn(batch, 3)
            grads = []
            for module in (net, compiled):
                net.zero_grad()
                out = module(x, routing)
                out.square().sum().backward()
                grads.append([out.detach(), *(p.grad.clone() for p in net.parameters())])
            for got, want in zip(*grads, strict=True):
                torch.testing.assert_close(got, want)


@pytest.mark.slow
def test_compile_with_inductor(backend: str) -> None:
    torch._dynamo.reset()
    net = Stack().requires_grad_(False)
    compiled = torch.compile(net, fullgraph=True)
    with dasr_ops.use_backend(backend):
        for size in ((8, 6), (5, 9)):
            x, routing = torch.randn(2, 3, *size), torch.randn(2, 3)
            torch.testing.assert_close(compiled(x, routing), net(x, routing))


def test_compile_follows_the_tf32_switches() -> None:
    """The newer one, too, by which convolutions and RNNs can differ."""
    torch._dynamo.reset()
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    compiled = torch.compile(lambda x: x + _TORCH.allow_tf32, fullgraph=True, backend="eager")
    try:
        for precision in ("ieee", "tf32", "ieee"):
            cudnn.conv.fp32_precision = precision
            assert compiled(torch.zeros(1)).item() == (precision == "tf32")
        for allowed in (False, True):
            cudnn.allow_tf32 = allowed
            assert compiled(torch.zeros(1)).item() == allowed
    finally:
        cudnn.allow_tf32 = before


def test_export_with_dynamic_shapes(backend: str) -> None:
    net = Stack().eval()
    args = (torch.randn(2, 3, 8, 6), torch.randn(2, 3))
    batch, height, width = (torch.export.Dim(name, min=2) for name in ("batch", "height", "width"))
    shapes = ({0: batch, 2: height, 3: width}, {0: batch})
    with dasr_ops.use_backend(backend):
        program = torch.export.export(net, args, dynamic_shapes=shapes)
        custom = any("dasr_ops" in str(node.target) for node in program.graph.nodes)
        assert custom == (backend != "eager")
        x, routing = torch.randn(5, 3, 7, 10), torch.randn(5, 3)
        torch.testing.assert_close(program.module()(x, routing), net(x, routing))


def test_autocast(backend: str) -> None:
    t = tensors(torch.float32)
    with dasr_ops.use_backend(backend), torch.autocast("cpu", torch.bfloat16):
        out = dasr_ops.dynamic_conv2d(**t, padding=1)
        assert out.dtype == torch.bfloat16
        out.float().sum().backward()
    for name, value in t.items():
        assert value.grad is not None and value.grad.dtype == torch.float32, name
    with torch.no_grad(), dasr_ops.use_backend(backend):
        expected = dasr_ops.dynamic_conv2d(**t, padding=1)
        # One rounding of the input, the kernel and the output each.
        torch.testing.assert_close(out.float(), expected, rtol=2**-6, atol=2**-6 * 5)
        with torch.autocast("cpu", torch.bfloat16):
            double = {name: value.double() for name, value in t.items()}
            assert dasr_ops.dynamic_conv2d(**double).dtype == torch.float64


def test_sets_no_gradient_where_none_is_needed(backend: str) -> None:
    t = tensors(torch.float32, requires_grad=False)
    with dasr_ops.use_backend(backend):
        assert not dasr_ops.dynamic_conv2d(**t).requires_grad
        with torch.inference_mode():
            assert dasr_ops.dynamic_conv2d(**t, activation="relu").is_inference()


def test_results_do_not_depend_on_threads(backend: str) -> None:
    if backend == "eager":
        pytest.skip("PyTorch's own convolutions make no such promise")
    threads = torch.get_num_threads()
    t = {
        "input": torch.randn(3, 8, 19, 23),
        "weight": torch.randn(4, 16, 8, 3, 3),
        "routing_weights": torch.randn(3, 4),
        "bias": torch.randn(4, 16),
    }
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaves = {name: value.clone().requires_grad_() for name, value in t.items()}
            with dasr_ops.use_backend(backend):
                out = dasr_ops.dynamic_conv2d(**leaves, padding=1, activation="relu")
            out.square().sum().backward()
            results.append([out, *(leaf.grad for leaf in leaves.values())])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_header_has_no_other_schema() -> None:
    header = Path(__file__).resolve().parents[1] / "csrc" / "ops" / "schemas.h"
    names = re.findall(r'^\s*"(\w+)\(', header.read_text(), re.MULTILINE)
    assert names == list(SCHEMAS)
