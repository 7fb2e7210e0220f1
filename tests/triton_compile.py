"""Compiles the launches of a call for GPUs that are not there, and says what they need.

``python -m tests.triton_compile '{"arch": 90, "cases": [...]}'`` prints one JSON object a kernel. A
process of its own, since kernels of one that interprets them cannot be compiled.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

import dasr_ops._backends.triton.operators as operators
from dasr_ops._backends.triton import convolve, depthwise, epilogue, tuning, weight_grad

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
Launch = tuple[JITFunction, tuple[Any, ...], dict[str, Any]]


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collects launches instead of making them."""
    launches: list[Launch] = []
    run = JITFunction.run

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append((self, args, kwargs))

    JITFunction.run = record
    try:
        yield launches
    finally:
        JITFunction.run = run


def compiled(launch: Launch, target: GPUTarget) -> Any:
    """What Triton would run on such a device, specialised to the arguments."""
    kernel, args, kwargs = launch
    backend = make_backend(target)
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = binder(*args, debug=False, **kwargs)
    options, signature, constexprs, attrs = kernel._pack_args(
        backend, kwargs, bound, specialization, options
    )
    source = ASTSource(kernel, signature, constexprs, attrs)
    return triton.compile(source, target=target, options=options.__dict__)


def resources(kernel: Any) -> dict[str, Any]:
    """Registers, spills, shared memory and instructions of a compiled kernel."""
    found: dict[str, Any] = {
        "name": kernel.metadata.name,
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
    }
    if "cubin" not in kernel.asm:
        text = kernel.asm["amdgcn"]
        for name in ("sgpr_spill_count", "vgpr_spill_count", "vgpr_count"):
            found[name] = int(re.search(rf"\.{name}:\s*(\d+)", text)[1])
        return found | {"matrix": "mfma" in text, "vector": "dwordx4" in text}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        code = _run("cuobjdump", "--dump-sass", file.name)
    for name in ("REG", "STACK", "LOCAL"):
        found[name.lower()] = int(re.search(rf"{name}:(\d+)", usage)[1])
    found["spills"] = len(re.findall(r"\b(?:STL|LDL)\b", code))
    found["matrix"] = sorted(set(re.findall(r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b", code)))
    found["vector"] = bool(re.search(r"LDG\S*\.128|LDGSTS\S*\.128", code))
    return found


def _run(tool: str, *args: str) -> str:
    return subprocess.run(
        [BINARIES / tool, *args], check=True, capture_output=True, text=True
    ).stdout


DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}


def call(case: dict[str, Any]) -> list[Launch]:
    """The launches of a forward and backward pass; ``config`` replaces the rule's."""
    for module in (convolve, depthwise, epilogue, weight_grad):
        module.is_wide = lambda pixels: case.get("wide", False)
    dtype, num_experts = DTYPES[case["dtype"]], case.get("experts", 5)
    batch, (in_channels, out_channels), size = case["batch"], case["channels"], case["size"]
    kernel, groups = case.get("kernel", [3, 3]), case.get("groups", 1)
    factor, slope = case.get("upscale", 1), case.get("slope")
    input = torch.zeros(batch, in_channels, *size, dtype=dtype)
    if case.get("channels_last", True):
        input = input.contiguous(memory_format=torch.channels_last)
    experts = torch.zeros(num_experts, out_channels, in_channels // groups, *kernel)
    routing = torch.zeros(batch, num_experts, dtype=DTYPES[case.get("routing", "fp32")])
    bias = torch.zeros(num_experts, out_channels)
    stride, padding = case.get("stride", 1), [k // 2 for k in kernel for _ in (0, 1)]
    options = ([stride] * 2, padding, [1, 1], groups, slope, case.get("scale", 1.0), factor)
    tf32 = case.get("tf32", False)
    with recorded() as launches:
        residual = None
        save_mask = case.get("residual", False) and slope is not None
        args = (input, experts, routing, bias)
        output, mask = operators.dynamic_conv2d(*args, residual, *options, save_mask, False, tf32)
        if case.get("residual", False):
            launches.clear()
            operators.dynamic_conv2d(*args, output, *options, save_mask, False, tf32)
        saved = (None, mask) if save_mask else (output, None) if slope is not None else (None, None)
        operators.dynamic_conv2d_backward(output, *args, *saved, *options, [True] * 4, False, tf32)
    return launches


def every_candidate(case: dict[str, Any]) -> Iterator[list[Launch]]:
    """The matrix products of a call, once for each configuration that may be measured."""
    rule: Callable[..., Any] = tuning.default_config
    for i in range(tuning._MAX_CANDIDATES):
        # Shapes with fewer candidates repeat their last.
        tuning.default_config = lambda shape, i=i: _candidate(rule, shape, i)
        yield [launch for launch in call(case) if "num_stages" in launch[2]]
    tuning.default_config = rule


def _candidate(rule: Callable[..., Any], shape: Any, i: int) -> Any:
    current, tuning.default_config = tuning.default_config, rule
    found = tuning.candidates(shape)
    tuning.default_config = current
    return found[min(i, len(found) - 1)]


def main() -> None:
    request = json.loads(sys.argv[1])
    arch = request["arch"]
    target = GPUTarget("hip", arch, 64) if isinstance(arch, str) else GPUTarget("cuda", arch, 32)
    seen = set()
    for case in request["cases"]:
        groups = every_candidate(case) if request.get("candidates") else [call(case)]
        for launch in (launch for group in groups for launch in group):
            kernel = compiled(launch, target)
            if kernel.hash not in seen:
                seen.add(kernel.hash)
                print(json.dumps({"case": case, **resources(kernel), "config": config(launch)}))


def config(launch: Launch) -> dict[str, Any]:
    return {k: v for k, v in launch[2].items() if k.startswith(("BLOCK", "num", "FLAT", "PREC"))}


if __name__ == "__main__":
    main()
