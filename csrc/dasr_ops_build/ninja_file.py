"""The build of the extension as a ninja file."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from .cuda import Toolkit, gencode_flags
from .host import Compiler, is_x86, max_jobs
from .torch_location import Torch

COMMON_FLAGS = ("-O3", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
# The oldest torch whose stable ABI is used; the binary runs on that and every later one.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000ULL"
# Files compiled for an instruction set that is chosen at run time carry its name as a suffix.
ISA_FLAGS = {
    "_avx512": ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx2", "-mfma"),
    "_avx2": ("-mavx2", "-mfma"),
}
# libtorch.so must be named by the library itself (--no-as-needed): CUDA symbols that are weak here
# are found through it alone.
TORCH_LIBRARIES = ("-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-Wl,--as-needed")
RULE = """\
rule {name}
  command = {command} -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = $in
"""


def ninja_file(
    csrc: Path,
    library: Path,
    compiler: Compiler,
    torch: Torch,
    toolkit: Toolkit | None,
    archs: list[str],
    defines: list[str],
) -> str:
    """Return the text of a ninja file that makes ``library`` from the sources in ``csrc``.

    Args:
        csrc: the folder of the sources.
        library: the shared library to make.
        compiler: compiles and links.
        torch: the torch to build against.
        toolkit: compiles the kernels for GPUs; without it they are left out.
        archs: the GPU architectures.
        defines: flags for ``build_info.cpp`` alone.
    """
    flags = [*COMMON_FLAGS, TORCH_TARGET, f"-I{csrc}", "-isystem", str(torch.folder / "include")]
    link = ["-shared", "-Wl,-z,defs", f"-Wl,--version-script={csrc}/dasr_ops_build/exports.map"]
    libraries = [f"-L{torch.folder / 'lib'}", *TORCH_LIBRARIES]
    if toolkit:
        flags += ["-DDASR_OPS_WITH_CUDA", "-isystem", str(toolkit.root / "include")]
        libraries += [f"-L{toolkit.library_dir}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    text = [
        f"cxx = {_join(compiler.command)}",
        f"flags = {_join(flags)} {_environment('CXXFLAGS')}",
        f"link = {_join(link)} {_environment('LDFLAGS')}",
        f"libraries = {_join(libraries)}",
        RULE.format(name="cxx", command="$cxx $flags $extra"),
        "rule link\n  command = $cxx $link $in $libraries -o $out\n  description = link\n",
    ]
    if toolkit:
        nvcc = [str(toolkit.nvcc), "-ccbin", compiler.executable, "-O3", "-std=c++17", f"-I{csrc}"]
        nvcc += ["-Xcompiler", "-fPIC,-fvisibility=hidden", *gencode_flags(archs)]
        nvcc += [f"--threads={min(2, max_jobs() or 2)}"]
        text.append(RULE.format(name="nvcc", command=_join(nvcc)))
    objects = []
    for source in sources(csrc, with_cuda=toolkit is not None):
        name = source.relative_to(csrc).as_posix().replace("/", "_") + ".o"
        objects.append(_escape(name))
        rule = "nvcc" if source.suffix == ".cu" else "cxx"
        text.append(f"build {_escape(name)}: {rule} {_escape(str(source))}")
        extra = [
            flag
            for isa, isa_flags in ISA_FLAGS.items()
            for flag in isa_flags
            if source.stem.endswith(isa)
        ]
        if source.parent.name == "ops":
            extra = ["-O1"]  # no loops worth more there, and PyTorch's headers compile faster
        if source.name == "build_info.cpp":
            extra = defines
        if extra:
            text.append(f"  extra = {_join(extra)}")
    script = _escape(f"{csrc}/dasr_ops_build/exports.map")
    text.append(f"build {_escape(str(library))}: link {' '.join(objects)} | {script}")
    return "\n".join(text) + "\n"


def sources(csrc: Path, *, with_cuda: bool) -> list[Path]:
    """Return the files to compile on this machine."""
    files = [*(csrc / "ops").glob("*.cpp"), *(csrc / "cpu").rglob("*.cpp")]
    if not is_x86():
        files = [file for file in files if not file.stem.endswith(tuple(ISA_FLAGS))]
    if with_cuda:
        files += (csrc / "cuda").rglob("*.cu")
    else:
        files = [file for file in files if not file.stem.endswith("_cuda")]
    return sorted(files)


def _environment(variable: str) -> str:
    return " ".join(os.environ.get(variable, "").split()).replace("$", "$$")


def _join(words: tuple[str, ...] | list[str]) -> str:
    return shlex.join(words).replace("$", "$$")


def _escape(path: str) -> str:
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
