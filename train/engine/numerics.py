"""Threads and determinism of a run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from ..config import EngineConfig


@contextlib.contextmanager
def numerics(config: EngineConfig) -> Iterator[None]:
    """Set threads and determinism for the run, and put them back."""
    deterministic = config.deterministic
    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if config.threads:
        torch.set_num_threads(config.threads)
    if deterministic:
        # cuBLAS reads this when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not deterministic  # patches have one size
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark
