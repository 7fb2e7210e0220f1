"""The machine that figures belong to: its name, its versions, and its measured roofs."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import dasr_ops

from .cases import DTYPES

_DEFAULT_CACHE = 32 << 20


def describe(device: torch.device, commit: str | None = None) -> dict[str, Any]:
    """Return what must be known of a machine to read its figures.

    Args:
        device: a CPU or a CUDA device.
        commit: of the sources; by default asked of git where the package lies in a checkout.
    """
    cuda = device.type == "cuda"
    return {
        "device": device.type,
        "name": torch.cuda.get_device_name(device) if cuda else processor(),
        "threads": torch.get_num_threads(),
        "isa": None if cuda else torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "driver": _driver() if cuda else None,
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "dasr_ops": dasr_ops.__version__,
        "commit": commit or os.environ.get("DASR_OPS_COMMIT") or _commit(),
        "backends": dasr_ops.backends(),
        "cache": cache_size(device),
    }


def processor() -> str:
    """Return the name of the CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cache_size(device: torch.device) -> int:
    """Return the bytes of the last-level cache of a device; a guess where the system hides it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size or _DEFAULT_CACHE
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:])
        if unit and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * unit)
    return max(sizes) or _DEFAULT_CACHE


def roofline(device: torch.device) -> dict[str, Any]:
    """Measure the copy bandwidth, and the rate of matrix arithmetic in each type.

    The rate is that of a large matrix product; on a CPU, where PyTorch computes products and
    convolutions by different libraries, that of a large convolution if it is higher.

    Returns:
        ``bandwidth`` in bytes/s (read plus written) and ``rates`` in operations/s by the names of
        `DTYPES`; without what the device cannot do.
    """
    cuda = device.type == "cuda"
    size = (2 << 30) if cuda else max(128 << 20, 4 * cache_size(device))
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * size / _best(lambda: target.copy_(source), device)
    rates = {}
    for name in DTYPES if cuda else ("float32", "bfloat16"):
        narrow = DTYPES[name] != torch.float32
        side = (8192 if narrow else 4096) if cuda else 2048
        try:
            rates[name] = 2 * side**3 / _product_time(name, side, device)
            if not cuda:
                rates[name] = max(rates[name], _convolution_rate(name))
        except RuntimeError:
            continue
    return {"bandwidth": bandwidth, "rates": rates}


def set_tf32(name: str) -> None:
    """Switch TF32 on for the arithmetic ``"tfloat32"``, off for every other."""
    torch.backends.cudnn.allow_tf32 = name == "tfloat32"
    torch.backends.cuda.matmul.allow_tf32 = name == "tfloat32"


def _product_time(name: str, side: int, device: torch.device) -> float:
    # Random numbers: products of zeros take less power, and run faster.
    a, b = (torch.randn(side, side, device=device).to(DTYPES[name]) for _ in range(2))
    out = torch.empty_like(a)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    set_tf32(name)
    try:
        return _best(lambda: torch.mm(a, b, out=out), device)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _convolution_rate(name: str) -> float:
    batch, channels, side = 8, 256, 28
    x = torch.randn(batch, channels, side, side).to(DTYPES[name])
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3).to(DTYPES[name])
    seconds = _best(lambda: F.conv2d(x, weight, padding=1), torch.device("cpu"))
    return 2 * batch * side * side * weight.numel() / seconds


def _best(call: Any, device: torch.device, seconds: float = 0.3, rounds: int = 5) -> float:
    times: list[float] = []
    call()
    end = time.perf_counter() + seconds
    while len(times) < rounds or time.perf_counter() < end:
        _synchronize(device)
        start = time.perf_counter()
        call()
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _driver() -> str | None:
    return _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"])


def _commit() -> str | None:
    root = Path(dasr_ops.__file__).resolve().parents[1]
    if not (root / "csrc").is_dir():
        return None
    git = ["git", "-C", str(root)]
    commit = _output([*git, "rev-parse", "--short=7", "HEAD"])
    if commit is None:
        return None
    # Reports, documents, and what is not tracked change no figure.
    others = (":!benches/results", ":!docs", ":!*.md")
    changed = _output([*git, "status", "--porcelain", "--untracked-files=no", *others])
    return f"{commit}-dirty" if changed else commit


def _output(command: list[str]) -> str | None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        if isinstance(error, FileNotFoundError):
            return None
        print(f"{command[0]}: {error}", file=sys.stderr)
        return None
    return result.stdout.strip()
