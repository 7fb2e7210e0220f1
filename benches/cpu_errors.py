"""``python benches/cpu_errors.py``: the largest errors of the CPU's 3x3 and 5x5 convolutions.

Errors are those of outputs against float64, as shares of the largest output, for inputs and kernels
of every kind: random ones, for which `dasr_ops.set_cpu_precision` documents its bounds, and such as
are hard for Winograd's method. PyTorch's own convolution stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from dasr_ops import per_sample_conv2d, set_cpu_precision
from dasr_ops.bench.accuracy import max_error
from dasr_ops.precision import CPU_PRECISIONS

SIDE = 20
CHANNELS = ((16, 32), (64, 64), (512, 64), (64, 3), (1024, 16))  # input, output
RANDOM = ("normal", "uniform")

Fill = Callable[..., Tensor]


def _spike(*shape: int) -> Tensor:
    values = 1e-7 * torch.randn(*shape)
    values[tuple(size // 2 for size in shape)] = 1
    return values


def _stripes(*shape: int) -> Tensor:
    return torch.ones(*shape) * (torch.arange(shape[-1]) % 2 * 2 - 1)


FILLS: dict[str, Fill] = {
    "normal": torch.randn,
    "uniform": torch.rand,
    "ones": torch.ones,
    "near one": lambda *shape: 1 + 0.01 * torch.rand(*shape),
    "sparse": lambda *shape: torch.randn(*shape) * (torch.rand(*shape) < 0.02),
    "stripes": _stripes,
    "one pixel": _spike,
}


def errors(size: int, inputs: str, kernels: str) -> tuple[float, float]:
    """Return the largest errors of our convolution and of PyTorch's."""
    ours = theirs = 0.0
    for channels, filters in CHANNELS:
        x = FILLS[inputs](1, channels, SIDE, SIDE)
        w = FILLS[kernels](1, filters, channels, size, size)
        exact = F.conv2d(x.double(), w[0].double(), padding=size // 2)
        ours = max(ours, max_error(per_sample_conv2d(x, w, padding=size // 2), exact))
        theirs = max(theirs, max_error(F.conv2d(x, w[0], padding=size // 2), exact))
    return ours, theirs


def main() -> None:
    """Print a table, the worst pairs of inputs and kernels first."""
    print("| size | precision | inputs | kernels | error | PyTorch |\n|" + " --- |" * 6)
    for size, precision in product((3, 5), CPU_PRECISIONS):
        set_cpu_precision(precision)
        rows = []
        for inputs, kernels in product(FILLS, FILLS):
            torch.manual_seed(0)
            rows.append((*errors(size, inputs, kernels), inputs, kernels))
        rows.sort(reverse=True)
        random = max(row for row in rows if row[2] in RANDOM and row[3] in RANDOM)
        for ours, theirs, inputs, kernels in (*rows[:3], random):
            print(
                f"| {size}x{size} | {precision} | {inputs} | {kernels} | {ours:.1e} "
                f"| {theirs:.1e} |"
            )


if __name__ == "__main__":
    main()
