"""Every instruction set of the CPU kernels on this machine, in processes of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import dasr_ops

ROOT = Path(__file__).resolve().parents[1]
CASES = "test_fused or test_any_legal_call or test_noncontiguous_inputs or test_zero_batch"

pytestmark = pytest.mark.skipif(
    not dasr_ops.backends()["cpu"].startswith("available"), reason="the extension is not built"
)


def run_tests(isa: str, *selection: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *selection],
        cwd=ROOT,
        env=os.environ | {"DASR_OPS_CPU_ISA": isa},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("isa", ["avx2", "portable"])
def test_op_on(isa: str) -> None:
    if isa == "avx2" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("no AVX2 on this processor")
    result = run_tests(isa, "tests/test_op.py", "-k", f"({CASES}) and (cpu or any)")
    assert result.returncode == 0, result.stdout


def test_unknown_name_is_an_error_not_a_crash() -> None:
    code = (
        "import torch, dasr_ops; dasr_ops.dynamic_conv2d(torch.zeros(1, 4, 5, 5), "
        "torch.zeros(1, 8, 4, 3, 3), torch.ones(1, 1))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"DASR_OPS_CPU_ISA": "mmx"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1, "a Python error ends a process with 1, a crash does not"
    assert "DASR_OPS_CPU_ISA" in result.stderr and "mmx" in result.stderr
