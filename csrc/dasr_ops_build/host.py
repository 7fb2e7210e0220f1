"""The host compiler, and what the environment asks of the build."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

WITHOUT_CUDA_VARIABLE = "DASR_OPS_WITHOUT_CUDA"
WITHOUT_EXTENSION_VARIABLE = "DASR_OPS_WITHOUT_EXTENSION"
JOBS_VARIABLE = "MAX_JOBS"
LAUNCHERS = {"ccache", "sccache", "distcc", "icecc"}


@dataclass(frozen=True)
class Compiler:
    """The C++ compiler as a command: perhaps behind a launcher, perhaps with arguments."""

    command: tuple[str, ...]

    @property
    def executable(self) -> str:
        """The compiler itself, for nvcc to run."""
        words = (word for word in self.command if Path(word).name not in LAUNCHERS)
        return next(words, self.command[0])


def find_compiler() -> Compiler | None:
    """Return the compiler that ``CXX`` names, else a usual one on the path, or None."""
    if command := shlex.split(os.environ.get("CXX", "")):
        return Compiler(tuple(command))
    found = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    return Compiler((found,)) if found else None


def is_set(variable: str) -> bool:
    """Whether a variable of the environment asks for something: it is not empty, 0, no or false."""
    return os.environ.get(variable, "").strip().lower() not in ("", "0", "no", "false")


def is_x86() -> bool:
    """Whether the machine knows the instruction sets that some files are compiled for."""
    return platform.machine() in ("x86_64", "AMD64")


def max_jobs() -> int | None:
    """Return how many compilers may run at once, or None for as many as there are cores.

    Raises:
        ValueError: ``MAX_JOBS`` is no positive number.
    """
    text = os.environ.get(JOBS_VARIABLE, "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{JOBS_VARIABLE}: expected a positive number, got {text!r}")
    return int(text)
