"""Cases are measured: each formulation is checked, then all are timed in turn."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from .cases import Case, Network
from .clock import Call, clock
from .formulations import OFFICIAL, OURS, PEERS
from .machine import cache_size, set_tf32
from .networks import NetworkSubject
from .networks import peers as network_peers
from .results import Samples, ratio
from .subjects import LayerSubject, Subject

_MIN_ROUNDS = 5
_MAX_ROUNDS = 200
_DEFAULTS = {"cpu": (3.0, 6), "cuda": (1.0, 1)}
"""Seconds and visits."""

_SHORTEST = {"cpu": 1e-3, "cuda": 2e-4}
"""Seconds that a sample takes at least; shorter calls are repeated within it."""


@dataclass(frozen=True)
class Settings:
    """How long to measure.

    Attributes:
        seconds: time for the rounds of one case, at least 5 of them; None: 3 on a CPU, 1 on a
            GPU.
        visits: in how many pieces that time is spent, all cases in turn between them: other work on
            a machine slows it for seconds, which would hit all rounds of a case. The fastest visit
            of each formulation counts. None: 6 on a CPU, 1 on a GPU.
        precision: with a single visit, the rounds end when each ratio is known to this, relative.
        peers: names of formulations to measure beside ours and the official one; None for all.
        memory: whether peak memory is measured.
    """

    seconds: float | None = None
    visits: int | None = None
    precision: float = 0.01
    peers: tuple[str, ...] | None = None
    memory: bool = True

    def for_device(self, device_type: str) -> Settings:
        """Return the settings with the defaults of a kind of device."""
        seconds, visits = _DEFAULTS[device_type]
        return replace(
            self,
            seconds=seconds if self.seconds is None else self.seconds,
            visits=visits if self.visits is None else self.visits,
        )


def peers(case: Case, device_type: str) -> tuple[str, ...]:
    """Return the names of the formulations of a case, ours and the official one first."""
    found = network_peers(case, device_type) if case.level == "network" else PEERS
    return tuple(peer for peer in found if case.peers is None or peer in case.peers)


def check(case: Case, device: torch.device, names: Collection[str]) -> dict[str, Samples]:
    """Run formulations of a case once each and compare them with float64; no times."""
    with _Numerics(case):
        subject = _subject(case, device, cache=0)
        return {peer: _checked(subject, peer)[0] for peer in names}


class Measurement:
    """One case with its formulations, checked and ready to be timed, in as many pieces as wanted.

    Args:
        case: what to measure.
        device: where.
        settings: for how long.

    Attributes:
        case: what is measured.
        samples: what was measured so far, by the name of the formulation.
        size: bytes of the tensors that are kept between visits.
    """

    def __init__(self, case: Case, device: torch.device, settings: Settings) -> None:
        self.case = case
        self.samples: dict[str, Samples] = {}
        self._settings = settings.for_device(device.type)
        self._calls: dict[str, Call] = {}
        self._rounds = 0
        with _Numerics(case):
            self._timer = clock(device, ahead=case.level == "op")
            self._subject = _subject(case, device, cache_size(device))
            for peer in peers(case, device.type):
                if settings.peers is None or peer in (OURS, OFFICIAL, *settings.peers):
                    self.samples[peer], call = _checked(self._subject, peer)
                    if call is not None and self._warm_up(peer, call):
                        self._calls[peer] = call
            self._position = dict.fromkeys(self._calls, 0)
            self._subject.forget_reference()
        self.size = self._subject.size

    def visit(self) -> None:
        """Time all formulations, interleaved, for the share of a visit."""
        settings = self._settings
        share = settings.seconds / settings.visits
        least = max(2, math.ceil(_MIN_ROUNDS / settings.visits))
        with _Numerics(self.case):
            for peer in self._calls:
                self.samples[peer].visits.append([])
            end = time.perf_counter() + share
            for completed in range(max(least, _MAX_ROUNDS // settings.visits)):
                if completed >= least and (time.perf_counter() > end or self._precise()):
                    return
                self._round()

    def finish(self) -> None:
        """Measure what needs one call only: peak memory, and the time to enqueue it."""
        with _Numerics(self.case):
            for peer, call in self._calls.items():
                self.samples[peer].host = self._timer.host_time(call)
                if self._settings.memory:
                    self.samples[peer].peak_memory = self._timer.peak_memory(call)

    def _warm_up(self, peer: str, call: Call) -> bool:
        try:
            # The check has run it once. What takes long shows nothing of a first call.
            for _ in range(3):
                seconds = sum(self._timer.sample(call, [0]))
                if seconds > 0.2:
                    break
        except Exception as error:
            self.samples[peer] = _excused(peer, error)
            return False
        shortest = _SHORTEST[self._timer.device_type]
        self.samples[peer].iterations = max(1, math.ceil(shortest / max(seconds, 1e-7)))
        return True

    def _round(self) -> None:
        # Every peer follows every other in turn: none always finds the caches of the same one.
        names = list(self._calls)
        shift = self._rounds % len(names) if names else 0
        self._rounds += 1
        for peer in names[shift:] + names[:shift]:
            iterations = self.samples[peer].iterations
            first = self._position[peer]
            self._position[peer] += iterations
            indices = [(first + i) % self._subject.sets for i in range(iterations)]
            laps = self._timer.sample(self._calls[peer], indices)
            self.samples[peer].visits[-1].append(laps)

    def _precise(self) -> bool:
        if self._settings.visits > 1:
            return False
        found = [ratio(self.samples, peer, t) for peer in self._calls for t in self.case.mode]
        precision = self._settings.precision
        return all(r is not None and (r[2] - r[1]) / 2 <= precision * r[0] for r in found)


def measure(case: Case, device: torch.device, settings: Settings) -> dict[str, Samples]:
    """Check and time all formulations of a case, interleaved.

    Args:
        case: what to measure.
        device: where.
        settings: for how long; all in one visit.

    Returns:
        Samples by the name of the formulation, `OURS` and `OFFICIAL` first.
    """
    ((_, samples, _),) = measure_all([case], device, replace(settings, visits=1))
    return samples


def measure_all(
    chosen: Iterable[Case],
    device: torch.device,
    settings: Settings,
    until: float = math.inf,
) -> Iterator[tuple[Case, dict[str, Samples], bool]]:
    """Measure cases in turn, each in as many visits as the settings say.

    As many cases as fit the memory are kept between visits.

    Args:
        chosen: the cases.
        device: where.
        settings: for how long.
        until: of `time.monotonic`; from then on no case is visited again.

    Yields:
        A case, its samples by the name of the formulation, and whether these are final: each case
        is yielded after its first visit, and again after its last if there are several.
    """
    visits = settings.for_device(device.type).visits
    budget = _memory(device) // 4
    block: list[Measurement] = []
    for case in chosen:
        try:
            measurement = Measurement(case, device, settings)
            measurement.visit()
        except Exception as error:
            yield case, {OURS: _excused(OURS, error)}, True
            continue
        if visits == 1:
            measurement.finish()
            yield case, measurement.samples, True
            continue
        yield case, measurement.samples, False
        block.append(measurement)
        if sum(kept.size for kept in block) > budget:
            yield from _revisit(block, visits - 1, until)
    yield from _revisit(block, visits - 1, until)


def _revisit(
    block: list[Measurement], visits: int, until: float
) -> Iterator[tuple[Case, dict[str, Samples], bool]]:
    for _ in range(visits):
        for measurement in block:
            if time.monotonic() < until:
                measurement.visit()
    while block:
        measurement = block.pop(0)
        measurement.finish()
        yield measurement.case, measurement.samples, True


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
        return _excused(peer, error), None
    if not accuracy.error <= accuracy.bound:
        text = f"error {accuracy.error:.1e} against float64, expected at most {accuracy.bound:.1e}"
        return Samples(accuracy, failed=text), None
    return Samples(accuracy), call


def _excused(peer: str, error: Exception) -> Samples:
    reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    too_large = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if peer == OURS and not too_large:
        return Samples(failed=reason)
    return Samples(skipped=reason)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 8 << 30
