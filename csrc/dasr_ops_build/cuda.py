"""Finds the CUDA toolkit and chooses the architectures to compile for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ARCHS_VARIABLE = "DASR_OPS_CUDA_ARCHS"
# Without a GPU to ask: Ampere, Hopper with its own instructions, and PTX for what comes after.
DEFAULT_ARCHS = ("80", "90a", "90+ptx")
RELEASE_ARCHS = ("80", "86", "89", "90a", "100", "120", "120+ptx")


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: its root folder and version, for example "13.0"."""

    root: Path
    version: str

    @property
    def nvcc(self) -> Path:
        """The compiler."""
        return self.root / "bin" / "nvcc"

    @property
    def library_dir(self) -> Path:
        """The folder of the static runtime."""
        folders = ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")
        for folder in folders:
            if (self.root / folder / "libcudart_static.a").is_file():
                return self.root / folder
        raise FileNotFoundError(f"no libcudart_static.a below {self.root}")


def find_toolkit() -> Toolkit | None:
    """Return the CUDA toolkit, or None."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), _root_of_nvcc()]
    for root in (*roots, "/usr/local/cuda"):
        if not root or not (Path(root) / "bin" / "nvcc").is_file():
            continue
        toolkit = _toolkit(Path(root).resolve())
        if toolkit is not None:
            return toolkit
    return None


def gencode_flags(toolkit: Toolkit) -> tuple[list[str], list[str]]:
    """Return the architectures and the flags of nvcc for them.

    ``DASR_OPS_CUDA_ARCHS`` names them ("8.0;9.0a;9.0+PTX", or "80 90a 90+ptx", or "all").

    Raises:
        ValueError: the variable does not parse.
    """
    text = os.environ.get(ARCHS_VARIABLE, "").strip().lower()
    if not text:
        archs = _archs_of_devices() or list(DEFAULT_ARCHS)
    elif text == "all":
        archs = list(RELEASE_ARCHS)
    else:
        archs = [arch.replace(".", "") for arch in re.split(r"[;,\s]+", text) if arch]
    flags = []
    for arch in archs:
        match = re.fullmatch(r"(\d{2,3}[af]?)(\+ptx)?", arch)
        if match is None:
            raise ValueError(
                f'{ARCHS_VARIABLE}: expected architectures like "8.0;9.0a;9.0+PTX" or "all", '
                f"got {arch!r}"
            )
        number, ptx = match.groups()
        code = f"compute_{number}" if ptx else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code={code}")
    return archs, flags


def _root_of_nvcc() -> str | None:
    # The nvcc on the path may be a wrapper script: ask it where its toolkit is.
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    result = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True)
    match = re.search(r"^#\$ TOP=(.*)$", result.stdout + result.stderr, re.MULTILINE)
    return match.group(1).strip() if match else None


def _toolkit(root: Path) -> Toolkit | None:
    try:
        result = subprocess.run(
            [root / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"release (\d+\.\d+)", result.stdout)
    return Toolkit(root, match.group(1)) if match else None


def _archs_of_devices() -> list[str]:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return []
    result = subprocess.run(
        [smi, "--query-gpu=compute_cap", "--format=csv,noheader"], capture_output=True, text=True
    )
    found = sorted(set(re.findall(r"^(\d+)\.(\d)$", result.stdout, re.MULTILINE)), key=_number)
    if result.returncode != 0 or not found:
        return []
    # Architecture-specific code (9.0a) runs on that architecture alone; PTX carries the rest.
    archs = [major + minor + ("a" if major + minor == "90" else "") for major, minor in found]
    return [*archs, "".join(found[0]) + "+ptx"]


def _number(capability: tuple[str, str]) -> int:
    return int("".join(capability))
