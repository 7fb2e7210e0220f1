"""Clocks: how long the laps of a call take, and how much memory it needs at its peak.

A call is a function ``call(index, lap)`` that works on the argument set ``index`` and calls ``lap``
at the end of each of its phases.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

Call = Callable[[int, Callable[[], None]], None]


class CpuClock:
    """Wall time on the CPU.

    The process keeps the memory that it frees, as with jemalloc or tcmalloc. With glibc's defaults
    a large block is faulted in page by page at each call, or is not, as the history of the heap has
    it: up to twice the time, and no two runs agree.
    """

    device_type = "cpu"

    def __init__(self) -> None:
        _keep_memory()

    def sample(self, call: Call, indices: Sequence[int]) -> list[float]:
        """Return the mean seconds of each phase of ``call`` over the argument sets ``indices``."""
        totals: list[float] = []
        for index in indices:
            marks = [time.perf_counter()]
            call(index, lambda marks=marks: marks.append(time.perf_counter()))
            laps = [b - a for a, b in itertools.pairwise(marks)]
            totals = [a + b for a, b in zip(totals or [0.0] * len(laps), laps, strict=True)]
        return [total / len(indices) for total in totals]

    def host_time(self, call: Call) -> float | None:
        """Return None: the CPU enqueues nothing."""
        return None

    def peak_memory(self, call: Call) -> int | None:
        """Return the bytes that ``call`` adds to what the process holds; None but on Linux.

        The kernel's high-water mark of resident memory counts whatever allocates: PyTorch, oneDNN's
        scratchpads, ours.
        """
        status = Path("/proc/self/status")
        reset = Path("/proc/self/clear_refs")
        if not (status.exists() and reset.exists()):
            return None
        gc.collect()
        _trim()
        try:
            reset.write_text("5")
        except OSError:
            return None
        before = _resident(status, "VmRSS")
        call(0, lambda: None)
        return max(0, _resident(status, "VmHWM") - before)


class CudaClock:
    """CUDA events on the current stream of a device.

    Args:
        device: of the stream.
        ahead: whether the device sleeps while a call is enqueued, so that its work is timed without
            the gaps that a slow host leaves; `host_time` tells those apart.
    """

    device_type = "cuda"

    def __init__(self, device: torch.device, ahead: bool) -> None:
        self._device = device
        self._ahead = ahead
        self._host: dict[Call, float] = {}
        self._cycles_per_second = self._measure_frequency()

    def sample(self, call: Call, indices: Sequence[int]) -> list[float]:
        """Return the mean seconds of each phase of ``call`` over the argument sets ``indices``."""
        if self._ahead:
            host = self._host.get(call) or self.host_time(call)
            seconds = 1.5 * host * len(indices) + 50e-6
            torch.cuda._sleep(int(seconds * self._cycles_per_second))
        runs: list[list[torch.cuda.Event]] = []
        for index in indices:
            marks = [_recorded()]
            call(index, lambda marks=marks: marks.append(_recorded()))
            runs.append(marks)
        torch.cuda.synchronize(self._device)
        laps = [[a.elapsed_time(b) * 1e-3 for a, b in itertools.pairwise(marks)] for marks in runs]
        return [sum(phase) / len(indices) for phase in zip(*laps, strict=True)]

    def host_time(self, call: Call) -> float | None:
        """Return the seconds that the CPU takes to enqueue ``call``."""
        times = []
        for _ in range(3):
            torch.cuda.synchronize(self._device)
            start = time.perf_counter()
            call(0, lambda: None)
            times.append(time.perf_counter() - start)
        torch.cuda.synchronize(self._device)
        self._host[call] = sorted(times)[1]
        return self._host[call]

    def peak_memory(self, call: Call) -> int | None:
        """Return the bytes that ``call`` adds to what PyTorch's allocator has given out."""
        gc.collect()
        torch.cuda.synchronize(self._device)
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        call(0, lambda: None)
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - before

    def _measure_frequency(self) -> float:
        cycles = 20_000_000
        torch.cuda._sleep(1000)
        start = _recorded()
        torch.cuda._sleep(cycles)
        end = _recorded()
        torch.cuda.synchronize(self._device)
        return cycles / (start.elapsed_time(end) * 1e-3)


Clock = CpuClock | CudaClock


def clock(device: torch.device, *, ahead: bool) -> Clock:
    """Return the clock for a device; ``ahead`` as in `CudaClock`.

    Raises:
        ValueError: the device is neither a CPU nor a CUDA device.
    """
    if device.type == "cpu":
        return CpuClock()
    if device.type == "cuda":
        return CudaClock(device, ahead)
    raise ValueError(f"device: expected a CPU or a CUDA device, got {device}")


def _recorded() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _resident(status: Path, field: str) -> int:
    for line in status.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{status} has no {field}")


@functools.cache
def _keep_memory() -> None:
    trim_threshold, mmap_max = -1, -4  # names of options in malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def _trim() -> None:
    """Return freed memory to the system, so that using it again shows."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
