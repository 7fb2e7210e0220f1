"""YAML text <-> mappings that know the line of each key. Needs PyYAML."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from .config_rules import ConfigError


class LocatedDict(dict):
    """A mapping that was read from a file.

    Attributes:
        origin: name of the file, for messages.
        lines: line of each key, counted from 1.
    """

    origin: str
    lines: dict[Any, int]

    def place(self, key: object) -> str:
        """Return ``FILE:LINE: `` of a key, to begin a message with."""
        return f"{self.origin}:{self.lines[key]}: " if key in self.lines else f"{self.origin}: "


def place_of(root: Mapping[str, Any], path: Sequence[Any]) -> str:
    """Return ``FILE:LINE: `` of the innermost part of a path of keys that stands in the file.

    Empty where `root` was not read from a file.
    """
    found, inner = "", root
    for key in path or (None,):
        if not isinstance(inner, LocatedDict):
            break
        if key not in inner:
            found = found or f"{inner.origin}: "
            break
        found, inner = inner.place(key), inner[key]
    return found


def read_yaml(path: str | os.PathLike[str]) -> LocatedDict:
    """Read a YAML file (UTF-8 or UTF-16) whose top is a mapping; an empty file is an empty one.

    Only plain data is read, as by `yaml.safe_load`. Duplicate keys are errors.

    Raises:
        ConfigError: the file cannot be read, is not valid YAML, or holds something else.
        ModuleNotFoundError: PyYAML is not installed.
    """
    name = os.fspath(path)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror or error}") from None
    return parse_yaml(content, name)


def parse_yaml(content: bytes | str, origin: str) -> LocatedDict:
    """Read YAML text, see `read_yaml`; `origin` names it in messages."""
    yaml, loader_class, _ = _classes()
    try:
        loader = loader_class(content)
        loader.origin = origin
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{origin}:{mark.line + 1}: " if mark else f"{origin}: "
        text = error.problem or error.context or "not valid YAML"
        raise ConfigError(place + " ".join(text.split())) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: dates and numbers that look like such but are not.
        text = " ".join(str(error).split()) or "not valid YAML"
        if isinstance(error, RecursionError):
            text = "nested too deeply"
        raise ConfigError(f"{origin}: {text}") from None
    if value is None:
        value = LocatedDict()
        value.origin, value.lines = origin, {}
    if not isinstance(value, LocatedDict):
        raise ConfigError(f"{origin}: expected settings as 'name: value', got {value!r:.60}")
    return value


def format_yaml(mapping: Mapping[str, Any]) -> str:
    """Return YAML text, lists in one line, keys in their order.

    Raises:
        ModuleNotFoundError: PyYAML is not installed.
    """
    yaml, _, dumper = _classes()
    plain = dict(mapping)
    options = {"Dumper": dumper, "sort_keys": False, "default_flow_style": False, "width": 100}
    text = yaml.dump(plain, allow_unicode=True, **options)
    if text.isascii() or yaml.safe_load(text) == plain:
        return text
    return yaml.dump(plain, allow_unicode=False, **options)  # PyYAML errs on rare line ends


@lru_cache(maxsize=1)
def _classes() -> tuple[Any, Any, Any]:
    """Return the module, our loader and our dumper; imported on first use."""
    try:
        import yaml
    except ModuleNotFoundError as error:
        if error.name != "yaml":
            raise
        text = "settings of training need PyYAML: pip install 'dasr-ops[train]'"
        raise ModuleNotFoundError(text, name="yaml") from None

    class Loader(yaml.SafeLoader):
        origin = ""

        def compose_mapping_node(self, anchor: Any) -> Any:
            # Here, since merged keys (<<) are not there yet.
            node = super().compose_mapping_node(anchor)
            seen: dict[tuple[str, str], Any] = {}
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue
                first = seen.setdefault((key.tag, key.value), key)
                if first is not key:
                    text = f"{key.value} was set before, in line {first.start_mark.line + 1}"
                    raise yaml.composer.ComposerError(None, None, text, key.start_mark)
            return node

    def construct_mapping(loader: Any, node: Any) -> Any:
        mapping = LocatedDict()
        mapping.origin = loader.origin
        yield mapping
        mapping.update(loader.construct_mapping(node))  # merges << first
        mapping.lines = {
            loader.construct_object(key): key.start_mark.line + 1
            for key, _ in node.value
            if isinstance(key, yaml.ScalarNode)
        }

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def represent_list(dumper: Any, values: list[Any]) -> Any:
        return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)

    Loader.add_constructor("tag:yaml.org,2002:map", construct_mapping)
    Dumper.add_representer(list, represent_list)
    return yaml, Loader, Dumper
