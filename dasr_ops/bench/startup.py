"""How long programs take to start: whole processes in turn, and what their imports cost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Import(NamedTuple):
    """The import of a module, in seconds."""

    module: str
    own: float
    """Without the modules that it imports first."""
    total: float
    """With them."""


def time_processes(
    commands: Mapping[str, Sequence[str]], rounds: int, env: Mapping[str, str] | None = None
) -> dict[str, list[float]]:
    """Time commands from start to exit, in turn, after a round that warms up the file system.

    Args:
        commands: by name, argument lists.
        rounds: how often each is timed.
        env: added to the environment.

    Returns:
        Wall seconds by name.

    Raises:
        RuntimeError: a command fails; the message ends with what it printed.
    """
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            begin = time.perf_counter()
            _run(command, env)
            if number:
                times[name].append(time.perf_counter() - begin)
    return times


def profile_imports(
    statement: str, env: Mapping[str, str] | None = None, own: str | None = None
) -> list[Import]:
    """Run ``python -X importtime -c STATEMENT``.

    Args:
        statement: what to run.
        env: added to the environment.
        own: only modules of this package, itself included; None for all.

    Returns:
        The imports, in the order in which they ended. With the profile they take longer.

    Raises:
        RuntimeError: the statement fails.
    """
    text = _run([sys.executable, "-X", "importtime", "-c", statement], env)
    imports = []
    for line in text.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if not line.startswith("import time:") or not parts[0].strip().isdigit():
            continue
        module = parts[2].strip()
        if own is None or module == own or module.startswith(f"{own}."):
            imports.append(Import(module, int(parts[0]) * 1e-6, int(parts[1]) * 1e-6))
    return imports


def _run(command: Sequence[str], env: Mapping[str, str] | None) -> str:
    """Run a command and return what it writes to standard error."""
    result = subprocess.run(
        list(command),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        check=False,
    )
    if result.returncode:
        tail = "\n".join(result.stderr.splitlines()[-5:])
        raise RuntimeError(f"{' '.join(command)}: exit code {result.returncode}\n{tail}")
    return result.stderr
