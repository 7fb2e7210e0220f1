"""``build_ext`` for the extension: writes a ninja file, runs it, and says what was left out.

``torch.utils.cpp_extension`` cannot be used: beside a CPU build of torch it refuses to compile
CUDA, while one wheel must serve both.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

from .cuda import Toolkit, find_toolkit, gencode_flags
from .torch_location import Torch, find_torch

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
WITHOUT_CUDA_VARIABLE = "DASR_OPS_WITHOUT_CUDA"
WITHOUT_EXTENSION_VARIABLE = "DASR_OPS_WITHOUT_EXTENSION"

COMMON_FLAGS = ["-O3", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
# The oldest torch whose stable ABI is used; the binary runs on that and every later one.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000ULL"
# Files compiled for an instruction set that is chosen at run time carry its name as a suffix.
ISA_FLAGS = {
    "_avx512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx2", "-mfma"],
    "_avx2": ["-mavx2", "-mfma"],
}


def extensions() -> list[Extension]:
    """Return what to build: nothing outside Linux, or if the user does not want it."""
    if sys.platform != "linux" or _is_set(WITHOUT_EXTENSION_VARIABLE):
        return []
    return [Extension("dasr_ops._C", sources=[], py_limited_api=True)]


class BuildExtension(build_ext):
    """Compiles csrc/ with the host compiler and, where there is one, nvcc."""

    def build_extension(self, ext: Extension) -> None:
        """Build one shared library against the LibTorch stable ABI."""
        compiler = _host_compiler()
        if compiler is None:
            ext.optional = True
            raise CompileError("no C++ compiler found: dasr_ops will run in pure PyTorch")
        torch = find_torch()
        if torch is None:
            raise CompileError(
                "no torch >= 2.11 found to build against; set DASR_OPS_TORCH_DIR to its folder"
            )
        toolkit = None if _is_set(WITHOUT_CUDA_VARIABLE) else find_toolkit()
        archs, gencode = gencode_flags(toolkit) if toolkit else ([], [])
        cuda = f"with CUDA {toolkit.version} for {' '.join(archs)}" if toolkit else "without CUDA"
        print(f"dasr_ops: building against torch {torch.version}, {cuda}", flush=True)

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        # One folder for each setting, and not the temporary one of pip: builds are incremental.
        variant = f"{'cuda' if toolkit else 'cpu'}-torch{'.'.join(map(str, torch.release))}"
        folder = ROOT / "build" / f"extension-{platform.machine()}-{variant}"
        folder.mkdir(parents=True, exist_ok=True)
        library = folder / target.name
        defines = _build_info(torch, toolkit, archs)
        script = _ninja_file(compiler, torch, toolkit, gencode, defines, library)
        (folder / "build.ninja").write_text(script)
        try:
            subprocess.run([*_ninja(), "-C", str(folder)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(
                f"ninja: {error}. To install without the CUDA kernels set {WITHOUT_CUDA_VARIABLE}=1"
                f", without any compiled kernels {WITHOUT_EXTENSION_VARIABLE}=1."
            ) from error
        # Rename into place: a running process may have the old library mapped.
        partial = target.with_suffix(".partial")
        shutil.copy2(library, partial)
        os.replace(partial, target)


def _ninja_file(
    compiler: list[str],
    torch: Torch,
    toolkit: Toolkit | None,
    gencode: list[str],
    build_info: list[str],
    library: Path,
) -> str:
    flags = [*COMMON_FLAGS, TORCH_TARGET, f"-I{CSRC}", "-isystem", str(torch.folder / "include")]
    if toolkit:
        flags += ["-DDASR_OPS_WITH_CUDA", "-isystem", str(toolkit.root / "include")]
    lines = [
        f"cxx = {_join(compiler)}",
        f"flags = {_join(flags)} {os.environ.get('CXXFLAGS', '')}",
        "rule cxx",
        "  command = $cxx $flags $extra -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = $in",
        "rule link",
        "  command = $cxx -shared $in $libraries -o $out",
        "  description = link",
    ]
    # libtorch.so must be named by the library itself (--no-as-needed): CUDA symbols that are weak
    # here are found through it alone.
    libraries = [
        f"-L{torch.folder / 'lib'}",
        "-Wl,--no-as-needed",
        *("-ltorch", "-ltorch_cpu", "-lc10"),
        "-Wl,--as-needed",
    ]
    if toolkit:
        nvcc_flags = ["-O3", "-std=c++17", f"-I{CSRC}", *gencode, "-Xcompiler"]
        nvcc_flags += ["-fPIC,-fvisibility=hidden", "--threads=2", "-ccbin", compiler[-1]]
        lines += [
            f"nvcc = {shlex.quote(str(toolkit.nvcc))}",
            f"nvcc_flags = {_join(nvcc_flags)}",
            "rule nvcc",
            "  command = $nvcc $nvcc_flags -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = $in",
        ]
        libraries += [f"-L{toolkit.library_dir}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    lines.append(f"libraries = {_join(libraries)}")
    objects = []
    for source in _sources(toolkit is not None):
        relative = source.relative_to(CSRC)
        name = str(relative).replace("/", "_") + ".o"
        objects.append(name)
        rule = "nvcc" if source.suffix == ".cu" else "cxx"
        lines.append(f"build {name}: {rule} {_escape(source)}")
        extra = next((f for suffix, f in ISA_FLAGS.items() if source.stem.endswith(suffix)), [])
        if source.name == "build_info.cpp":
            extra = build_info
        if extra:
            lines.append(f"  extra = {_join(extra)}")
    lines.append(f"build {_escape(library)}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def _sources(with_cuda: bool) -> list[Path]:
    x86 = platform.machine() in ("x86_64", "AMD64")
    files = [*(CSRC / "ops").glob("*.cpp"), *(CSRC / "cpu").rglob("*.cpp")]
    if not x86:
        files = [f for f in files if not f.stem.endswith(tuple(ISA_FLAGS))]
    if with_cuda:
        files += (CSRC / "cuda").glob("*.cu")
    else:
        files = [f for f in files if not f.stem.endswith("_cuda")]
    return sorted(files)


def _build_info(torch: Torch, toolkit: Toolkit | None, archs: list[str]) -> list[str]:
    # The package itself cannot be imported: it needs torch.
    spec = importlib.util.spec_from_file_location("_sources", ROOT / "dasr_ops" / "_sources.py")
    sources = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sources)
    return [
        f'-DDASR_OPS_SOURCE_HASH="{sources.source_hash(CSRC)}"',
        f'-DDASR_OPS_TORCH_VERSION="{torch.version}"',
        f'-DDASR_OPS_CUDA_VERSION="{toolkit.version if toolkit else ""}"',
        f'-DDASR_OPS_CUDA_ARCHS="{" ".join(archs)}"',
    ]


def _host_compiler() -> list[str] | None:
    if command := os.environ.get("CXX"):
        return shlex.split(command)
    for name in ("g++", "c++", "clang++"):
        if path := shutil.which(name):
            return [path]
    return None


def _ninja() -> list[str]:
    path = shutil.which("ninja")
    return [path] if path else [sys.executable, "-m", "ninja"]


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "0").lower() not in ("", "0", "no", "false")


def _join(words: list[str]) -> str:
    return " ".join(shlex.quote(word) for word in words).replace("$", "$$")


def _escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
