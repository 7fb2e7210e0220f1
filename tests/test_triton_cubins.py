"""Triton's kernels, compiled for devices that are not there: what they need of them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from . import triton_env

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="triton is not installed"
    ),
]

ROOT = Path(__file__).parent.parent
KB = 1024
# Shared memory of a block; that of sm_120 is that of sm_86 and sm_89, too.
SHARED = {80: 163 * KB, 90: 227 * KB, 100: 227 * KB, 120: 99 * KB, "gfx942": 64 * KB}

# Of a thread's stack: ptxas parks values there that only the ends of a kernel need, rather than
# take more registers. What spills for want of registers takes hundreds of bytes.
FEW_BYTES = 32

BODY = {"dtype": "bf16", "batch": 6, "channels": [64, 64], "size": [64, 64]}
LARGE = {"size": [270, 480]}
CASES = [
    BODY | {"slope": 0.0},
    BODY | LARGE,
    BODY | LARGE | {"dtype": "fp16", "channels_last": False},
    BODY | {"channels": [3, 64]},
    BODY | {"channels": [64, 3]},
    BODY | LARGE | {"channels": [64, 256], "upscale": 2, "slope": 0.1},
    BODY | {"upscale": 2, "slope": 0.1, "residual": True},
    BODY | LARGE | {"slope": 0.1, "residual": True, "channels_last": False},
    BODY | LARGE | {"dtype": "fp32"},
    BODY | {"dtype": "fp32", "tf32": True, "stride": 2},
    BODY | {"channels": [144, 144], "groups": 144, "size": [56, 56]},
    BODY | {"channels": [37, 29], "kernel": [2, 4]},
]


# Arguments that are 1 become constants; numbers of pixels may need 64 bits.
ONE = {"dtype": "fp16", "batch": 1, "channels": [1, 1], "size": [1, 1], "experts": 1}
ODD = [
    ONE | {"kernel": [1, 1]},
    ONE | {"slope": 0.1, "residual": True},
    ONE | {"channels": [16, 16], "kernel": [1, 1], "batch": 2, "size": [1, 5], "slope": 0.0},
    ONE | {"channels": [2, 18], "groups": 2, "size": [5, 1], "stride": 2},
    ONE | {"channels": [16, 64], "groups": 16, "upscale": 2, "slope": 0.1, "residual": True},
    BODY | {"wide": True, "slope": 0.0, "channels_last": False},
    BODY | {"routing": "fp64", "channels": [16, 16]},
    BODY | {"wide": True, "channels": [64, 64], "groups": 64, "stride": 2},
]


@cache
def kernels(arch: int | str, cases: str, candidates: bool) -> list[dict[str, Any]]:
    request = {"arch": arch, "cases": json.loads(cases), "candidates": candidates}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.triton_compile", json.dumps(request)],
        cwd=ROOT,
        env=triton_env.clean(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


def check(found: list[dict[str, Any]], arch: int | str) -> None:
    assert found
    for kernel in found:
        assert kernel["shared"] <= SHARED[arch], kernel
        assert kernel["stack"] <= FEW_BYTES, kernel
        products = kernel["name"] in ("conv_gemm_kernel", "conv_weight_grad_kernel")
        tensor_cores = kernel["case"]["dtype"] != "fp32" or kernel["case"].get("tf32", False)
        assert bool(kernel["matrix"]) == (products and tensor_cores), kernel
        aligned = min(kernel["case"]["channels"]) >= 64
        narrow = kernel["case"]["dtype"] != "fp32"
        if products and aligned and narrow and kernel["case"].get("channels_last", True):
            assert kernel["vector"], kernel


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
def test_configurations_of_the_rule(arch: int) -> None:
    check(kernels(arch, json.dumps(CASES), False), arch)


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
@pytest.mark.parametrize("case", [1, 5, 6, 9])
def test_configurations_that_may_be_measured(arch: int, case: int) -> None:
    check(kernels(arch, json.dumps([CASES[case]]), True), arch)


def test_odd_arguments() -> None:
    for kernel in kernels(90, json.dumps(ODD), False):
        # In float64 there are half as many registers.
        wide = kernel["case"].get("routing") == "fp64"
        assert wide or kernel["stack"] <= FEW_BYTES, kernel


def test_amd() -> None:
    for kernel in kernels("gfx942", json.dumps(CASES), False):
        assert kernel["shared"] <= SHARED["gfx942"], kernel
        if kernel["name"] in ("conv_gemm_kernel", "conv_weight_grad_kernel"):
            assert kernel["matrix"], kernel
