"""nvcc accepts every kernel without a warning, and ptxas fits them into registers."""

import re
import shutil
import subprocess

import pytest

from .emulation import build

if shutil.which("nvcc") is None:
    pytest.skip("needs nvcc", allow_module_level=True)

SOURCES = sorted((build.CSRC / "cuda").glob("*.cu"))


def nvcc(source, arch, output, *flags):
    command = ["nvcc", "-std=c++17", "-O3", f"-arch={arch}", "-Werror", "all-warnings", *flags]
    command += [str(source), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def check_resources(source, arch, output):
    log = nvcc(source, arch, output, "-cubin", "-Xptxas", "-v")
    kernels = re.findall(r"Compiling entry function '(\w+)'", log)
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", log)
    assert kernels and len(spills) >= len(kernels)
    assert all(numbers == ("0", "0", "0") for numbers in spills), log
    # C7510 and its like: products that ptxas had to serialise or to fence.
    assert "(C75" not in log, log


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_no_spills(source, arch, tmp_path):
    check_resources(source, arch, tmp_path / "x.cubin")


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_86", "sm_89", "sm_100", "sm_120"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_no_spills_elsewhere(source, arch, tmp_path):
    check_resources(source, arch, tmp_path / "x.cubin")


def test_instructions(tmp_path):
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
