"""The Triton backend in PyTorch: choice, opcheck, compile, export, tuning."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import dasr_ops
from dasr_ops import _backends
from dasr_ops._arguments import ConvOptions
from dasr_ops._library import SCHEMAS
from tests import triton_env
from tests.reference import max_error
from tests.test_op import problem, split

needs_interpreter = pytest.mark.skipif(
    triton_env.missing() is not None, reason=str(triton_env.missing())
)

PLAIN = ConvOptions((1, 1), (1, 1, 1, 1), (1, 1), 1, None, 1.0, 1)
OPTIONS = {
    "plain": PLAIN,
    "strided": PLAIN._replace(stride=(2, 1), padding=(1, 0, 0, 1)),
    "relu": PLAIN._replace(negative_slope=0.0, upscale_factor=2),
    "residual": PLAIN._replace(negative_slope=0.2, residual_scale=0.5),
}


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=triton_env.clean() | environment,
        capture_output=True,
        text=True,
    )


def test_report_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import dasr_ops; {}"
    assert (
        "unavailable: triton is not installed"
        in run(code.format("print(dasr_ops.backends()['triton'])")).stdout
    )
    forced = run(code.format("dasr_ops.use_backend('triton').__enter__()"))
    assert "backend 'triton' was asked for, but triton is not installed" in forced.stderr


def test_report_without_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    out = run("import dasr_ops; print(dasr_ops.backends()['triton'])").stdout
    assert out.startswith("unavailable: ") and ("no GPU" in out or "not installed" in out)


def test_kernels_are_not_imported_before_a_call() -> None:
    code = (
        "import sys, dasr_ops; dasr_ops.backends();"
        "print([m for m in sys.modules if m.startswith('dasr_ops._backends.triton.')])"
    )
    assert run(code).stdout.strip() == "[]"


def test_order() -> None:
    assert _backends._ORDER["cuda"] == ("cuda", "triton", "eager")
    assert "triton" not in _backends._ORDER["cpu"]


def test_refusals() -> None:
    backend = _backends._BACKENDS["triton"]
    assert "not meta" in backend.refuses(torch.empty(2, device="meta"))
    if triton_env.missing() is None:
        assert "float64" in backend.refuses(torch.empty(2, dtype=torch.float64))


def test_operators_are_complete() -> None:
    for name in SCHEMAS:
        registered = str(getattr(torch.ops.dasr_ops_triton, name).default._schema)
        parsed = str(torch._C.parse_schema(f"dasr_ops_triton::{name}{SCHEMAS[name]}"))
        assert registered == parsed


def tensors(requires_grad: bool = True) -> list[torch.Tensor]:
    args, _ = split(problem(2, (3, 4), (5, 4), experts=3))
    return [t.requires_grad_(requires_grad) for t in args.values()]


@needs_interpreter
@pytest.mark.parametrize("name", OPTIONS)
def test_opcheck_dynamic(name: str) -> None:
    options = OPTIONS[name]
    residual = torch.randn(2, 4, 5, 4, requires_grad=True) if name == "residual" else None
    save_mask = name == "residual"
    args = (*tensors(), residual, *options, save_mask, False, False)
    torch.library.opcheck(torch.ops.dasr_ops_triton.dynamic_conv2d.default, args)


@needs_interpreter
def test_opcheck_others() -> None:
    ops = torch.ops.dasr_ops_triton
    x, weight, routing, bias = tensors()
    kernels = torch.randn(2, 4, 3, 3, 3, requires_grad=True)
    biases = torch.randn(2, 4, requires_grad=True)
    args = (x, kernels, biases, None, *OPTIONS["relu"], False, False, False)
    torch.library.opcheck(ops.per_sample_conv2d.default, args)
    torch.library.opcheck(ops.aggregate_experts.default, (weight, routing, torch.float32))
    torch.library.opcheck(ops.aggregate_experts.default, (bias, routing, torch.float16))
    layers = [torch.randn(3, 4, 8, 3, 3, requires_grad=True), weight]
    args = (layers, routing, torch.float32)
    # The result of a list has no gradient that opcheck could compare.
    torch.library.opcheck(
        ops.aggregate_experts_stack.default, args, test_utils=["test_schema", "test_faketensor"]
    )


@needs_interpreter
def test_opcheck_backward() -> None:
    ops = torch.ops.dasr_ops_triton
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    args = tensors()
    grad, options = torch.randn(2, 4, 5, 4, requires_grad=True), OPTIONS["plain"]
    rest = (None, None, *options, [True] * 4, False, False)
    torch.library.opcheck(
        ops.dynamic_conv2d_backward.default, (grad, *args, *rest), test_utils=checks
    )
    grad = torch.randn(2, 4, 3, 3, 3, requires_grad=True)
    torch.library.opcheck(
        ops.aggregate_experts_backward.default, (grad, *args[1:3], [True, True]), test_utils=checks
    )


@needs_interpreter
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_graph_breaks(dynamic: bool) -> None:
    def call(*args: torch.Tensor) -> torch.Tensor:
        x, weight, routing, bias, residual = args
        with dasr_ops.use_backend("triton"):
            return dasr_ops.dynamic_conv2d(
                x, weight, routing, bias, padding=1, activation="relu", residual=residual
            )

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in ((5, 4), (6, 7)):
        args = [*tensors(), torch.randn(2, 4, *size, requires_grad=True)]
        args[0] = torch.randn(2, 3, *size, requires_grad=True)
        results = []
        for fn in (call, compiled):
            out = fn(*args)
            results.append([out, *torch.autograd.grad(out.square().sum(), args)])
        for got, want in zip(*results, strict=True):
            assert torch.equal(got, want)


@needs_interpreter
def test_double_backward() -> None:
    args = [t.detach().requires_grad_() for t in tensors()]

    def penalty(backend: str) -> tuple[Any, ...]:
        with dasr_ops.use_backend(backend):
            out = dasr_ops.dynamic_conv2d(*args, padding=1)
        (grad,) = torch.autograd.grad(out.square().sum(), args[0], create_graph=True)
        return torch.autograd.grad(grad.square().sum(), args)

    for got, want in zip(penalty("triton"), penalty("eager"), strict=True):
        assert max_error(got, want.double()) <= 1e-5


@needs_interpreter
def test_config_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    from dasr_ops._backends.triton import tuning

    shape = tuning.GemmShape(2, 4096, 64, 64, torch.bfloat16, "ieee")
    x = torch.empty(2, 3)

    def choice() -> tuning.Config:
        return tuning.choose("convolve", shape, x, False, lambda config: None)

    assert choice() == tuning.default_config(shape)
    monkeypatch.setenv(tuning.CONFIG_VARIABLE, "BLOCK_M=32, num_warps=8")
    assert choice() == tuning.default_config(shape)._replace(BLOCK_M=32, num_warps=8)
    args = problem(size=(4, 4))
    with dasr_ops.use_backend("triton"):
        dasr_ops.dynamic_conv2d(**args)
    for wrong in ("BLOCK=3", "BLOCK_M", "BLOCK_M=x"):
        monkeypatch.setenv(tuning.CONFIG_VARIABLE, wrong)
        with pytest.raises(ValueError, match="DASR_OPS_TRITON_CONFIG: expected BLOCK_M="):
            choice()


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_candidates_are_few_and_legal(dtype: torch.dtype, precision: str) -> None:
    from dasr_ops._backends.triton import tuning

    for m, n, k, heavy in ((1, 3, 5, False), (4096, 64, 64, True), (1 << 20, 256, 512, False)):
        shape = tuning.GemmShape(6, m, n, k, dtype, precision, heavy)
        found = tuning.candidates(shape)
        assert found[0] == tuning.default_config(shape)
        assert len(set(found)) == len(found) <= 8
        for config in found:
            assert min(config[:3]) >= 16
            operands = (config.BLOCK_M + config.BLOCK_N) * config.BLOCK_K * dtype.itemsize
            assert operands * config.num_stages <= 99 << 10


@needs_interpreter
def test_measured_once_unless_that_would_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    from dasr_ops._backends.triton import tuning

    shape = tuning.GemmShape(6, 4096, 64, 64, torch.bfloat16, "ieee")
    x = SimpleNamespace(is_cuda=True, device=0, stride=lambda d: 1)
    *_, fastest = tuning.candidates(shape)
    timed = []

    def time(config: tuning.Config, run: Any) -> float:
        timed.append(config)
        return 1.0 if config == fastest else 2.0

    capturing = True
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(tuning, "_time", time)
    monkeypatch.setattr(tuning, "_measured", {})

    def choice(deterministic: bool = False) -> tuning.Config:
        return tuning.choose("convolve", shape, x, deterministic, lambda config: None)

    rule = tuning.default_config(shape)
    assert choice() == rule  # nobody asked for it
    monkeypatch.setenv(tuning.AUTOTUNE_VARIABLE, "1")
    assert choice() == rule  # a graph is captured
    capturing = False
    assert choice(deterministic=True) == rule
    assert not timed
    assert choice() == choice() == fastest
    assert timed == tuning.candidates(shape)


@needs_interpreter
def test_export() -> None:
    layer = dasr_ops.DynamicConv2d(8, 8, 3, padding=1, num_experts=3, activation="relu")
    args = (torch.randn(2, 8, 6, 5), torch.rand(2, 3))
    with dasr_ops.use_backend("triton"), torch.no_grad():
        exported = torch.export.export(layer, args)
        called = {str(node.target) for node in exported.graph.nodes}
        assert "dasr_ops_triton.dynamic_conv2d.default" in called
        assert torch.equal(exported.module()(*args), layer(*args))
