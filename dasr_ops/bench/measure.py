"""One case: each formulation is checked, then all are timed in turn."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .cases import DTYPES, Case, Network, layers, work
from .clock import Call, Clock, clock
from .formulations import OFFICIAL, OURS, PEERS
from .machine import cache_size, set_tf32
from .networks import NetworkSubject
from .networks import peers as network_peers
from .subjects import Accuracy, LayerSubject, Subject

_MIN_ROUNDS = 5
_MAX_ROUNDS = 200
_SECONDS = {"cpu": 3.0, "cuda": 1.0}
_SHORTEST = {"cpu": 1e-3, "cuda": 2e-4}
"""Seconds that a sample takes at least; shorter calls are repeated within it."""


@dataclass(frozen=True)
class Settings:
    """How long to measure.

    Attributes:
        seconds: time for the rounds of one case, at least `_MIN_ROUNDS` of them; None: 3 on a CPU,
            1 on a GPU.
        precision: the rounds end when each ratio is known to this, relative.
        peers: names of formulations to measure beside ours and the official one; None for all.
        memory: whether peak memory is measured.
    """

    seconds: float | None = None
    precision: float = 0.01
    peers: tuple[str, ...] | None = None
    memory: bool = True


@dataclass
class Samples:
    """What was measured of one formulation in one case.

    Attributes:
        accuracy: error and bound.
        laps: seconds, [rounds][phases].
        iterations: calls averaged in each round.
        peak_memory: bytes of one call, or None.
        host: seconds that the CPU takes to enqueue a call, or None.
        skipped: why there is nothing else, or None.
        failed: why there is nothing else although there should be, or None.
    """

    accuracy: Accuracy | None = None
    laps: list[list[float]] = field(default_factory=list)
    iterations: int = 1
    peak_memory: int | None = None
    host: float | None = None
    skipped: str | None = None
    failed: str | None = None

    def times(self, timed: str) -> list[float]:
        """Return the seconds of each round for a pass."""
        if timed == "backward":
            return [lap[-1] for lap in self.laps]
        return [sum(lap) for lap in self.laps]


def peers(case: Case, device_type: str) -> tuple[str, ...]:
    """Return the names of the formulations of a case, ours and the official one first."""
    found = network_peers(case, device_type) if case.level == "network" else PEERS
    return tuple(peer for peer in found if case.peers is None or peer in case.peers)


def check(case: Case, device: torch.device, names: Collection[str]) -> dict[str, Samples]:
    """Run formulations of a case once each and compare them with float64; no times."""
    with _Numerics(case):
        subject = _subject(case, device, cache=0)
        return {peer: _checked(subject, peer)[0] for peer in names}


def measure(case: Case, device: torch.device, settings: Settings) -> dict[str, Samples]:
    """Check and time all formulations of a case, interleaved.

    Args:
        case: what to measure.
        device: where.
        settings: for how long.

    Returns:
        Samples by the name of the formulation, `OURS` and `OFFICIAL` first.
    """
    with _Numerics(case):
        subject = _subject(case, device, cache_size(device))
        timer = clock(device, ahead=case.level == "op")
        results: dict[str, Samples] = {}
        calls: dict[str, Call] = {}
        for peer in peers(case, device.type):
            if settings.peers is not None and peer not in (OURS, OFFICIAL, *settings.peers):
                continue
            results[peer], call = _checked(subject, peer)
            if call is not None:
                calls[peer] = call
        _warm_up(calls, results, timer)
        _interleave(calls, results, timer, subject, settings)
        for peer, call in calls.items():
            results[peer].host = timer.host_time(call)
            if settings.memory:
                results[peer].peak_memory = timer.peak_memory(call)
        return results


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
    q1, median, q3 = statistics.quantiles(mine.times(timed), n=4)
    found = ratio(samples, peer, timed)
    whole = timed != "backward"
    return {
        "peer": peer,
        "median": median,
        "q1": q1,
        "q3": q3,
        "rounds": len(mine.laps),
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
        The median over the rounds of the ratio within a round, and the 95 % confidence interval of
        that median; None if one of the two was not measured.
    """
    official = samples.get(OFFICIAL)
    if official is None or not official.laps or not samples[peer].laps:
        return None
    pairs = zip(official.times(timed), samples[peer].times(timed), strict=True)
    return interval([a / b for a, b in pairs])


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and its 95 % confidence interval, from the order of the values alone."""
    ordered = sorted(values)
    n = len(ordered)
    reach = 0.98 * math.sqrt(n)
    low = max(0, math.floor(n / 2 - reach))
    high = min(n - 1, math.ceil(n / 2 + reach))
    return statistics.median(ordered), ordered[low], ordered[high]


class _Numerics:
    """Sets what a case asks of PyTorch, and restores it."""

    def __init__(self, case: Case) -> None:
        self._dtype = case.dtype

    def __enter__(self) -> None:
        cudnn = torch.backends.cudnn
        self._before = cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, cudnn.benchmark
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        set_tf32(self._dtype)
        # As training codes do: the peers get their fastest algorithm.
        cudnn.benchmark = True

    def __exit__(self, *_: object) -> None:
        self._warnings.__exit__(None, None, None)
        cudnn = torch.backends.cudnn
        cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, cudnn.benchmark = self._before


def _subject(case: Case, device: torch.device, cache: int) -> Subject:
    if isinstance(case.subject, Network):
        return NetworkSubject(case, device)
    return LayerSubject(case, device, cache)


def _checked(subject: Subject, peer: str) -> tuple[Samples, Call | None]:
    try:
        accuracy = subject.check(peer)
        call = subject.call(peer)
    # A peer that does not run here (no compiler, a type it does not take, too little memory) is no
    # fault of ours, and whatever it raises must not end the measurement of the others.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        if peer == OURS:
            return Samples(failed=reason), None
        return Samples(skipped=reason), None
    if not accuracy.error <= accuracy.bound:
        text = f"error {accuracy.error:.1e} against float64, expected at most {accuracy.bound:.1e}"
        return Samples(accuracy, failed=text), None
    return Samples(accuracy), call


def _warm_up(calls: dict[str, Call], results: dict[str, Samples], timer: Clock) -> None:
    for peer, call in calls.items():
        # The check has run it once. What takes long shows nothing of a first call.
        for _ in range(3):
            seconds = sum(timer.sample(call, [0]))
            if seconds > 0.2:
                break
        results[peer].iterations = max(
            1, math.ceil(_SHORTEST[timer.device_type] / max(seconds, 1e-7))
        )


def _interleave(
    calls: dict[str, Call],
    results: dict[str, Samples],
    timer: Clock,
    subject: Subject,
    settings: Settings,
) -> None:
    names = list(calls)
    position = dict.fromkeys(names, 0)
    end = time.perf_counter() + (settings.seconds or _SECONDS[timer.device_type])
    for completed in range(_MAX_ROUNDS):
        if completed >= _MIN_ROUNDS and (
            time.perf_counter() > end or _precise(names, results, subject.case, settings)
        ):
            return
        # Every peer follows every other in turn: none always finds the caches of the same one.
        shift = completed % len(names) if names else 0
        for peer in names[shift:] + names[:shift]:
            iterations = results[peer].iterations
            indices = [(position[peer] + i) % subject.sets for i in range(iterations)]
            position[peer] += iterations
            results[peer].laps.append(timer.sample(calls[peer], indices))


def _precise(names: list[str], results: dict[str, Samples], case: Case, settings: Settings) -> bool:
    found = [ratio(results, peer, timed) for peer in names for timed in case.mode]
    return all(r is not None and (r[2] - r[1]) / 2 <= settings.precision * r[0] for r in found)


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
