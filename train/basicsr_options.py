"""The values of a BasicSR file by dotted name, with a record of which of them were read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from .config_rules import ConfigError
from .config_values import WrongTypeError, convert, show
from .config_yaml import place_of


class Options:
    """The file: values by dotted name, and which of them have been read."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.root = root
        self.read: set[tuple[str, ...]] = set()
        self.notes: list[str] = []

    def look(self, name: str) -> Any:
        """Return what stands there, None where nothing does; that does not count as reading."""
        value: Any = self.root
        path = name.split(".")
        for depth, key in enumerate(path):
            if value is None:
                return None
            if not isinstance(value, Mapping):
                self.fail(".".join(path[:depth]), f"expected 'name: value' lines, got {value!r}")
            value = value.get(key)
        return value

    def get(self, name: str, kind: Any, default: Any = None) -> Any:
        """Return a value of the type `kind`; `default` where there is none, or null."""
        value = self.look(name)
        self.read.add(tuple(name.split(".")))
        if value is None:
            return default
        try:
            return self._whole(value) if kind is int else convert(kind, value)
        except WrongTypeError as error:
            self.fail(name, str(error))

    @staticmethod
    def _whole(value: Any) -> int:
        # `!!float 5e3` is usual for counts.
        number = convert(float, value)
        if not number.is_integer():
            raise WrongTypeError("a whole number", value)
        return int(number)

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a section; an empty one where there is none."""
        value = self.look(name)
        if value is not None and not isinstance(value, Mapping):
            self.fail(name, f"expected 'name: value' lines, got {show(value)}")
        return value or {}

    def choose(self, name: str, known: Mapping[str, Any], default: str) -> Any:
        """Return what a name stands for here."""
        value = self.get(name, str, default)
        if value not in known:
            self.fail(name, f"expected one of {', '.join(known)}, got {value!r}")
        return known[value]

    def expect(self, name: str, wanted: Any, default: Any = None, what: str = "only") -> None:
        """Read a value that has a single meaning here; absent, it is `default` or that one."""
        default = wanted if default is None else default
        kind = tuple[float, ...] if isinstance(wanted, tuple) else type(wanted)
        value = self.get(name, kind, default)
        if not same(value, wanted):
            if isinstance(wanted, tuple):
                value, wanted = list(value), list(wanted)
            self.fail(name, f"expected {what} {wanted} here, got {show(value)}")

    def fail(self, name: str, text: str) -> NoReturn:
        """Raise ConfigError with the place of a key."""
        raise ConfigError(f"{place_of(self.root, name.split('.'))}{name}: {text}")

    def unread(self) -> Iterator[str]:
        """Yield the dotted names of all keys that were not read, in the order of the file."""
        yield from self._unread(self.root, ())

    def _unread(self, mapping: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[str]:
        for key, value in mapping.items():
            here = (*path, str(key))
            if here in self.read:
                continue
            if isinstance(value, Mapping) and value:
                yield from self._unread(value, here)
            else:
                yield ".".join(here)


def same(value: Any, wanted: Any) -> bool:
    """Whether two values are equal, floats to rounding."""
    if isinstance(wanted, tuple):
        return len(value) == len(wanted) and all(map(same, value, wanted))
    if isinstance(wanted, float):
        return math.isclose(value, wanted, rel_tol=1e-6, abs_tol=1e-9)
    return value == wanted
