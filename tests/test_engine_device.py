"""Training on a GPU: every precision, resumed bit for bit, without waiting for the synthesis."""

import pytest
import torch

from dasr_ops.train.engine import train
from dasr_ops.train.synthesis import Synthesis

from .training_tools import assert_same, newest, tensors, tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


def on_gpu(folder, **changes):
    return tiny(folder, engine__device="cuda", data__workers=1, **changes)


@pytest.mark.parametrize("synthesis", ["device", "loader"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_runs_on_a_gpu(tmp_path, precision, synthesis):
    config = on_gpu(tmp_path, engine__precision=precision, data__synthesis=synthesis)
    config.engine.deterministic = False
    assert train(config) == 0
    state = tensors(newest(config)["learner"]["restorer"])
    assert all(torch.isfinite(w).all() and w.dtype == torch.float32 for w in state.values())


def test_a_resumed_run_ends_in_the_same_bits(tmp_path):
    whole = on_gpu(tmp_path, run=tmp_path / "whole", schedule__kind="constant")
    assert train(whole) == 0
    parts = on_gpu(tmp_path, schedule__kind="constant", schedule__iterations=3)
    assert train(parts) == 0
    parts.schedule.iterations = 6
    assert train(parts) == 0
    assert_same(newest(whole), newest(parts))


def test_the_synthesis_waits_for_nothing():
    synthesis = Synthesis({"weak": 0.3, "standard": 0.3, "severe": 0.4}, 4, 256)
    sources = torch.randint(256, (6, 3, 400, 400), dtype=torch.uint8, device="cuda")
    corners = torch.zeros(6, 2, dtype=torch.int64)
    synthesis(sources, corners, synthesis.draw(range(6)))  # makes constants
    torch.cuda.set_sync_debug_mode("error")
    try:
        synthesis(sources, corners, synthesis.draw(range(6, 12)))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_compiled_on_a_gpu(tmp_path):
    config = on_gpu(tmp_path, engine__compile=True, engine__precision="bfloat16")
    config.engine.deterministic = False
    assert train(config) == 0
