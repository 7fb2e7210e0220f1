"""``python benches/trials.py [FOLDER]``: kernels on trial beside those that are chosen today.

What no report of a device has shown right and faster yet is off until an environment variable asks
for it. Each such choice is compared with the default, result by result, and timed in turn with it
under CUDA graphs. FOLDER gets trials.json and trials.md. Exit code: 0 all results agree (or there
is no device), 1 some do not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import dasr_ops

# Variables of each choice; the first is the default.
TRIALS: dict[str, dict[str, str]] = {
    "default": {},
    "chained": {"DASR_OPS_CUDA_CHAIN": "1"},
    "wgmma": {"DASR_OPS_CUDA_CONV": "wgmma"},
    "wgmma, chained": {"DASR_OPS_CUDA_CONV": "wgmma", "DASR_OPS_CUDA_CHAIN": "1"},
}
# Batch, input channels, output channels, height, width, upscale_factor, mixed inside.
CASES: list[tuple[int, int, int, int, int, int, bool]] = [
    (6, 64, 64, 64, 64, 1, True),
    (6, 64, 64, 64, 64, 1, False),
    (6, 64, 256, 64, 64, 2, False),
    (1, 64, 64, 270, 480, 1, True),
    (1, 64, 64, 270, 480, 1, False),
    (1, 64, 64, 1080, 1920, 1, False),
    (16, 128, 128, 28, 28, 1, True),
]
CALLS, ROUNDS = 20, 15


@contextmanager
def variables(wanted: dict[str, str]) -> Iterator[None]:
    """Set environment variables for a while; the kernels' dispatch reads them at each call."""
    names = {name for trial in TRIALS.values() for name in trial}
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def layer(case: tuple[int, int, int, int, int, int, bool]) -> Callable[[], Tensor]:
    """A call of the operator in bfloat16 and channels_last, with ReLU."""
    batch, c_in, c_out, height, width, upscale, inside = case
    options: dict[str, Any] = {"padding": 1, "activation": "relu", "upscale_factor": upscale}
    x = torch.randn(batch, c_in, height, width, device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(5, c_out, c_in, 3, 3, device="cuda") / (9 * c_in) ** 0.5
    bias = torch.randn(5, c_out, device="cuda")
    routing = torch.randn(batch, 5, device="cuda")
    if inside:
        return lambda: dasr_ops.dynamic_conv2d(x, weight, routing, bias, **options)
    mixed, mixed_bias = dasr_ops.aggregate_experts_stack([weight, bias], routing, torch.bfloat16)
    return lambda: dasr_ops.per_sample_conv2d(x, mixed, mixed_bias, **options)


def captured(call: Callable[[], Tensor], trial: dict[str, str]) -> torch.cuda.CUDAGraph:
    """A CUDA graph of CALLS calls."""
    with variables(trial), torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(CALLS):
                call()
    return graph


def seconds(graph: torch.cuda.CUDAGraph) -> float:
    """The time of one call within a replay."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / CALLS


def measure(case: tuple[int, int, int, int, int, int, bool]) -> dict[str, Any]:
    """Difference from the default (in units of the largest value), and median times, in turn."""
    call = layer(case)
    outputs, graphs = {}, {}
    for name, trial in TRIALS.items():
        with variables(trial), torch.no_grad():
            outputs[name] = call().double()
        graphs[name] = captured(call, trial)
    expected = outputs["default"]
    largest = expected.abs().max().item()
    times: dict[str, list[float]] = {name: [] for name in TRIALS}
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            times[name].append(seconds(graph))
    return {
        "case": list(case),
        "difference": {n: (o - expected).abs().max().item() / largest for n, o in outputs.items()},
        "seconds": {name: statistics.median(values) for name, values in times.items()},
    }


def static(case: tuple[int, int, int, int, int, int, bool]) -> float:
    """The time of a static convolution of the same shape, without what is fused behind ours."""
    batch, c_in, c_out, height, width, *_ = case
    x = torch.randn(batch, c_in, height, width, device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(c_out, c_in, 3, 3, device="cuda", dtype=torch.bfloat16)
    weight = weight.contiguous(memory_format=torch.channels_last)
    graph = captured(lambda: F.conv2d(x, weight, padding=1), {})
    return statistics.median(seconds(graph) for _ in range(ROUNDS))


def faults(results: list[dict[str, Any]]) -> list[str]:
    """Results further from the default's than two roundings to bfloat16."""
    return [
        f"{result['case']}, {name}: off by {difference:.2g} of the largest value"
        for result in results
        for name, difference in result["difference"].items()
        if not difference <= 2 * 2.0**-8
    ]


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: times in microseconds."""
    names = list(TRIALS)
    head = ["case", *names, "static"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " --: |" * (len(head) - 1)]
    for result in results:
        batch, c_in, c_out, height, width, upscale, inside = result["case"]
        what = f"{batch} x {c_in}->{c_out}, {height}x{width}"
        what += f", shuffle {upscale}" if upscale > 1 else ""
        what += ", K = 5" if inside else ", mixed before"
        times = [result["seconds"][name] for name in names] + [result["static"]]
        lines.append("| " + " | ".join([what, *(f"{t * 1e6:.1f}" for t in times)]) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="for trials.json and trials.md")
    folder = parser.parse_args().folder
    if not torch.cuda.is_available():
        print("no CUDA device")
        return 0
    print(torch.cuda.get_device_name(), dasr_ops.backends()["cuda"])
    results = []
    for case in CASES:
        results.append({**measure(case), "static": static(case)})
        print(table(results[-1:]).splitlines()[-1], flush=True)
    text, found = table(results), faults(results)
    print(text, *found, sep="\n")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "trials.json").write_text(json.dumps(results, indent=1))
        (folder / "trials.md").write_text(text)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
