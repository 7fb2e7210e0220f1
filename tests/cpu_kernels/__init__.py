"""Compiles the CPU kernels with their check, tests/cpu_kernels/check_conv.cpp, for sanitizers.

``python -m tests.cpu_kernels address`` (or ``thread``, ``plain``) prints the path of the program.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from dasr_ops_build.host import find_compiler, is_x86
from dasr_ops_build.ninja_file import ISA_FLAGS

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
VARIANTS = {
    "plain": ["-O3"],
    "address": [
        *("-O1", "-g1", "-fno-omit-frame-pointer"),
        *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    ],
    "thread": ["-O1", "-g1", "-fsanitize=thread"],
}
_COMMON = ["-std=c++20", "-Wall", "-Wextra", f"-I{CSRC}"]
_RULES = """\
rule cxx
  command = {compiler} $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {compiler} $flags $in -pthread -o $out
"""


@cache
def missing(variant: str) -> str | None:
    """Why a variant cannot be built and run here, or None."""
    compiler = find_compiler()
    if sys.platform != "linux" or compiler is None:
        return "the check needs Linux and a C++ compiler"
    if variant == "thread" and shutil.which("setarch") is None:
        return "ThreadSanitizer needs setarch to turn the randomisation of addresses off"
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "main.cpp"), Path(folder, "main")
        source.write_text("int main() {}\n")
        command = [*compiler.command, *VARIANTS[variant], str(source), "-o", str(program)]
        if subprocess.run(command, capture_output=True).returncode != 0:
            return f"{compiler.executable} has no {variant} sanitizer"
        done = subprocess.run([*_prefix(variant), str(program)], capture_output=True, text=True)
    return None if done.returncode == 0 else f"the {variant} sanitizer fails: {done.stderr}"


def _prefix(variant: str) -> list[str]:
    # gcc 12's ThreadSanitizer does not know all places where newer kernels put a program.
    return ["setarch", platform.machine(), "-R"] if variant == "thread" else []


def isas() -> list[str]:
    """The instruction sets that kernels are compiled for on this kind of machine."""
    return ["avx512", "avx2", "portable"] if is_x86() else ["portable"]


def isa_flags(source: Path) -> list[str]:
    """What ``csrc/dasr_ops_build`` compiles a file with, beyond the flags of all."""
    return [f for suffix, flags in ISA_FLAGS.items() if source.stem.endswith(suffix) for f in flags]


def kernel_sources(x86: bool) -> list[Path]:
    """The kernels' files for a kind of processor."""
    files = sorted((CSRC / "cpu/kernels").glob("*.cpp"))
    return [f for f in files if x86 or not f.stem.endswith(tuple(ISA_FLAGS))]


def build(variant: str) -> Path:
    """Compile one of `VARIANTS`, as far as something has changed, and return the program.

    Raises:
        RuntimeError: the compiler fails; the message is what it printed.
    """
    compiler = find_compiler()
    version = subprocess.run([*compiler.command, "--version"], capture_output=True).stdout
    key = hashlib.sha256(f"{HERE} {compiler.command}".encode() + version).hexdigest()[:12]
    base = os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir()
    folder = Path(base) / "dasr-ops-cpu-kernels" / f"{variant}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    text = [_RULES.format(compiler=shlex.join(compiler.command))]
    objects = []
    for source in [*kernel_sources(is_x86()), *sorted(HERE.glob("*.cpp"))]:
        # Sanitizers would make the reference the slowest part by far.
        flags = ["-O2"] if source.stem == "reference" else [*VARIANTS[variant], *isa_flags(source)]
        objects.append(f"{source.stem}.o")
        path = str(source).replace(" ", "$ ").replace(":", "$:")
        text.append(f"build {source.stem}.o: cxx {path}\n")
        text.append(f"  flags = {shlex.join([*_COMMON, *flags])}\n")
    text.append(f"build check_conv: link {' '.join(objects)}\n")
    text.append(f"  flags = {shlex.join(VARIANTS[variant])}\n")
    ninja = shutil.which("ninja")
    command = [ninja] if ninja else [sys.executable, "-m", "ninja"]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text("".join(text))
        done = subprocess.run([*command, "-j2"], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)
    return folder / "check_conv"


def run(variant: str, isa: str, *arguments: str) -> subprocess.CompletedProcess:
    """Build a variant and run it with an instruction set."""
    return subprocess.run(
        [*_prefix(variant), str(build(variant)), *arguments],
        env=os.environ | {"DASR_OPS_CPU_ISA": isa, "TSAN_OPTIONS": "halt_on_error=1"},
        capture_output=True,
        text=True,
    )
