"""``python benches/estimates.py``: what each CUDA kernel should take on an H100, by arithmetic.

Compiles the bfloat16 kernels for sm_90a, takes registers and shared memory from ptxas, and sets
bytes and operations against the device's rates. The table goes to docs/results/cuda-estimates.md;
``python docs/tables.py`` copies it into csrc/README.md, where figures of a device will stand beside
it. These are floors with known losses (tails of the last wave, halos, padded tiles), not
measurements.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "results" / "cuda-estimates.md"

MULTIPROCESSORS = 132
HBM = 3.0e12  # bytes/s, as measured
L2 = 5.5e12
TENSOR = 800e12  # bfloat16 operations/s as a large matrix product reaches them
MMA_SYNC = 0.62 * TENSOR  # the most that mma.sync gets of it
FMA = 60e12  # fp32 operations/s without tensor cores
START = 2e-6  # of a kernel, until its first and from its last instruction
REGISTERS, SHARED, THREADS, BLOCKS = 65536, 227 << 10, 2048, 32  # of a multiprocessor


@dataclass(frozen=True)
class Work:
    """One launch."""

    name: str
    source: str  # csrc/cuda/*.cu
    kernel: str  # a regular expression for its demangled name
    threads: int
    shared: int  # dynamic shared memory in bytes
    blocks: int
    hbm: float  # bytes, each read or written once
    l2: float  # bytes that blocks fetch
    operations: float  # of all blocks, padding included
    rate: float  # operations/s


@dataclass(frozen=True)
class Estimate:
    """What a launch should take, and the reason."""

    work: Work
    registers: int
    resident: int  # blocks of a multiprocessor
    waves: float
    seconds: float
    bound: str


@cache
def resources(source: str) -> dict[str, tuple[int, int]]:
    """Registers and static shared memory of each kernel of a file, by its demangled name."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-std=c++17", "-O3", "-arch=sm_90a", "-cubin", "-Xptxas", "-v"]
        command += [str(ROOT / "csrc" / "cuda" / source), "-o", f"{folder}/x.cubin"]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    log = subprocess.run(["c++filt"], input=log, capture_output=True, text=True, check=True).stdout
    pattern = r"entry function '(.*?)' for .*?Used (\d+) registers([^\n]*)"
    found = re.findall(pattern, log, re.DOTALL)
    result = {}
    for name, registers, rest in found:
        shared = re.search(r"(\d+) bytes smem", rest)
        result[name] = (int(registers), int(shared[1]) if shared else 0)
    return result


def estimate(work: Work) -> Estimate:
    """The largest of what memory, L2 and arithmetic need, and a start."""
    matching = [r for name, r in resources(work.source).items() if re.search(work.kernel, name)]
    assert matching, f"{work.source} has no kernel {work.kernel}"
    registers, static = max(matching)
    per_thread = -(-registers // 8) * 8
    shared = work.shared + static + 1024
    resident = min(
        REGISTERS // (per_thread * work.threads), SHARED // shared, THREADS // work.threads, BLOCKS
    )
    waves = work.blocks / (MULTIPROCESSORS * resident)
    # Blocks of a last, partial wave take as long as the others; those that share a multiprocessor
    # share its rates.
    busiest = math.ceil(work.blocks / MULTIPROCESSORS) * MULTIPROCESSORS / max(work.blocks, 1)
    parts = {
        "memory": work.hbm / HBM,
        "L2": work.l2 / L2 * busiest,
        "arithmetic": work.operations / work.rate * busiest,
    }
    bound = max(parts, key=lambda name: parts[name])
    seconds = START + parts[bound]
    if parts[bound] < START:
        bound = "start"
    return Estimate(work, registers, resident, waves, seconds, bound)


def convolution(
    name: str,
    batch: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: int = 3,
    rows: int = 256,
    columns: int = 64,
) -> Work:
    """A forward convolution (or input gradient) of the kernel with a halo."""
    c_in, c_out = channels
    height, width = size
    patches = -(-height // (rows // 16)) * -(-width // 16)
    n_tiles = -(-c_out // columns)
    blocks = batch * patches * n_tiles
    halo = (rows // 16 + kernel - 1) * (16 + kernel - 1)
    chunks = -(-c_in // 32)
    stages = (2 if c_in > 32 else 1) * halo * 80 + 4 * columns * 80
    sums = rows * (columns + 8) * 4
    weights = columns * c_in * kernel**2 * 2
    return Work(
        name,
        "conv_gemm_bf16.cu",
        f"conv_halo_kernel<__nv_bfloat16, __nv_bfloat16, {rows}, {columns}>",
        128,
        max(stages, sums),
        blocks,
        2 * batch * height * width * (c_in + c_out) + 2 * batch * c_in * c_out * kernel**2,
        blocks * (halo * chunks * 64 + weights + rows * min(columns, c_out) * 2),
        2 * blocks * rows * columns * chunks * 32 * kernel**2,
        MMA_SYNC,
    )


def hopper(name: str, batch: int, channels: tuple[int, int], size: tuple[int, int]) -> Work:
    """A 3x3 convolution of 64 channels by wgmma: persistent blocks, three warpgroups each."""
    c_in, c_out = channels
    height, width = size
    tiles = batch * -(-height // 16) * -(-width // 8) * -(-c_out // 64)
    blocks = min(MULTIPROCESSORS, tiles)
    rounds = -(-tiles // blocks)  # of the busiest block
    kernel, halo = 9 * c_in * 64 * 2, 10 * 18 * c_in * 2
    return Work(
        name,
        "conv_wgmma_sm90.cu",
        "conv_wgmma_kernel<__nv_bfloat16, 4>",
        384,
        kernel + 6 * 23_680,
        blocks,
        2 * batch * height * width * (c_in + c_out) + 2 * batch * c_in * c_out * 9,
        # Nothing runs while a block waits for its kernel.
        blocks * kernel + rounds * blocks * (halo + 128 * 64 * 2),
        # The port to shared memory is 5 % busier than the tensor cores.
        1.05 * 2 * rounds * blocks * 128 * 64 * 9 * c_in,
        TENSOR,
    )


def gathered(
    name: str, batch: int, channels: tuple[int, int], size: tuple[int, int], kernel: int
) -> Work:
    """The general kernel: 1x1, or few input channels with taps and channels in one dimension."""
    c_in, c_out = channels
    pixels = size[0] * size[1]
    blocks = batch * -(-pixels // 128) * -(-c_out // 64)
    depth = -(-(c_in * kernel**2) // 32) * 32
    return Work(
        name,
        "conv_gemm_bf16.cu",
        "conv_gather_kernel<__nv_bfloat16, __nv_bfloat16, 64>",
        128,
        max(3 * (128 + 64) * 80, 128 * 72 * 4),
        blocks,
        2 * batch * pixels * (c_in + c_out),
        blocks * 2 * (128 * depth + 64 * depth + 128 * 64),
        2 * blocks * 128 * 64 * depth,
        MMA_SYNC,
    )


def packing(name: str, layers: int, batch: int, channels: int, experts: int) -> Work:
    """Aggregation straight into packed kernels."""
    numel = channels * channels * 9
    groups = -(-batch // 8)
    return Work(
        name,
        "pack_experts.cu",
        "pack_experts_kernel<float>",
        256,
        0,
        min(layers * (channels // 16) ** 2 * groups, 4096),
        layers * numel * (4 * experts + 2 * batch),
        layers * numel * (4 * experts * groups + 2 * batch),
        2 * layers * numel * experts * batch,
        FMA,
    )


def weight_gradient(name: str, batch: int, channels: int, size: tuple[int, int]) -> Work:
    """Parts of the kernels' gradients, with a halo; blocks of 64 x 32 channels and 9 taps."""
    tiles = -(-channels // 64) * -(-channels // 32)
    patches = -(-size[0] // 8) * -(-size[1] // 16)
    splits = min(-(-264 // (batch * tiles)), patches)
    per_split = -(-patches // splits)
    splits = -(-patches // per_split)
    stage = 128 * (64 * 2 + 16) + 10 * 18 * (32 * 2 + 16)
    numel = channels * channels * 9
    return Work(
        name,
        "conv_weight_grad_bf16.cu",
        "weight_grad_halo_kernel<__nv_bfloat16, __nv_bfloat16, 9>",
        128,
        max(2 * stage, 16 * 9 * 32 * 4),
        batch * tiles * splits,
        2 * batch * size[0] * size[1] * 2 * channels,
        batch * tiles * patches * (128 * 64 * 2 + 180 * 32 * 2) + batch * splits * numel * 4,
        2 * batch * tiles * patches * 128 * 64 * 32 * 9,
        MMA_SYNC,
    )


def expert_gradient(name: str, batch: int, channels: int, experts: int, splits: int) -> Work:
    """Gradients of experts and routing weights from the parts."""
    numel = channels * channels * 9
    return Work(
        name,
        "aggregate_experts.cu",
        "aggregate_experts_backward_kernel<float, true>",
        128,
        0,
        min(-(-numel // 512), 296),
        4 * numel * 2 * experts,
        4 * numel * (batch * splits + 2 * experts),
        4 * numel * batch * experts,
        FMA,
    )


def undo_epilogue(name: str, batch: int, channels: int, size: tuple[int, int]) -> Work:
    """Gradient of the sums behind an activation, and of the biases."""
    elements = batch * channels * size[0] * size[1]
    return Work(
        name,
        "conv_epilogue_backward.cu",
        "conv_epilogue_backward",
        256,
        0,
        max(min(elements // 2048, 1056), 1),
        6 * elements,
        6 * elements,
        4 * elements,
        FMA,
    )


def depthwise(name: str, batch: int, channels: int, size: tuple[int, int]) -> Work:
    """3x3 of one channel, in channels_last."""
    pixels = size[0] * size[1]
    return Work(
        name,
        "conv_depthwise_bf16.cu",
        "conv_depthwise_kernel<__nv_bfloat16, 4, 3>",
        256,
        9 * 128 * 4,
        batch * -(-channels // 128) * -(-pixels // (4 * 8)),
        4 * batch * channels * pixels,
        2 * batch * channels * pixels * (3 * 1.5 + 1),
        2 * 9 * batch * channels * pixels,
        FMA,
    )


def works() -> list[Work]:
    """What DASR and the networks of the benchmarks launch."""
    training, small, full = (64, 64), (270, 480), (1080, 1920)
    body = (64, 64)
    return [
        packing("experts of one layer, B = 6", 1, 6, 64, 5),
        packing("experts of 37 layers, B = 6", 37, 6, 64, 5),
        convolution("body, 6 x 64x64", 6, body, training, rows=128),
        convolution("body, 1 x 480x270", 1, body, small),
        convolution("body, 1 x 1920x1080", 1, body, full),
        convolution("upsampling 64->256, 6 x 64x64", 6, (64, 256), training),
        gathered("first layer 3->64, 6 x 64x64", 6, (3, 64), training, 3),
        convolution("last layer 64->3, 6 x 256x256", 6, (64, 3), (256, 256), columns=8),
        convolution("last layer 64->3, 1 x 1920x1080", 1, (64, 3), full, columns=8),
        gathered("1x1 256->64, 16 x 56x56", 16, (256, 64), (56, 56), 1),
        depthwise("depthwise 144, 16 x 56x56", 16, 144, (56, 56)),
        undo_epilogue("undo ReLU, 6 x 64 x 64x64", 6, 64, training),
        weight_gradient("kernels' gradient, 6 x 64->64, 64x64", 6, 64, training),
        expert_gradient("experts' gradient, 64->64, B = 6, K = 5", 6, 64, 5, 16),
        hopper("body by wgmma, 6 x 64x64", 6, body, training),
        hopper("body by wgmma, 1 x 480x270", 1, body, small),
        hopper("body by wgmma, 1 x 1920x1080", 1, body, full),
        hopper("upsampling 64->256 by wgmma, 6 x 64x64", 6, (64, 256), training),
    ]


def generator(batch: int, size: tuple[int, int], wgmma: bool) -> float:
    """Seconds of the x4 generator with 16 blocks, its 37 layers one behind the other."""
    h, w = size
    twice, four = (2 * h, 2 * w), (4 * h, 4 * w)

    def body(channels: tuple[int, int], of: tuple[int, int]) -> Work:
        if wgmma:
            return hopper("", batch, channels, of)
        patches = batch * -(-of[0] // 16) * -(-of[1] // 16) * -(-channels[1] // 64)
        rows = 256 if patches >= 2 * MULTIPROCESSORS else 128
        return convolution("", batch, channels, of, rows=rows)

    layers = [
        packing("", 37, batch, 64, 5),
        gathered("", batch, (3, 64), size, 3),
        *([body((64, 64), size)] * 32),
        body((64, 256), size),
        body((64, 256), twice),
        body((64, 64), four),
        convolution("", batch, (64, 3), four, columns=8),
    ]
    return sum(estimate(layer).seconds for layer in layers)


def totals() -> str:
    """The generator as a whole."""
    lines = [
        "| generator x4, a sum of such times | mma.sync | wgmma | goal |",
        "| --- | --: | --: | --: |",
    ]
    for name, batch, size, goal in (
        ("6 x 64x64", 6, (64, 64), "0.5 ms"),
        ("1 x 480x270", 1, (270, 480), "2.5 ms"),
    ):
        times = (f"{generator(batch, size, wgmma) * 1e3:.2f} ms" for wgmma in (False, True))
        lines.append(f"| {name} | " + " | ".join([*times, goal]) + " |")
    return "\n".join(lines) + "\n"


def table(estimates: list[Estimate]) -> str:
    """A Markdown table."""
    lines = [
        "| kernel (bfloat16) | blocks | registers | shared, KB | per SM | waves | MB | GFLOP "
        "| expected, us | bound by |",
        "| --- | " + "--: | " * 8 + "--- |",
    ]
    for e in estimates:
        w = e.work
        cells = [
            w.name,
            w.blocks,
            e.registers,
            f"{w.shared / 1024:.0f}",
            e.resident,
            f"{e.waves:.2f}",
            f"{w.hbm / 1e6:.2f}",
            f"{w.operations / 1e9:.2f}",
            f"{e.seconds * 1e6:.1f}",
            e.bound,
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    text = table([estimate(work) for work in works()]) + "\n" + totals()
    TARGET.write_text(text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
