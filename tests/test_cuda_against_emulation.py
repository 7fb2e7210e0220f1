"""The CUDA kernels on a device against the same sources run by the emulation, and float64."""

from __future__ import annotations

import re

import pytest
import torch

import dasr_ops

from .cuda_kernels import KERNELS
from .cuda_kernels.kernel import Case, Kernel, Tensors, errors
from .emulation import build

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = [
    pytest.param(kernel, case, id=f"{kernel.launcher}-{i}")
    for kernel in KERNELS
    for i, case in enumerate(kernel.cases)
]
needs_device = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
needs_emulation = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))


def launchers() -> set[str]:
    """What the headers of csrc/cuda declare to be called with a stream."""
    pattern = re.compile(r"\bcudaError_t\s+(\w+)\s*\([^;{]*\bcudaStream_t\b[^;{]*\)\s*;")
    headers = (build.CSRC / "cuda").rglob("*.h")
    return {name for header in headers for name in pattern.findall(header.read_text())}


def test_every_launcher_has_an_entry() -> None:
    declared = launchers()
    assert "aggregate_experts_backward" in declared  # declared over two lines
    listed = [kernel.launcher for kernel in KERNELS]
    assert len(set(listed)) == len(listed)
    assert set(listed) >= declared, f"KERNELS of tests/cuda_kernels lacks {declared - {*listed}}"
    assert set(listed) <= declared, f"no header declares {set(listed) - declared}"


@needs_emulation
@pytest.mark.parametrize(("kernel", "case"), CASES)
def test_emulation_against_float64(kernel: Kernel, case: Case) -> None:
    inputs = kernel.inputs(*case)
    found = errors(kernel, inputs, kernel.emulated(inputs))
    assert max(found.values()) <= 1, found


@needs_emulation
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.launcher)
def test_bounds_notice_a_wrong_element(kernel: Kernel) -> None:
    """One that is off by a quarter of the typical element: less than most mistakes.

    Long sums of narrow operands may be off by several percent in the worst case.
    """
    for case in kernel.small[::4]:
        inputs = kernel.inputs(*case)
        expected, _ = kernel.reference(inputs)
        for name, value in expected.items():
            typical = value.double().square().mean().sqrt()
            for wrong in (value.flatten()[-1] + typical / 4, torch.nan):
                outputs = {key: tensor.clone() for key, tensor in expected.items()}
                outputs[name].view(-1)[-1] = wrong
                assert errors(kernel, inputs, outputs)[name] > 1, case


def run_on_device(kernel: Kernel, inputs: Tensors) -> Tensors:
    assert dasr_ops.backends()["cuda"].startswith("available"), dasr_ops.backends()["cuda"]
    return {name: value.cpu() for name, value in kernel.device(inputs).items()}


@pytest.mark.gpu
@needs_device
@pytest.mark.parametrize(("kernel", "case"), CASES)
def test_device_against_float64(kernel: Kernel, case: Case) -> None:
    inputs = kernel.inputs(*case)
    found = errors(kernel, inputs, run_on_device(kernel, inputs))
    assert max(found.values()) <= 1, found


@pytest.mark.gpu
@needs_device
@needs_emulation
@pytest.mark.parametrize(("kernel", "case"), CASES)
def test_device_against_emulation(kernel: Kernel, case: Case) -> None:
    inputs = kernel.inputs(*case)
    outputs = run_on_device(kernel, inputs)
    for name, emulated in kernel.emulated(inputs).items():
        if kernel.same_bits:
            different = (outputs[name] != emulated).sum().item()
            assert different == 0, f"{name}: {different} of {emulated.numel()} elements differ"
        else:
            # Both lie within the bound of the same value.
            bound = 2 * kernel.reference(inputs)[1][name]
            assert ((outputs[name].double() - emulated.double()).abs() <= bound).all(), name
