"""What may change between two starts of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..config import TrainConfig
from ..config_files import to_dict

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


# Where things lie, which another machine has elsewhere.
_PLACES = ("data.train", "data.root", "loss.perceptual.weights")


def changes(old: dict[str, Any], new: dict[str, Any], *, moved: bool = False) -> list[str]:
    """Name the settings that differ and may not, with both values.

    Args:
        old: settings of the run so far, see `config_files.to_dict`. What it lacks, since a former
            version had no such field, is as by default.
        new: those that it is to go on with.
        moved: whether the run comes from another machine, so that paths of data may differ too.
    """
    free = (*_FREE, *_PLACES) if moved else _FREE
    return list(_differences(old, new, to_dict(TrainConfig()), free, ""))


def _differences(
    old: dict[str, Any],
    new: dict[str, Any],
    default: dict[str, Any],
    free: tuple[str, ...],
    prefix: str,
) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        path, usual = f"{prefix}{name}", default.get(name)
        before, now = old.get(name, usual), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            usual = usual if isinstance(usual, dict) else {}
            yield from _differences(before, now, usual, free, f"{path}.")
        elif before != now and not any(path == f or path.startswith(f) for f in free):
            yield f"{path} was {before}, is {now}"
