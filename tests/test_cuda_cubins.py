"""nvcc accepts every kernel without a warning, ptxas keeps it within its budget of registers, and
the machine code holds the instructions that it was written for."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from .emulation import build

if shutil.which("nvcc") is None:
    pytest.skip("needs nvcc", allow_module_level=True)

SOURCES = sorted((build.CSRC / "cuda").glob("*.cu"))
# They choose among kernels that other files compile.
HOST_ONLY = ("conv_depthwise", "conv_gemm", "conv_weight_grad")
REGISTERS = 65536  # of a multiprocessor

# Kernels by a pattern of their names: threads, and blocks that are to fit a multiprocessor by their
# registers (csrc/README.md counts on them).
BUDGETS = {
    r"conv_halo_kernel<.*, 256, 64>": (128, 2),
    r"conv_halo_kernel<.*, 128, 64>": (128, 3),
    r"conv_halo_kernel<.*, 256, 8>": (128, 5),
    r"conv_gather_kernel<(__half|__nv_bfloat16|float), .*, (64|32)>": (128, 3),
    r"conv_gather_kernel<double, .*, 32>": (128, 2),
    r"conv_gather_kernel<.*, 8>": (128, 4),
    r"weight_grad_halo_kernel<": (128, 2),
    r"weight_grad_gather_kernel<": (128, 3),
    r"conv_wgmma_kernel<": (384, 1),
    r"pack_experts_kernel<": (256, 2),
    r"conv_depthwise_kernel<.*, 3>": (256, 3),
    r"conv_depthwise_kernel<.*, (5|7)>": (256, 2),
    r"conv_depthwise_kernel<.*, 0>": (256, 3),
    r"conv_depthwise_weight_kernel<.*, (0|3|5)>": (256, 2),
    r"conv_depthwise_weight_kernel<.*, 7>": (256, 1),
    r"conv_epilogue_backward.*<float>": (256, 2),
    r"conv_epilogue_backward.*<double>": (256, 1),
    r"aggregate_experts_kernel<": (128, 3),
    r"aggregate_experts_backward_kernel<": (128, 2),
    r"reduce_(few_)?splits_kernel<": (256, 6),  # 1536 threads: all of sm_86
}
# Of the kernels on tensor cores, by their operand type.
INSTRUCTIONS = {
    "fp16": ("HMMA.16816.F32", "LDSM", "LDGSTS"),
    "bf16": ("HMMA.16816.F32.BF16", "LDSM", "LDGSTS"),
    "tf32": ("HMMA.1688.F32.TF32", "LDGSTS"),
    "sm90": ("HGMMA.64x128x16.F32", "LDGSTS"),  # empty shells elsewhere
}


def nvcc(source: Path, arch: str, output: Path, *flags: str) -> str:
    command = ["nvcc", "-std=c++17", "-O3", f"-arch={arch}", "-Werror", "all-warnings", *flags]
    command += [str(source), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def disassembler() -> str | None:
    """nvdisasm: of the toolkit, or of its own wheel."""
    found = shutil.which("nvdisasm")
    if found is None:
        wheels = Path(sys.prefix).glob("lib/python3*/site-packages/nvidia/**/nvdisasm")
        found = next((str(path) for path in sorted(wheels)), None)
    return found


def demangle(text: str) -> str:
    done = subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True)
    return done.stdout


def check_resources(log: str, source: Path) -> None:
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", log)
    kernels = re.findall(
        r"entry function '(.*?)' for 'sm.*?Used (\d+) registers", demangle(log), re.DOTALL
    )
    assert (len(kernels) == 0) == (source.stem in HOST_ONLY)
    assert len(spills) >= len(kernels)
    assert all(numbers == ("0", "0", "0") for numbers in spills), log
    # C7510 and its like: products that ptxas had to serialise or to fence.
    assert "(C75" not in log, log
    for name, registers in kernels:
        budgets = [value for pattern, value in BUDGETS.items() if re.search(pattern, name)]
        assert len(budgets) == 1, f"{name}: {budgets}"
        threads, blocks = budgets[0]
        per_block = -(-int(registers) // 8) * 8 * threads
        assert per_block * blocks <= REGISTERS, f"{name}: {registers} registers"


def instructions(cubin: Path) -> dict[str, Counter[str]]:
    """How often each instruction occurs in each kernel."""
    command = [disassembler(), "-c", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, Counter[str]] = {}
    for part in re.split(r"(?m)^\s*\.section\s+\.text\.", text)[1:]:
        name, _, code = part.partition(",")
        found[demangle(name).strip()] = Counter(
            re.findall(r"(?m)^\s*(?:/\*\w+\*/)?\s*(?:@!?U?P\d\s+)?([A-Z][A-Zx0-9_.]+)", code)
        )
    return found


def check_instructions(source: Path, arch: str, cubin: Path) -> None:
    kind = source.stem.rpartition("_")[2]
    if kind not in INSTRUCTIONS or "depthwise" in source.stem or disassembler() is None:
        return
    if kind == "sm90" and arch != "sm_90a":
        return
    wanted = INSTRUCTIONS[kind]
    kernels = instructions(cubin)
    assert kernels
    for name, counts in kernels.items():
        for start in wanted:
            assert any(i.startswith(start) for i in counts), f"{name}: no {start}"


def check(source: Path, arch: str, folder: Path) -> None:
    cubin = folder / "x.cubin"
    check_resources(nvcc(source, arch, cubin, "-cubin", "-Xptxas", "-v"), source)
    check_instructions(source, arch, cubin)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_budgets(source: Path, arch: str, tmp_path: Path) -> None:
    check(source, arch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_86", "sm_89", "sm_100", "sm_120"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_budgets_elsewhere(source: Path, arch: str, tmp_path: Path) -> None:
    check(source, arch, tmp_path)


def test_wrappers(tmp_path: Path) -> None:
    """The wrappers of ptx.cuh assemble, and the compiler keeps vector accesses whole."""
    nvcc(build.HERE / "probes.cu", "sm_80", tmp_path / "x.cubin", "-cubin")
    nvcc(build.HERE / "probes.cu", "sm_80", tmp_path / "x.ptx", "-ptx")
    ptx = (tmp_path / "x.ptx").read_text()
    for instruction in (
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16",
        "cp.async.cg.shared.global",
        "cp.async.ca.shared.global",
        "cp.async.wait_group 1",
    ):
        assert instruction in ptx, instruction
    nvcc(build.CSRC / "cuda" / "aggregate_experts.cu", "sm_80", tmp_path / "x.ptx", "-ptx")
    ptx = (tmp_path / "x.ptx").read_text()
    for access in ("ld.global.v4.", "ld.global.v2.", "st.global.v4.", "st.global.v2."):
        assert access in ptx, access


def test_hopper_instructions(tmp_path):
    """The wrappers of ptx_sm90.cuh assemble; elsewhere kernels with them are empty."""
    nvcc(build.HERE / "probes_sm90.cu", "sm_90a", tmp_path / "x.cubin", "-cubin")
    source = build.CSRC / "cuda" / "conv_wgmma_sm90.cu"
    for arch, is_hopper in (("sm_90a", True), ("sm_90", False), ("sm_80", False)):
        nvcc(source, arch, tmp_path / "x.ptx", "-ptx")
        ptx = (tmp_path / "x.ptx").read_text()
        for instruction in (
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16",
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16",
            "wgmma.fence.sync.aligned",
            "wgmma.commit_group.sync.aligned",
            "wgmma.wait_group.sync.aligned 0",
            "fence.proxy.async.shared::cta",
            "bar.sync",
            ".shared .align",  # by which the launcher tells the kernel from its shells
        ):
            assert (instruction in ptx) == is_hopper, (instruction, arch)
