"""Whole networks: G, and P with G, beside the official way to run them and a static SRResNet."""

from __future__ import annotations

from typing import Any

import pytest

from benches.conftest import CLOCK, Suite, run

LEVEL = "network"
pytestmark = pytest.mark.benchmark(timer=CLOCK)


def test_network(suite: Suite, entry: Any, benchmark: Any) -> None:
    run(suite, entry, benchmark)
