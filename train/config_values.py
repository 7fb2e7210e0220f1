"""Single values of settings: what a file holds <-> the types of the fields."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


@cache
def hints(cls: type) -> dict[str, Any]:
    """Return the types of the fields of a dataclass, in order."""
    return get_type_hints(cls)


class WrongTypeError(Exception):
    """A value is not of the type of its field; the message lacks the name of the field."""

    def __init__(self, expected: str, value: Any, hint: str = "") -> None:
        super().__init__(f"expected {expected}, got {show(value)}{hint}")


def convert(kind: Any, value: Any) -> Any:
    """Turn a value read from a file into one of the type `kind`.

    Raises:
        WrongTypeError: it is of another type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (inner,) = (part for part in arguments if part is not type(None))
        return None if value is None or value == "None" else convert(inner, value)
    if origin is Literal:
        if value not in arguments or not isinstance(value, str):
            close = difflib.get_close_matches(str(value), arguments, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise WrongTypeError(f"one of {', '.join(arguments)}", value, hint)
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise WrongTypeError("'name: value' lines, or {} for none", value)
        return {convert(str, key): _item(arguments[1], key, v) for key, v in value.items()}
    return _SCALARS[kind](value)


def _convert_tuple(arguments: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        hint = "" if value is None or isinstance(value, Mapping) else f"; write [{value}]"
        raise WrongTypeError("a list", value, hint)
    if arguments[-1] is Ellipsis:
        kinds = (arguments[0],) * len(value)
    elif len(value) != len(arguments):
        raise WrongTypeError(f"a list of {len(arguments)}", value)
    else:
        kinds = arguments
    pairs = zip(kinds, value, strict=True)
    return tuple(_item(kind, index, item) for index, (kind, item) in enumerate(pairs))


def _item(kind: Any, key: Any, value: Any) -> Any:
    try:
        return convert(kind, value)
    except WrongTypeError as error:
        error.args = (f"[{key}]: {error}",)
        raise


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise WrongTypeError("true or false", value)
    return value


def _int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    hint = ""
    if isinstance(value, (str, float)) and not isinstance(value, bool):
        number = _number(value)
        if number is not None and number.is_integer():
            hint = f"; write {int(number)}"
    raise WrongTypeError("a whole number", value, hint)


def _float(value: Any) -> float:
    number = None if isinstance(value, bool) else _number(value)
    if number is None:
        raise WrongTypeError("a number", value)
    return number


def _number(value: Any) -> float | None:
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        return None
    if not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _str(value: Any) -> str:
    if not isinstance(value, str):
        scalar = not isinstance(value, (Mapping, list, tuple, type(None)))
        hint = "; in quotes it is text" if scalar else ""
        raise WrongTypeError("text", value, hint)
    return value


def _path(value: Any) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value:
        scalar = isinstance(value, (bool, int, float))
        raise WrongTypeError("a path", value, "; in quotes it is text" if scalar else "")
    return Path(os.path.expanduser(value))


_SCALARS = {bool: _bool, int: _int, float: _float, str: _str, Path: _path}


def show(value: Any) -> str:
    """Return a short text with a value and its type, for messages."""
    if value is None:
        return "nothing"
    names = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
    names |= {list: "a list", tuple: "a list"}
    kind = "a mapping" if isinstance(value, Mapping) else names.get(type(value))
    text = repr(dict(value) if isinstance(value, Mapping) else value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"{text} ({kind or type(value).__name__})"


def plain(kind: Any, value: Any) -> Any:
    """Turn a value of the type `kind` into what a file holds; `convert` is the way back."""
    origin, arguments = get_origin(kind), get_args(kind)
    if value is None:
        return None
    if dataclasses.is_dataclass(kind):
        return {name: plain(part, getattr(value, name)) for name, part in hints(kind).items()}
    if origin in (Union, types.UnionType):
        (inner,) = (part for part in arguments if part is not type(None))
        return plain(inner, value)
    if origin is tuple:
        return [plain(arguments[0], item) for item in value]
    if origin is dict:
        return {str(key): plain(arguments[1], item) for key, item in value.items()}
    if kind is Path:
        text = os.fspath(value)
        # What would be read as something else.
        return f".{os.sep}{text}" if text.startswith("~") or text in ("", "None") else text
    return value if origin is Literal else kind(value)
