"""``dasr train``: train a network from a preset or a file of settings."""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import inspect
import io
import itertools
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import tyro

from . import EXIT_FAILURE, EXIT_USAGE, UsageError
from ._output import print_names

if TYPE_CHECKING:
    from dasr_ops.train.config import TrainConfig

_USAGE = "dasr train CONFIG [--FIELD VALUE ...], or dasr train --list"


class _Call(NamedTuple):
    """The command line, taken apart."""

    config: str | None
    basicsr: str | None
    dry_run: bool
    overrides: list[str]


def main(argv: Sequence[str]) -> int:
    """Run ``dasr train`` with the arguments ``argv`` and return its exit code."""
    from dasr_ops.train.config_files import presets

    if "--list" in argv:
        print_names(_preset_lines(presets()))
        return 0
    call = _take_apart(argv)
    wants_help = any(argument in ("-h", "--help") for argument in call.overrides)
    if call.config is None and call.basicsr is None and not wants_help:
        raise UsageError(f"expected a preset or a file first: {_USAGE}")
    from dasr_ops.train.config_rules import ConfigError

    try:
        config = _override(_load(call), call)
    except ConfigError as error:
        raise UsageError(str(error)) from None
    except ModuleNotFoundError as error:
        if error.name != "yaml":
            raise
        raise UsageError(str(error)) from None
    return _run(config, call.dry_run)


def _run(config: TrainConfig, dry_run: bool) -> int:
    from dasr_ops.train.config_checks import problems
    from dasr_ops.train.config_files import to_yaml

    if dry_run and _first_process():
        print_names(to_yaml(config).rstrip())
    found = problems(config)
    for line in found:
        print(f"dasr train: error: {line}", file=sys.stderr)
    if found:
        return EXIT_USAGE
    if dry_run:
        return 0
    from dasr_ops.train.config_rules import ConfigError
    from dasr_ops.train.engine import train

    try:
        return train(config)
    except ConfigError as error:
        raise UsageError(str(error)) from None
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("dasr_ops", "torch"):
            raise
        print(f"dasr train: error: {error}", file=sys.stderr)  # an extra that is not installed
        return EXIT_FAILURE


def _take_apart(argv: Sequence[str]) -> _Call:
    """Find CONFIG and the options that are not fields of the settings."""
    arguments = list(argv)
    dry_run, basicsr = False, None
    overrides: list[str] = []
    config = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    while arguments:
        argument = arguments.pop(0)
        name, equals, value = argument.partition("=")
        name = name.replace("_", "-")
        if argument.replace("_", "-") == "--dry-run":
            dry_run = True
        elif name == "--from-basicsr":
            if not equals and (not arguments or arguments[0].startswith("-")):
                raise UsageError("--from-basicsr: expected a YAML file of BasicSR's layout")
            basicsr = value if equals else arguments.pop(0)
        else:
            overrides.append(argument)
    if config is not None and basicsr is not None:
        raise UsageError(f"expected either {config} or --from-basicsr {basicsr}, got both")
    return _Call(config, basicsr, dry_run, overrides)


def _load(call: _Call) -> TrainConfig:
    from dasr_ops.train.config import TrainConfig
    from dasr_ops.train.config_files import load_config

    if call.basicsr is not None:
        from dasr_ops.train.basicsr import load_basicsr

        found = load_basicsr(call.basicsr)
        if _first_process():
            if found.ignored:
                ignored = ", ".join(found.ignored)
                print(f"ignored, without effect here: {ignored}", file=sys.stderr)
            for note in found.notes:
                print(f"note: {note}", file=sys.stderr)
        return found.config
    return TrainConfig() if call.config is None else load_config(call.config)


def _override(config: TrainConfig, call: _Call) -> TrainConfig:
    """Apply the options of the command line.

    Raises:
        ConfigError: a value is out of range.
        SystemExit: from the parser, for help or options that it does not understand.
    """
    from dasr_ops.train.config import TrainConfig
    from dasr_ops.train.config_rules import ConfigError

    _add_help(TrainConfig)
    default, mappings = copy.deepcopy(config), list(_mappings(config))
    for owner, name, _ in mappings:
        # With content, a mapping would be parsed as one option for each of its keys.
        setattr(_part(default, owner), name, {})
    shown = call.config or (f"--from-basicsr {call.basicsr}" if call.basicsr else "CONFIG")
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            result = tyro.cli(
                TrainConfig,
                args=call.overrides,
                default=default,
                prog=f"dasr train {shown}",
                description=_description(),
            )
    except SystemExit as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ConfigError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        sys.stderr.write(messages.getvalue())
        raise
    sys.stderr.write(messages.getvalue())
    given = {argument.partition("=")[0].replace("-", "_") for argument in call.overrides}
    for owner, name, value in mappings:
        if f"__{'.'.join((*owner, name))}" not in given:
            setattr(_part(result, owner), name, value)
    return dataclasses.replace(result)  # checks again, now with the mappings


def _mappings(config: Any, owner: tuple[str, ...] = ()) -> Iterator[tuple[tuple, str, dict]]:
    """Yield the fields that are mappings: the sections they are in, their names and values."""
    for name, value in vars(config).items():
        if isinstance(value, dict):
            yield owner, name, value
        elif dataclasses.is_dataclass(value):
            yield from _mappings(value, (*owner, name))


def _part(config: Any, path: Sequence[str]) -> Any:
    for name in path:
        config = getattr(config, name)
    return config


def _add_help(cls: type) -> None:
    """Hand the docstrings of the fields to tyro as running text; it would keep their line ends."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    body = tree.body  # type: ignore[attr-defined]
    texts = {
        first.target.id: " ".join(second.value.value.split())
        for first, second in itertools.pairwise(body)
        if isinstance(first, ast.AnnAssign)
        and isinstance(second, ast.Expr)
        and isinstance(second.value, ast.Constant)
    }
    for field in dataclasses.fields(cls):
        if "help" not in field.metadata and field.name in texts:
            field.metadata = {**field.metadata, "help": texts[field.name]}
        if dataclasses.is_dataclass(field.default_factory):
            _add_help(field.default_factory)


def _description() -> str:
    from dasr_ops.train.config_files import presets

    return "\n".join(
        (
            "Train a network. CONFIG is a preset, a YAML file, or the folder of a run, which goes "
            "on where it was interrupted. Every option below is a field of the file, and comes "
            "before what the file says.",
            "",
            "presets:",
            _preset_lines(presets()),
            "",
            "further options:",
            "  --dry-run             print all settings as YAML, check that the files they name",
            "                        exist, and do nothing",
            "  --from-basicsr FILE   instead of CONFIG: read the official train_DASR.yml, or one",
            "                        of BasicSR's MSRResNet",
            "  --list                print the presets",
            "",
            "Several GPUs: torchrun --nproc_per_node 4 -m -- dasr_ops train CONFIG ...",
            "",
            "Exit code: 0 finished, 1 failed, 2 wrong settings and nothing done, 130 after Ctrl-C, "
            "143 terminated.",
        )
    )


def _preset_lines(presets: dict[str, str]) -> str:
    width = max(map(len, presets))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in presets.items())


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
