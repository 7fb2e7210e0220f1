"""``python benches/op.py``: the operator beside the official formulation, at the shapes of DASR.

The official formulation mixes the experts by ``torch.mm`` and folds the batch into the groups of
one ``conv2d``. Both are timed in turn in one process; the figures are ratios of medians. Before a
time is taken the result is compared with float64.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import dasr_ops

EXPERTS = 5
# batch, in, out, height, width
SHAPES = [
    (6, 3, 64, 64, 64),
    (6, 64, 64, 64, 64),
    (6, 64, 256, 64, 64),
    (1, 64, 64, 128, 128),
    (1, 64, 256, 128, 128),
    (1, 64, 3, 512, 512),
]


def official(x: Tensor, weight: Tensor, routing: Tensor) -> Tensor:
    batch = x.shape[0]
    experts, out_channels, in_channels = weight.shape[:3]
    mixed = torch.mm(routing, weight.view(experts, -1))
    mixed = mixed.view(batch * out_channels, in_channels, 3, 3)
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), mixed, None, 1, 1, groups=batch)
    return y.view(batch, out_channels, *x.shape[2:])


def ours(x: Tensor, weight: Tensor, routing: Tensor) -> Tensor:
    return dasr_ops.dynamic_conv2d(x, weight, routing, padding=1)


def median_times(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(calls))]) < 5:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(shape: tuple[int, ...], channels_last: bool, seconds: float) -> tuple[float, float]:
    batch, in_channels, out_channels, height, width = shape
    x = torch.randn(batch, in_channels, height, width)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(EXPERTS, out_channels, in_channels, 3, 3)
    routing = torch.randn(batch, EXPERTS)
    expected = official(x.double(), weight.double(), routing.double())
    error = (ours(x, weight, routing) - expected).abs().max() / expected.abs().max()
    assert error < 3e-6, f"{shape}: error {error:.1e}"

    functions = {"official": official, "ours": ours}
    with torch.no_grad():
        forward = median_times(
            {name: lambda f=f: f(x, weight, routing) for name, f in functions.items()}, seconds
        )
    leaves = [t.requires_grad_() for t in (x, weight, routing)]
    grad = torch.randn_like(expected, dtype=torch.float32).contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    both = median_times(
        {
            name: lambda f=f: torch.autograd.grad(f(*leaves), leaves, grad)
            for name, f in functions.items()
        },
        seconds,
    )
    return forward["official"] / forward["ours"], both["official"] / both["ours"]


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each measurement")
    parser.add_argument("--output", type=Path, help="write the table here, too")
    arguments = parser.parse_args()
    print(dasr_ops.backends()["cpu"])
    lines = [
        f"{processor()}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}, float32, K = "
        f"{EXPERTS}; times faster than the official formulation",
        "",
        "| batch, channels, size | forward | forward + backward | channels_last: forward | both |",
        "| --- | --- | --- | --- | --- |",
    ]
    for shape in SHAPES:
        cells = [
            f"{ratio:.1f}"
            for channels_last in (False, True)
            for ratio in measure(shape, channels_last, arguments.seconds)
        ]
        batch, in_channels, out_channels, height, width = shape
        label = f"{batch}, {in_channels} -> {out_channels}, {height}x{width}"
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
