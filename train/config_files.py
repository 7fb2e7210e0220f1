"""Settings of a run in files: presets, YAML, plain dictionaries.

A file names only what differs from the defaults, or from the preset or file that it starts from:

    preset: small          # or `base: other.yml`, relative to this file
    run: runs/mine
    data:
      train: [photos]
    schedule:
      iterations: 20000

Sections are merged field by field; lists and the mappings `loss.perceptual.layers` and
`optimizer.options` are replaced as a whole. Paths are relative to the working directory (as on the
command line), not to the file; `~` is the home folder.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from dasr_ops.models.files import atomic_path

from .config import TrainConfig
from .config_rules import ConfigError
from .config_values import WrongTypeError, convert, hints, plain, show
from .config_yaml import format_yaml, place_of, read_yaml

CONFIG_NAME = "config.yml"
"""Name of the file with all settings in the folder of a run."""

_PRESETS = Path(__file__).with_name("presets")
_START = ("preset", "base")  # keys of a file that are not settings


def presets() -> dict[str, str]:
    """Return the names of the presets, each with one line on what it is for."""
    found = {}
    for path in sorted(_PRESETS.glob("*.yml"), key=lambda path: path.stem):
        with path.open(encoding="utf-8") as file:
            found[path.stem] = file.readline().lstrip("#").strip()
    return found


def load_config(source: str | os.PathLike[str]) -> TrainConfig:
    """Read the settings of a run.

    Args:
        source: name of a preset; a YAML file; or the folder of a run, whose `config.yml` is read
            and whose `run` becomes that folder, wherever it is now. (So does that of a `config.yml`
            that was written with a relative `run` from another working directory.)

    Raises:
        ConfigError: no such preset or file, not valid YAML, unknown or duplicate keys, values of
            a wrong type or out of range. The message is one line with file, line and field.
        ModuleNotFoundError: PyYAML is not installed.
    """
    name = os.fspath(source)
    if name in presets():
        return _load(_PRESETS / f"{name}.yml", ())
    path = Path(source)
    if os.path.isdir(path):
        if not (path / CONFIG_NAME).is_file():
            raise ConfigError(f"{name}: expected the folder of a run, with {CONFIG_NAME} in it")
        return dataclasses.replace(_load(path / CONFIG_NAME, ()), run=path)
    if not os.path.exists(path):
        raise ConfigError(_no_such(name))
    config = _load(path, ())
    if path.name == CONFIG_NAME and not config.run.is_absolute():
        parts, folder = config.run.parts, path.resolve().parent
        if parts and folder.parts[-len(parts) :] == parts:
            same = (Path.cwd() / config.run).resolve() == folder
            return config if same else dataclasses.replace(config, run=folder)
    return config


def save_config(config: TrainConfig, path: str | os.PathLike[str]) -> None:
    """Write all settings as YAML, which `load_config` turns into the same settings; atomically.

    Raises:
        OSError: the file cannot be written; its folder must exist.
        ModuleNotFoundError: PyYAML is not installed.
    """
    text = to_yaml(config)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_yaml(config: TrainConfig) -> str:
    """Return all settings as YAML."""
    return format_yaml(to_dict(config))


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Return all settings as nested dictionaries of plain numbers, strings and lists."""
    return plain(type(config), config)


def from_dict(mapping: Mapping[str, Any], default: TrainConfig | None = None) -> TrainConfig:
    """Build settings from nested dictionaries, checking names and types.

    Whole numbers count as floats, and so does text that is a number ("1e-4" is text in YAML); a
    truth value is no number. "None" is None where that is allowed.

    Args:
        mapping: what differs from `default`. Not changed.
        default: settings to start from; by default those of `TrainConfig`. Not changed.

    Raises:
        ConfigError: unknown keys, values of a wrong type or out of range; names the field.
    """
    default = copy.deepcopy(default) if default is not None else TrainConfig()
    return _Reader(mapping).section(TrainConfig, mapping, default, ())


def _load(path: Path, seen: tuple[Path, ...]) -> TrainConfig:
    mapping = read_yaml(path)
    given = [key for key in _START if key in mapping]
    if len(given) > 1:
        raise ConfigError(f"{mapping.place('base')}base: expected either preset or base, got both")
    default = None
    if given:
        key = given[0]
        value, place = mapping.pop(key), mapping.place(key)
        if not isinstance(value, str) or not value:
            expected = "a name" if key == "preset" else "a file"
            raise ConfigError(f"{place}{key}: expected {expected}, got {show(value)}")
        seen = (*seen, path.resolve())
        if key == "preset":
            if value not in presets():
                raise ConfigError(f"{place}preset: {_no_such(value, files=False)}")
            default = _load(_PRESETS / f"{value}.yml", seen)
        else:
            other = path.parent / Path(value).expanduser()
            if not other.is_file():
                raise ConfigError(f"{place}base: expected a file, found none at {other}")
            if other.resolve() in seen:
                raise ConfigError(f"{place}base: {value} starts from this file itself")
            default = _load(other, seen)
    return from_dict(mapping, default)


def _no_such(name: str, files: bool = True) -> str:
    known = presets()
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    kind = "no preset and no file" if files else "no preset"
    return f"{kind} named {name!r}{hint} (presets: {', '.join(known)})"


class _Reader:
    """Turns a mapping into settings; `root` knows where in a file things stand."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.root = root

    def section(self, cls: type, value: Any, default: Any, path: tuple[str, ...]) -> Any:
        if value is None and path:  # a section whose lines are all commented out
            return default
        if not isinstance(value, Mapping):
            self.fail(path, f"expected 'name: value' lines, got {show(value)}")
        types_of = hints(cls)
        values = {field.name: getattr(default, field.name) for field in dataclasses.fields(cls)}
        for key, entry in value.items():
            if key not in types_of:
                self.unknown(cls, key, path)
            place = (*path, key)
            if dataclasses.is_dataclass(types_of[key]):
                values[key] = self.section(types_of[key], entry, values[key], place)
            else:
                values[key] = self.value(types_of[key], entry, place)
        try:
            return cls(**values)
        except ConfigError as error:
            name = str(error).partition(":")[0]
            raise ConfigError(f"{place_of(self.root, tuple(name.split('.')))}{error}") from None

    def value(self, kind: Any, value: Any, path: tuple[str, ...]) -> Any:
        try:
            return convert(kind, value)
        except WrongTypeError as error:
            self.fail(path, str(error))

    def unknown(self, cls: type, key: Any, path: tuple[str, ...]) -> NoReturn:
        place = place_of(self.root, (*path, key))
        dotted = ".".join((*path, str(key)))
        if not isinstance(key, str):
            raise ConfigError(f"{place}{dotted}: expected the name of a setting, got {show(key)}")
        raise ConfigError(f"{place}unknown setting {dotted}{_suggestion(cls, key, path)}")

    def fail(self, path: tuple[str, ...], text: str) -> NoReturn:
        colon = "" if text.startswith("[") else ": "  # [2]: an item of a list
        raise ConfigError(f"{place_of(self.root, path)}{'.'.join(path) or 'settings'}{colon}{text}")


def _suggestion(cls: type, key: str, path: tuple[str, ...]) -> str:
    names = [*hints(cls), *(() if path else _START)]
    paths = [".".join(leaf) for leaf in _leaves(TrainConfig, ())]
    if ".".join((*path, key)) in paths:
        first, *rest = key.split(".")
        return f"; write one name to a line: {first}:, and indented below it {'.'.join(rest)}:"
    key = key.replace("-", "_")
    close = difflib.get_close_matches(key, names, n=1)
    if close:
        return f"; did you mean {'.'.join((*path, close[0]))}?"
    lasts = {name.rpartition(".")[2] for name in paths}
    close = difflib.get_close_matches(key, lasts, n=1, cutoff=0.75)
    fits = [name for name in paths if close and name.rpartition(".")[2] == close[0]]
    if fits:
        return f"; did you mean {' or '.join(fits)}?"
    return f"; known here: {', '.join(names)}"


def _leaves(cls: type, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, kind in hints(cls).items():
        if dataclasses.is_dataclass(kind):
            yield from _leaves(kind, (*path, name))
        else:
            yield (*path, name)
