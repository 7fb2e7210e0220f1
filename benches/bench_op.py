"""One dynamic convolution: `dasr_ops.dynamic_conv2d` beside every other way to write it."""

from __future__ import annotations

from typing import Any

import pytest

from benches.conftest import CLOCK, Suite, run

LEVEL = "op"
pytestmark = pytest.mark.benchmark(timer=CLOCK)


def test_op(suite: Suite, entry: Any, benchmark: Any) -> None:
    run(suite, entry, benchmark)
