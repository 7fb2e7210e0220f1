"""What may change between two starts of a run."""

from __future__ import annotations

from typing import Any

# Settings that may differ when a run goes on: they do not change what is learnt, or say how long.
_FREE = (
    "run",
    "data.workers",
    "data.cache_bytes",
    "engine.device",
    "engine.threads",
    "engine.compile",
    "engine.recompute",
    "schedule.iterations",
    "start.",
    "validation.",
    "log.",
    "checkpoint.",
)


def changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Name the settings that differ and may not, with both values.

    Args:
        old: settings of the run so far, see `config_files.to_dict`.
        new: those that it is to go on with.
        prefix: of their names.
    """
    found = []
    for name in sorted(old.keys() | new.keys()):
        path = f"{prefix}{name}"
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            found += changes(before, now, f"{path}.")
        elif before != now and not any(path == f or path.startswith(f) for f in _FREE):
            found.append(f"{path} was {before}, is {now}")
    return found
