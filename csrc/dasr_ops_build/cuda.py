"""Finds the CUDA toolkit and chooses the architectures to compile for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .host import WITHOUT_CUDA_VARIABLE, Compiler

ARCHS_VARIABLE = "DASR_OPS_CUDA_ARCHS"
MINIMUM = (12, 0)
# Without a GPU to ask: Ampere, Hopper with its own instructions, and PTX for what comes after.
DEFAULT_ARCHS = ("80", "90a", "90+ptx")
RELEASE_ARCHS = ("80", "86", "89", "90a", "100", "120", "120+ptx")


class CudaUnavailable(Exception):
    """There is no usable toolkit; the message says why."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: its root folder, its version ("13.0") and the folder of its runtime."""

    root: Path
    version: str
    library_dir: Path

    @property
    def nvcc(self) -> Path:
        """The compiler."""
        return self.root / "bin" / "nvcc"

    def architectures(self) -> set[str]:
        """Return the architectures that nvcc knows, as numbers: {"80", "90", ...}."""
        return set(re.findall(r"sm_(\d+)", _output([self.nvcc, "--list-gpu-code"])))


def find_toolkit() -> Toolkit:
    """Return the CUDA toolkit: of ``CUDA_HOME``, of the nvcc on the path, or the usual one.

    Raises:
        CudaUnavailable: there is none, or it is broken or too old.
    """
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if root := os.environ.get(variable):
            if not (Path(root) / "bin" / "nvcc").is_file():
                raise CudaUnavailable(f"{variable} is {root!r}, which has no bin/nvcc")
            return _toolkit(Path(root))
    for root in (_root_of_nvcc(), Path("/usr/local/cuda")):
        if root is not None and (root / "bin" / "nvcc").is_file():
            return _toolkit(root)
    raise CudaUnavailable("no nvcc found")


def choose_archs(toolkit: Toolkit) -> list[str]:
    """Return the architectures to compile for, like "90a" or, for PTX, "90+ptx".

    ``DASR_OPS_CUDA_ARCHS`` names them; else they are those of the GPUs at hand, else the default.

    Raises:
        ValueError: the variable does not parse.
    """
    text = os.environ.get(ARCHS_VARIABLE, "").strip()
    if text and text.lower() != "all":
        return parse_archs(text)
    known = toolkit.architectures()
    wanted = RELEASE_ARCHS if text else _archs_of_devices(known) or DEFAULT_ARCHS
    return [arch for arch in wanted if _number(arch) in known]


def parse_archs(text: str) -> list[str]:
    """Return the architectures that a text like "8.0;9.0a;9.0+PTX" or "80 90a 90+ptx" names.

    As in TORCH_CUDA_ARCH_LIST, "+PTX" adds PTX to the machine code; but no machine code is made
    for 9.0 beside that for 9.0a.

    Raises:
        ValueError: the text does not parse.
    """
    archs: list[str] = []
    ptx: list[str] = []
    for word in re.split(r"[;,\s]+", text.strip().lower()):
        match = re.fullmatch(r"(\d+\.\d[af]?|\d{2,3}[af]?)(\+ptx)?", word)
        if match is None:
            raise ValueError(
                f'{ARCHS_VARIABLE}: expected architectures like "8.0;9.0a;9.0+PTX" or "all", '
                f"got {word!r}"
            )
        arch = match.group(1).replace(".", "")
        archs.append(arch)
        if match.group(2):
            ptx.append(f"{arch}+ptx")
    specific = {arch[:-1] for arch in archs if arch[-1] in "af"}
    machine = [arch for arch in archs if arch not in specific or f"{arch}+ptx" not in ptx]
    return list(dict.fromkeys(machine + ptx))


def gencode_flags(archs: Iterable[str]) -> list[str]:
    """Return the flags of nvcc for architectures as `choose_archs` returns them."""
    flags = []
    for arch in archs:
        number, _, ptx = arch.partition("+")
        code = f"compute_{number}" if ptx else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code={code}")
    return flags


def check_nvcc(toolkit: Toolkit, compiler: Compiler, archs: Iterable[str]) -> None:
    """Let nvcc preprocess nothing, to see that it takes the host compiler and the architectures.

    Raises:
        ValueError: it does not; the message carries nvcc's reason and what can be done.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.cu"
        source.write_text("")
        command = [toolkit.nvcc, "-E", source, "-o", source.with_suffix(".i")]
        command += ["-ccbin", compiler.executable, *gencode_flags(archs)]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode == 0:
        return
    lines = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error|fatal", line, re.IGNORECASE)]
    reason = next(iter(errors or lines), f"exit status {result.returncode}").strip()
    raise ValueError(
        f"nvcc {toolkit.version} with host compiler {compiler.executable} for {' '.join(archs)}: "
        f"{reason}. Set CXX to a compiler that this CUDA supports, {ARCHS_VARIABLE} to other "
        f"architectures, or {WITHOUT_CUDA_VARIABLE}=1 to build without CUDA."
    )


def _toolkit(root: Path) -> Toolkit:
    root = root.resolve()
    match = re.search(r"release (\d+)\.(\d+)", _output([root / "bin" / "nvcc", "--version"]))
    if match is None:
        raise CudaUnavailable(f"{root}/bin/nvcc does not run")
    version = ".".join(match.groups())
    if tuple(map(int, match.groups())) < MINIMUM:
        minimum = ".".join(map(str, MINIMUM))
        raise CudaUnavailable(f"CUDA {version} in {root} is older than {minimum}")
    for folder in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
        if (root / folder / "libcudart_static.a").is_file():
            return Toolkit(root, version, root / folder)
    raise CudaUnavailable(f"no libcudart_static.a below {root}")


def _root_of_nvcc() -> Path | None:
    # The nvcc on the path may be a wrapper script: ask it where its toolkit is.
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    match = re.search(r"^#\$ TOP=(.*)$", _output([nvcc, "--dryrun", "x.cu"]), re.MULTILINE)
    return Path(match.group(1).strip()) if match else Path(nvcc).resolve().parents[1]


def _archs_of_devices(known: set[str]) -> list[str]:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return []
    text = _output([smi, "--query-gpu=compute_cap", "--format=csv,noheader"])
    devices = {major + minor for major, minor in re.findall(r"^(\d+)\.(\d)$", text, re.MULTILINE)}
    # A GPU newer than nvcc runs the PTX of the default; one older than the default runs nothing.
    if not devices or not devices <= known or min(map(int, devices)) < int(DEFAULT_ARCHS[0]):
        return []
    found = sorted(devices, key=int)
    # Architecture-specific code (90a) runs on that architecture alone; PTX carries the rest.
    return [*("90a" if arch == "90" else arch for arch in found), f"{found[0]}+ptx"]


def _number(arch: str) -> str:
    return re.match(r"\d+", arch).group()


def _output(command: list[str | Path]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout + result.stderr
