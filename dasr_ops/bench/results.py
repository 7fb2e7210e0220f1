"""What was measured, and what a report says of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .cases import DTYPES, Case, Network, layers, work
from .formulations import OFFICIAL
from .subjects import Accuracy


@dataclass
class Samples:
    """What was measured of one formulation in one case.

    Attributes:
        accuracy: error and bound.
        visits: seconds, [visits][rounds][phases].
        iterations: calls averaged in each round.
        peak_memory: bytes of one call, or None.
        host: seconds that the CPU takes to enqueue a call, or None.
        skipped: why there is nothing else, or None.
        failed: why there is nothing else although there should be, or None.
    """

    accuracy: Accuracy | None = None
    visits: list[list[list[float]]] = field(default_factory=list)
    iterations: int = 1
    peak_memory: int | None = None
    host: float | None = None
    skipped: str | None = None
    failed: str | None = None

    def times(self, timed: str) -> list[list[float]]:
        """Return the seconds of a pass, [visits][rounds]."""
        if timed == "backward":
            return [[laps[-1] for laps in visit] for visit in self.visits]
        return [[sum(laps) for laps in visit] for visit in self.visits]

    def best(self, timed: str) -> list[float]:
        """Return the seconds of a pass in the rounds of its fastest visit.

        What else a machine does, and where a host moves its cores, only ever costs time.
        """
        return min(self.times(timed), key=statistics.median)


def rows(case: Case, samples: dict[str, Samples], roofs: dict[str, Any] | None) -> list[dict]:
    """Return the rows of a report for a measured case, one for each pass."""
    subject = case.subject
    return [
        {
            "id": case.identifier(timed),
            "level": case.level,
            "group": subject.group,
            "name": subject.name,
            "shape": str(subject),
            "batch": subject.batch,
            "experts": subject.experts,
            "pass": timed,
            "dtype": case.dtype,
            "memory_format": case.memory_format,
            **_floor(case, timed, roofs),
            "results": [result(peer, timed, samples) for peer in samples],
        }
        for timed in case.mode
    ]


def result(peer: str, timed: str, samples: dict[str, Samples]) -> dict[str, Any]:
    """Return what a report says of one formulation and pass of a measured case."""
    mine = samples[peer]
    if mine.failed is not None:
        return {"peer": peer, "failed": mine.failed}
    if mine.skipped is not None:
        return {"peer": peer, "skipped": mine.skipped}
    times = mine.best(timed)
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
    found = ratio(samples, peer, timed)
    whole = timed != "backward"
    return {
        "peer": peer,
        "median": median,
        "q1": q1,
        "q3": q3,
        "rounds": len(times),
        "visits": len(mine.visits),
        "ratio": found[0] if found else None,
        "ratio_low": found[1] if found else None,
        "ratio_high": found[2] if found else None,
        "error": mine.accuracy.error,
        "bar": mine.accuracy.bound,
        "peak_memory": mine.peak_memory if whole else None,
        "host": mine.host if whole else None,
    }


def ratio(samples: dict[str, Samples], peer: str, timed: str) -> tuple[float, float, float] | None:
    """Return how many times faster than the official formulation a peer is.

    Returns:
        The ratio and its 95 % confidence interval; None if one of the two was not measured. With a
        single visit it is the median over the rounds of the ratio within a round; with several, the
        ratio of the medians of each one's fastest visit.
    """
    official = samples.get(OFFICIAL)
    if official is None or not official.visits or not samples[peer].visits:
        return None
    if len(official.visits) == 1 or peer == OFFICIAL:
        pairs = zip(official.times(timed)[0], samples[peer].times(timed)[0], strict=True)
        return interval([a / b for a, b in pairs])
    theirs, mine = (interval(one.best(timed)) for one in (official, samples[peer]))
    return theirs[0] / mine[0], theirs[1] / mine[2], theirs[2] / mine[1]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and its 95 % confidence interval, from the order of the values alone."""
    ordered = sorted(values)
    n = len(ordered)
    reach = 0.98 * math.sqrt(n)
    low = max(0, math.floor(n / 2 - reach))
    high = min(n - 1, math.ceil(n / 2 + reach))
    return statistics.median(ordered), ordered[low], ordered[high]


def _floor(case: Case, timed: str, roofs: dict[str, Any] | None) -> dict[str, Any]:
    subject = case.subject
    parts = layers(subject) if isinstance(subject, Network) else [subject]
    size = DTYPES[case.dtype].itemsize
    pieces = [(ops, size * elements) for ops, elements in (work(part, timed) for part in parts)]
    ops, traffic = (sum(column) for column in zip(*pieces, strict=True))
    found: dict[str, Any] = {"flops": ops, "bytes": traffic, "floor": None, "bound": None}
    rate = roofs["rates"].get(case.dtype) if roofs else None
    if rate:
        bandwidth = roofs["bandwidth"]
        found["floor"] = sum(max(o / rate, t / bandwidth) for o, t in pieces)
        found["bound"] = "compute" if ops / rate > traffic / bandwidth else "memory"
    return found
