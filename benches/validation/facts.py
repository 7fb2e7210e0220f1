"""Prints what a machine is, as lines of JSON; run as a script, since importing torch may crash.

Each line holds all that is known so far: if a later probe kills the process, the last one counts.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    *("numpy", "triton", "pytest", "pytest-xdist", "pytest-timeout", "setuptools", "pybind11"),
    *("ninja", "matplotlib", "timm", "tyro", "scikit-image"),
)


def output_of(command: Sequence[str], timeout: float = 20) -> str:
    """What a tool prints; nothing where it is missing, hangs or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def ask_smi(field: str) -> str:
    """One property of the first GPU as nvidia-smi tells it, or nothing."""
    text = output_of(["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"])
    return text.splitlines()[0].strip() if text else ""


def cpu_name() -> str:
    """The processor's name."""
    if os.path.exists("/proc/cpuinfo"):
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if match:
            return match[1]
    return platform.processor() or platform.machine()


def cuda_toolkit() -> tuple[str, str]:
    """The root and the version of the toolkit that a build takes; empty without one."""
    sys.path.insert(0, str(ROOT / "csrc"))
    try:
        from dasr_ops_build.cuda import find_toolkit

        toolkit = find_toolkit()
    except Exception:
        return "", ""
    finally:
        sys.path.pop(0)
    return str(toolkit.root), toolkit.version


def main() -> None:
    """Print the facts."""
    facts: dict[str, Any] = {"cuda": False}

    def note(**more: Callable[[], object]) -> None:
        for name, probe in more.items():
            try:
                value = probe()
            except Exception as error:
                value = f"unknown ({type(error).__name__}: {error})"
            if value not in ("", None):
                facts[name] = value
        print(json.dumps(facts), flush=True)

    gpu = ask_smi("name")
    note(
        device=lambda: gpu or cpu_name(),
        gpu=lambda: gpu,
        driver=lambda: ask_smi("driver_version"),
        cpu=lambda: f"{cpu_name()}, {len(os.sched_getaffinity(0))} processors",
        system=lambda: " ".join((platform.system(), platform.machine(), *platform.libc_ver())),
        python=platform.python_version,
        nvcc=lambda: cuda_toolkit()[1],
        toolkit=lambda: cuda_toolkit()[0],
        compiler=lambda: output_of(["g++", "--version"]).partition("\n")[0],
        packages=_packages,
    )
    import torch

    note(
        torch=lambda: torch.__version__,
        torch_cuda=lambda: torch.version.cuda,
        cudnn=torch.backends.cudnn.version,
        cuda=torch.cuda.is_available,
    )
    if not facts["cuda"]:
        return
    properties = torch.cuda.get_device_properties(0)
    note(
        device=lambda: properties.name,
        gpu=lambda: properties.name,
        capability=lambda: f"{properties.major}.{properties.minor}",
        multiprocessors=lambda: properties.multi_processor_count,
        memory=lambda: f"{properties.total_memory / 2**30:.1f} GiB",
        gpus=torch.cuda.device_count,
    )
    # A device that is listed need not work: a driver too old for this torch shows itself here.
    total = torch.ones(256, 256, device="cuda").matmul(torch.ones(256, 256, device="cuda")).sum()
    assert total.item() == 256**3, f"the product of ones came out as {total.item()}"
    note(device_works=lambda: True)


def _packages() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


if __name__ == "__main__":
    main()
