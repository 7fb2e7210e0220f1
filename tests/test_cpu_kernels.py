"""The CPU kernels on random calls under sanitizers, in a program without PyTorch.

`tests/cpu_kernels/check_conv.cpp` draws the calls and compares with float64; a failure names the
seed that repeats its call.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import cpu_kernels

LACKS_ISA = 3  # the program's exit status
# Calls by which each kind of tensor has been used, if there are no faults.
SOME = ("--calls", "60")


def run(variant: str, isa: str, *arguments: str) -> subprocess.CompletedProcess:
    if reason := cpu_kernels.missing(variant):
        pytest.skip(reason)
    return cpu_kernels.run(variant, isa, *arguments)


def check(variant: str, isa: str, *arguments: str) -> None:
    done = run(variant, isa, *arguments)
    if done.returncode == LACKS_ISA:
        pytest.skip(f"this processor has no {isa}")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    assert done.stdout.startswith(f"{isa}: 0 failures"), "another instruction set was used"


@pytest.mark.parametrize("isa", cpu_kernels.isas())
def test_random_calls(isa: str) -> None:
    check("address", isa, "--calls", "150")


@pytest.mark.slow
@pytest.mark.parametrize("isa", cpu_kernels.isas())
def test_many_random_calls(isa: str) -> None:
    check("address", isa, "--seed", "10000", "--calls", "4000")


@pytest.mark.slow
@pytest.mark.parametrize("isa", cpu_kernels.isas())
def test_races(isa: str) -> None:
    check("thread", isa, "--seed", "20000", "--calls", "200")


# ---- the check notices mistakes ----

TENSORS = [
    *("input", "weight", "routing", "bias", "residual", "grad_output", "saved_output"),
    *("saved_sign_mask", "output", "sign_mask", "grad_input", "grad_weight", "grad_routing"),
    "grad_bias",
]


@pytest.mark.parametrize("tensor", TENSORS)
def test_one_element_too_few_is_noticed(tensor: str) -> None:
    done = run("address", "portable", "--shorten", tensor, *SOME)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert "dasr::cpu::portable::" in done.stderr, "not in a kernel"
    assert "DIED in seed" in done.stderr


SABOTAGE = {
    "--wrong-reference": "the bar is",
    "--thread-dependent": "output depends on the number of threads",
}


@pytest.mark.parametrize("sabotage", SABOTAGE)
def test_wrong_results_are_noticed(sabotage: str) -> None:
    done = run("address", "portable", sabotage, *SOME)
    assert done.returncode == 1 and SABOTAGE[sabotage] in done.stdout
    assert "FAILED seed" in done.stdout


@pytest.mark.slow
def test_races_are_noticed() -> None:
    done = run("thread", "portable", "--overlapping-pool", *SOME)
    assert done.returncode != 0 and "ThreadSanitizer: data race" in done.stderr


# ---- other processors ----


def aarch64_compiler() -> list[str] | None:
    if platform.machine() != "aarch64" and shutil.which("aarch64-linux-gnu-g++"):
        return ["aarch64-linux-gnu-g++"]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu"]
    return None


def test_compiles_for_aarch64(tmp_path: Path) -> None:
    compiler = aarch64_compiler()
    if compiler is None:
        pytest.skip("neither aarch64-linux-gnu-g++ nor the package ziglang is installed")
    files = [*cpu_kernels.kernel_sources(x86=False), *(cpu_kernels.CSRC / "cpu").glob("*.cpp")]
    headers = Path(torch.__file__).parent / "include"  # some take their threads from PyTorch
    for source in files:
        done = subprocess.run(
            [
                *compiler,
                *("-O1", "-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{cpu_kernels.CSRC}"),
                *("-isystem", str(headers)),
                *("-c", str(source), "-o", str(tmp_path / f"{source.stem}.o")),
            ],
            env=os.environ | {"ZIG_GLOBAL_CACHE_DIR": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
