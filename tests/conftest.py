from __future__ import annotations

from . import triton_env  # before anything imports Triton

# isort: split

from collections.abc import Iterator

import pytest
import torch

import dasr_ops

from .emulation import build, operators


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Many small references: on a busy machine threads spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def exact_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """For Triton's interpreter."""
    triton_env.mend_bfloat16(monkeypatch)


def cpu_backends() -> list[str]:
    """Backends that run on this machine's CPU; ``emulated`` are the CUDA operators."""
    available = dasr_ops.backends()
    names = [name for name in ("cpu", "eager") if available[name].startswith("available")]
    return names if build.missing() else [*names, operators.backend().name]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", cpu_backends())
