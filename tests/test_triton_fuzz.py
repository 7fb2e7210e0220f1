"""Any legal call of the convolutions on interpreted Triton kernels, element by element."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from tests import test_fuzz_cuda as fuzz
from tests import triton_env

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(triton_env.missing() is not None, reason=str(triton_env.missing())),
    pytest.mark.usefixtures("exact_bfloat16", "one_thread"),
]


@pytest.mark.parametrize("chunk", range(10))
def test_any_legal_call(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "MAX_PRODUCTS", 100_000)
    done = 0
    for seed in itertools.count(1000 * chunk):
        torch.manual_seed(seed)
        r = random.Random(seed)
        call = fuzz.drawn_call(r)
        if call is None or call.dtype == torch.float64:
            continue
        try:
            fuzz.check_call(r, call, monkeypatch, "triton")
        except (AssertionError, RuntimeError) as error:
            shapes = {k: (tuple(v.shape), v.stride(), v.dtype) for k, v in call.tensors.items()}
            raise AssertionError(f"seed {seed}: {error}\n{shapes}\n{call.options}") from error
        done += 1
        if done == 20:
            return
