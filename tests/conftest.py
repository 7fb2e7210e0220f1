from __future__ import annotations

import pytest
import torch

import dasr_ops

from .emulation import build, operators


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def cpu_backends() -> list[str]:
    """Backends that run on this machine's CPU; ``emulated`` are the CUDA operators."""
    available = dasr_ops.backends()
    names = [name for name in ("cpu", "eager") if available[name].startswith("available")]
    return names if build.missing() else [*names, operators.backend().name]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", cpu_backends())
