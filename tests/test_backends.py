"""Which backends there are, and who chooses between them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

import dasr_ops
from dasr_ops import _backends


def test_report() -> None:
    report = dasr_ops.backends()
    assert report["eager"].startswith("available")
    for text in report.values():
        assert text.startswith(("available: ", "unavailable: "))
    if not torch.cuda.is_available():
        assert report["cuda"].startswith("unavailable: ") and len(report["cuda"]) > 20


def test_use_backend_restores_even_after_an_error() -> None:
    before = _backends._requested
    x, w, a = torch.randn(1, 3, 5, 5), torch.randn(2, 4, 3, 3, 3), torch.randn(1, 2)
    with pytest.raises(ZeroDivisionError), dasr_ops.use_backend("eager"):
        with dasr_ops.use_backend(None):
            assert dasr_ops.dynamic_conv2d(x, w, a).shape == (1, 4, 3, 3)
        raise ZeroDivisionError
    assert _backends._requested == before


def test_unknown_or_unavailable_backend() -> None:
    with pytest.raises(ValueError, match=r"backend: expected one of 'cpu', .*got 'gpu'"):
        dasr_ops.use_backend("gpu").__enter__()
    missing = [n for n, text in dasr_ops.backends().items() if text.startswith("unavailable")]
    for name in missing:
        with pytest.raises(RuntimeError, match=f"backend '{name}' was asked for, but "):
            dasr_ops.use_backend(name).__enter__()


def test_forced_backend_refuses_tensors_of_another_device() -> None:
    if not dasr_ops.backends()["cpu"].startswith("available"):
        pytest.skip("the extension is not built")
    x = torch.empty(1, 3, 5, 5, device="meta")
    w = torch.empty(2, 4, 3, 3, 3, device="meta")
    a = torch.empty(1, 2, device="meta")
    assert dasr_ops.dynamic_conv2d(x, w, a).shape == (1, 4, 3, 3)
    with dasr_ops.use_backend("cpu"), pytest.raises(RuntimeError, match="CPU tensors, not meta"):
        dasr_ops.dynamic_conv2d(x, w, a)


@pytest.mark.parametrize(
    ("arch", "runs", "does_not"),
    [
        ("80", [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0)]),
        ("86", [(8, 6), (8, 9)], [(8, 0)]),
        ("90a", [(9, 0)], [(8, 0), (10, 0)]),
        ("90+ptx", [(9, 0), (10, 0), (12, 1)], [(8, 9)]),
        ("120", [(12, 0), (12, 1)], [(10, 0)]),
    ],
)
def test_architectures(arch: str, runs: list, does_not: list) -> None:
    assert all(_backends._runs_on(arch, capability) for capability in runs)
    assert not any(_backends._runs_on(arch, capability) for capability in does_not)


def test_import_does_not_start_cuda() -> None:
    # A process that has touched CUDA cannot fork workers that use it.
    code = "import torch; torch.cuda.is_available = None; import dasr_ops; print('ok')"
    assert run(code).stdout.strip() == "ok"


def run(code: str, **environment: Any) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_environment_variable() -> None:
    code = (
        "import torch, dasr_ops; dasr_ops.dynamic_conv2d("
        "torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 1, 3, 3), torch.zeros(1, 1));"
        "print(dasr_ops.backends.__module__)"
    )
    assert run(code, DASR_OPS_BACKEND="eager").returncode == 0
    wrong = run(code, DASR_OPS_BACKEND="abacus")
    assert wrong.returncode != 0 and "got 'abacus'" in wrong.stderr


def test_import_is_light() -> None:
    # Libraries that only some commands need are not paid for by every import. (Triton, where it is
    # installed, is imported by torch.library.)
    code = (
        "import sys, torch; before = set(sys.modules); import dasr_ops;"
        "heavy = {'PIL', 'tyro', 'safetensors', 'tqdm'};"
        "print(sorted(heavy & (set(sys.modules) - before)))"
    )
    assert run(code).stdout.strip() == "[]"
