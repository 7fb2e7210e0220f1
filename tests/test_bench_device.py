"""The benchmarks on a CUDA device; skipped without one."""

from __future__ import annotations

import pytest
import torch

from dasr_ops.bench import Settings, measure
from dasr_ops.bench.cases import INFERENCE, TRAINING, Case, Layer, Network
from dasr_ops.bench.clock import CudaClock
from dasr_ops.bench.machine import roofline

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

LAYER = Layer("Test", "body", 3, 16, 32, 12, 10, activation="relu", residual=True)


def test_clock_sees_the_work_of_the_device() -> None:
    device = torch.device("cuda")
    timer = CudaClock(device, ahead=True)
    short, long = (torch.randn(n, n, device=device) for n in (64, 8192))

    def call(matrix):
        def work(index, lap):
            matrix @ matrix
            lap()

        return work

    (fast,), (slow,) = (min(timer.sample(call(m), [0]) for _ in range(5)) for m in (short, long))
    # At least 2 * 8192^3 operations at no more than 2 PFLOP/s; a launch takes microseconds.
    assert fast < 1e-4 < 2 * 8192**3 / 2e15 < slow


def test_clock_sees_memory() -> None:
    timer = CudaClock(torch.device("cuda"), ahead=True)

    def call(index, lap):
        first = torch.ones(1 << 22, device="cuda")
        first + 1

    assert timer.peak_memory(call) == 2 << 24


@pytest.mark.parametrize("dtype", ["float32", "tfloat32", "bfloat16", "float16"])
@pytest.mark.parametrize("mode", [INFERENCE, TRAINING])
def test_layer(mode: tuple[str, ...], dtype: str) -> None:
    found = measure.measure(
        Case(LAYER, mode, dtype, "channels_last"),
        torch.device("cuda"),
        Settings(seconds=0.1),
    )
    for peer, samples in found.items():
        assert samples.failed is None, f"{peer}: {samples.failed}"
        if peer not in ("timm", "official, compiled"):
            assert samples.skipped is None, f"{peer}: {samples.skipped}"
            assert all(lap > 0 for laps in samples.visits[0] for lap in laps)
            assert samples.host > 0


@pytest.mark.parametrize("mode", [INFERENCE, TRAINING])
def test_network(mode: tuple[str, ...]) -> None:
    network = Network("Test", "generator", 2, 9, 8, experts=2, features=8, blocks=1)
    names = [n for n in measure.peers(Case(network, mode), "cuda") if "compiled" not in n]
    assert ("dasr_ops, CUDA graph" in names) == (mode == INFERENCE)
    found = measure.measure(
        Case(network, mode, "float32", "channels_last"),
        torch.device("cuda"),
        Settings(seconds=0.1, peers=tuple(names)),
    )
    for peer in names:
        assert (found[peer].failed, found[peer].skipped) == (None, None), peer


def test_roofline() -> None:
    roofs = roofline(torch.device("cuda"))
    assert roofs["bandwidth"] > 5e10
    assert roofs["rates"]["float32"] < roofs["rates"]["tfloat32"] <= roofs["rates"]["bfloat16"]
