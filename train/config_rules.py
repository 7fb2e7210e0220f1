"""Rules that settings are held to."""

from __future__ import annotations

import math
from collections.abc import Iterable


class ConfigError(ValueError):
    """Settings that make no sense; the message is one line and names the field."""


def require(name: str, holds: bool, expected: str, value: object) -> None:
    """Raise ConfigError unless a setting ``holds``; ``name`` is its dotted path."""
    if not holds:
        raise ConfigError(f"{name}: expected {expected}, got {value!r}")


def at_least(owner: str, config: object, low: float, *names: str) -> None:
    """Require finite numbers from ``low`` on of fields of a section, ``owner``."""
    for name in names:
        value = getattr(config, name)
        require(f"{owner}.{name}", low <= value < math.inf, f"{low} or more", value)


def share(owner: str, config: object, *names: str) -> None:
    """Require numbers in 0..1 of fields of a section, ``owner``."""
    for name in names:
        value = getattr(config, name)
        require(f"{owner}.{name}", 0 <= value <= 1, "a number in 0..1", value)


def are_weights(values: Iterable[float]) -> bool:
    """Return whether all are finite and not negative."""
    return all(0 <= value < math.inf for value in values)
