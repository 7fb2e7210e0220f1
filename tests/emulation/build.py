"""Compiles csrc/cuda/*.cu and the probes with g++ against csrc/emulation into a Python module.

Three variants of the same sources: ``plain`` (-O2), ``asan`` (AddressSanitizer and
UndefinedBehaviorSanitizer; load it only in a process started with `sanitizer_environment`) and
``race`` (the race detector of csrc/emulation/race.h). Results are cached by a hash of all inputs,
outside the source tree; DASR_EMULATION_CACHE names another place.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
VARIANTS = ("plain", "asan", "race")

_COMMON = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-DDASR_EMULATION"]
# -fno-gnu-unique: variants loaded into one process must not share their inline variables.
_KERNEL = [
    *_COMMON,
    "-fno-gnu-unique",
    "-fno-strict-aliasing",
    "-fno-threadsafe-statics",
    "-U_FORTIFY_SOURCE",
    "-march=native",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
]
# The checks that find mistakes in kernels; the rest of -fsanitize=undefined triples the build.
_UNDEFINED = "alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero"
_VARIANT = {
    "plain": ["-O2"],
    "asan": ["-O1", "-g1", f"-fsanitize=address,{_UNDEFINED}", "-fno-sanitize-recover=all"],
    "race": ["-O2", "-fsanitize=thread"],
}


def missing() -> str | None:
    """Why nothing can be built here, or None."""
    if shutil.which("g++") is None:
        return "the CUDA emulation needs g++"
    if importlib.util.find_spec("pybind11") is None:
        return "the CUDA emulation needs pybind11"
    return None


def kernel_sources() -> list[Path]:
    """The .cu files that run under the emulation."""
    return sorted((CSRC / "cuda").glob("*.cu"))


def _cache_folder() -> Path:
    if "DASR_EMULATION_CACHE" in os.environ:
        return Path(os.environ["DASR_EMULATION_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path(tempfile.gettempdir())) / "dasr-ops-emulation"


@cache
def _machine() -> bytes:
    """What -march=native and the interpreter make of this machine."""
    version = subprocess.run(["g++", "-v"], capture_output=True, check=True).stderr
    native = subprocess.run(
        ["g++", "-march=native", "-E", "-dM", "-x", "c++", os.devnull],
        capture_output=True,
        check=True,
    ).stdout
    return version + native + sysconfig.get_config_var("EXT_SUFFIX").encode()


def _headers(source: Path) -> list[Path]:
    """What a source may include: a binding sees .h files and no kernel."""
    cuda, emulation = CSRC / "cuda", CSRC / "emulation"
    if source.parent.name == "ops":
        folders = (source.parent, cuda, emulation)
        return [p for f in folders for p in sorted(f.glob("*.h"))]
    if source.suffix == ".cpp":
        return [*sorted(cuda.glob("*.h")), emulation / "runtime_api.h", *sorted(HERE.glob("*.h"))]
    return [
        p
        for f in (cuda, emulation, HERE)
        for p in sorted(f.iterdir())
        if p.suffix in (".h", ".cuh")
    ]


def _hash(parts: list[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:20]


def _compile(source: Path, flags: list[str]) -> Path:
    """The object file of one source, from the cache if nothing that it reads has changed."""
    inputs = [p.name.encode() + p.read_bytes() for p in [source, *_headers(source)]]
    key = _hash([_machine(), " ".join(flags).encode(), *inputs])
    target = _cache_folder() / f"{source.stem}-{key}.o"
    if not target.exists():
        _run(["g++", *flags, "-x", "c++", "-c", str(source)], target)
    return target


def _run(command: list[str], target: Path) -> None:
    """Runs a compiler; the result appears under its name only when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        output = Path(folder) / target.name
        done = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        output.replace(target)


def build(variant: str = "plain") -> Path:
    """Compiles one variant and returns the path of the module."""
    import pybind11

    flags = [*_KERNEL, *_VARIANT[variant]]
    jobs = [(p, flags) for p in [*kernel_sources(), *sorted(HERE.glob("*.cu"))]]
    # The bindings are the same for all: not instrumented, so that they are compiled once.
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    jobs += [(p, [*_COMMON, "-O0", *includes]) for p in sorted(HERE.glob("*.cpp"))]
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        objects = list(pool.map(lambda job: _compile(*job), jobs))
    key = _hash([variant.encode(), *(str(o).encode() for o in objects)])
    target = _cache_folder() / f"{variant}-{key}" / "_emulation.so"
    if not target.exists():
        # libtsan stays out: the race detector defines its hooks.
        sanitize = [f for f in _VARIANT["asan"] if "sanitize=" in f] if variant == "asan" else []
        _run(["g++", "-shared", *sanitize, *map(str, objects)], target)
    return target


def operator_sources() -> list[Path]:
    """The operators for CUDA tensors."""
    return sorted((CSRC / "ops").glob("*_cuda.cpp"))


def build_operators(variant: str, flags: list[str], torch: Path) -> Path:
    """Compiles the operators and the kernels into one library, against a torch in that folder."""
    jobs = [(p, [*_KERNEL, *_VARIANT[variant]]) for p in kernel_sources()]
    jobs += [(p, flags) for p in operator_sources()]
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        objects = list(pool.map(lambda job: _compile(*job), jobs))
    key = _hash([variant.encode(), str(torch).encode(), *(str(o).encode() for o in objects)])
    target = _cache_folder() / f"operators-{key}" / "_operators.so"
    if not target.exists():
        libraries = [f"-L{torch / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"]
        _run(["g++", "-shared", *map(str, objects), *libraries], target)
    return target


@cache
def load(variant: str = "plain") -> ModuleType:
    """Builds and imports one variant. Two variants can live in one process."""
    if variant == "asan" and "libasan" not in os.environ.get("LD_PRELOAD", ""):
        raise RuntimeError("load asan in a process started with sanitizer_environment()")
    path = str(build(variant))
    # The last part names the init function; pybind11 and Python cache by the whole.
    name = f"{variant}._emulation"
    loader = importlib.machinery.ExtensionFileLoader(name, path)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def sanitizer_environment() -> dict[str, str]:
    """The environment in which a Python process can load the asan variant."""

    def library(name: str) -> str:
        out = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True)
        return str(Path(out.stdout.strip()).resolve())

    return {
        **os.environ,
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
        # Python does not free everything at exit; sigaltstack does not go with fibers.
        "ASAN_OPTIONS": "detect_leaks=0:use_sigaltstack=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }


if __name__ == "__main__":
    print(platform.machine(), *(build(variant) for variant in sys.argv[1:] or VARIANTS))
