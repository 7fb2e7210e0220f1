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
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

from .cuda import CudaUnavailable, Toolkit, check_nvcc, choose_archs, find_toolkit
from .host import (
    WITHOUT_CUDA_VARIABLE,
    WITHOUT_EXTENSION_VARIABLE,
    Compiler,
    find_compiler,
    is_set,
    max_jobs,
)
from .ninja_file import ninja_file
from .torch_location import ENVIRONMENT_VARIABLE, Torch, find_torch

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"


def extensions() -> list[Extension]:
    """Return what to build: nothing outside Linux, or if the user does not want it."""
    if sys.platform != "linux" or is_set(WITHOUT_EXTENSION_VARIABLE):
        return []
    return [Extension("dasr_ops._C", sources=[], py_limited_api=True)]


class BuildPython(build_py):
    """Starts from an empty folder: a module deleted since the last build must not be shipped."""

    def run(self) -> None:
        """Copy the modules."""
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "dasr_ops"), ignore_errors=True)
        super().run()


class BuildExtension(build_ext):
    """Compiles csrc/ with the host compiler and, where there is one, nvcc."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return one name for every Python: the library holds nothing of Python."""
        return os.path.join(*fullname.split(".")) + ".abi3.so"

    def build_extension(self, ext: Extension) -> None:
        """Build one shared library against the LibTorch stable ABI."""
        compiler = find_compiler()
        if compiler is None:
            ext.optional = True
            raise CompileError("no C++ compiler found: dasr_ops will run in pure PyTorch")
        try:
            library = _build(compiler)
        except (ValueError, OSError, subprocess.CalledProcessError) as error:
            raise CompileError(
                f"dasr_ops: {error}\nThe C++ compiler was {shlex.join(compiler.command)!r}; CXX "
                f"names another. To install without the CUDA kernels set "
                f"{WITHOUT_CUDA_VARIABLE}=1, without any compiled ones "
                f"{WITHOUT_EXTENSION_VARIABLE}=1."
            ) from error
        # Rename into place: a running process may have the old library mapped.
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        shutil.copy2(library, partial)
        os.replace(partial, target)


def _build(compiler: Compiler) -> Path:
    torch = find_torch()
    if torch is None:
        raise ValueError(
            f"no torch >= 2.11 found to build against; {ENVIRONMENT_VARIABLE} names its folder"
        )
    toolkit, archs = _cuda(compiler)
    cuda = f"with CUDA {toolkit.version} for {' '.join(archs)}" if toolkit else "without CUDA"
    print(f"dasr_ops: building against torch {torch.version}, {cuda}", flush=True)

    # One folder for each setting, and not the temporary one of pip: builds are incremental.
    variant = f"{'cuda' if toolkit else 'cpu'}-torch{'.'.join(map(str, torch.release))}"
    folder = ROOT / "build" / f"extension-{platform.machine()}-{variant}"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "_C.abi3.so"
    defines = _build_info(torch, toolkit, archs)
    text = ninja_file(CSRC, library, compiler, torch, toolkit, archs, defines)
    (folder / "build.ninja").write_text(text)
    jobs = max_jobs()
    subprocess.run(
        [*_ninja(), "-C", str(folder), *([f"-j{jobs}"] if jobs else [])],
        check=True,
    )
    return library


def _cuda(compiler: Compiler) -> tuple[Toolkit | None, list[str]]:
    if is_set(WITHOUT_CUDA_VARIABLE):
        return None, []
    try:
        toolkit = find_toolkit()
    except CudaUnavailable as error:
        print(f"dasr_ops: {error}: the CUDA kernels are left out", flush=True)
        return None, []
    archs = choose_archs(toolkit)
    check_nvcc(toolkit, compiler, archs)
    return toolkit, archs


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


def _ninja() -> list[str]:
    path = shutil.which("ninja")
    return [path] if path else [sys.executable, "-m", "ninja"]
