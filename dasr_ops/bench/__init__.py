"""Benchmarks: the operator and the networks beside what a user would otherwise write.

`run` measures a selection of cases and writes a report; ``dasr bench`` and ``python -m
dasr_ops.bench`` are its command line, ``pytest benches/ --benchmark`` runs the same cases in
pytest-benchmark. Every formulation is compared with float64 before it is timed; all formulations of
a case are timed in turn: `results.ratio` says what is made of their times.
"""

from __future__ import annotations

from .measure import Settings
from .report import run

__all__ = ["Settings", "run"]
