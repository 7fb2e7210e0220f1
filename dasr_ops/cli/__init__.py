"""The command ``dasr``: finds the sub-command, imports it, turns its outcome into an exit code."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from ..version import __version__
from ._output import was_lost

COMMANDS = {
    "upscale": (".upscale", "magnify pictures and videos"),
    "inspect": (".inspect", "show the degradation that the network sees in pictures"),
    "demo": (".demo", "enlarge pictures on a web page, on this computer"),
    "convert": (".convert", "convert weights between .safetensors and pairs of .pth files"),
    "export": (".export", "write networks for other programs: ONNX, torch.export, static ones"),
    "eval": (".evaluate", "score networks or pictures against ground truth"),
    "train": (".train", "train a network"),
    "degrade": (".degrade", "make test sets of degraded pictures"),
    "bench": (".bench", "measure the operator and the networks on this machine"),
}
"""Name of a sub-command: its module, which has ``main(argv) -> int``, and one line of help."""

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class UsageError(Exception):
    """A command line that makes no sense; nothing has been done yet."""


def program(argv: Sequence[str] | None = None) -> NoReturn:
    """Run ``dasr`` as the process, and end it; arguments as of `main`."""
    try:
        code = main(argv)
    except KeyboardInterrupt:  # another one, on the way out
        code = EXIT_INTERRUPTED
    with suppress(KeyboardInterrupt):
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            # What Python and PyTorch still have to do should not end in a traceback.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dasr``.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        0: all went well. 1: something failed. 2: the command line is wrong, and nothing was done.
        130: interrupted by Ctrl-C. 143: terminated. 129: the terminal was closed.
    """
    _open_closed_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        print(f"dasr-ops {__version__}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else EXIT_USAGE
    name, *rest = arguments
    was_lost()  # of a former call in this process
    if name not in COMMANDS:
        print(f"dasr: error: unknown command {name!r}; see dasr --help", file=sys.stderr)
        return EXIT_USAGE
    try:
        with _termination_as_exception():
            code = importlib.import_module(COMMANDS[name][0], __name__).main(rest)
            return code or (EXIT_FAILURE if was_lost() else 0)
    except UsageError as error:
        print(f"dasr {name}: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(f"dasr {name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except SystemExit as error:  # from the parser of arguments: help, or a usage error
        return error.code if isinstance(error.code, int) else EXIT_USAGE


def _open_closed_streams() -> None:
    """Let what is printed to a stream that was closed before the start go nowhere.

    Python has None in its place, which programs that write to it do not expect.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return "\n".join(
        (
            "usage: dasr COMMAND [...]",
            "",
            "Degradation-adaptive super-resolution of real-world pictures.",
            "",
            "commands:",
            *lines,
            "",
            "dasr COMMAND --help explains a command, dasr --version prints the version.",
        )
    )


@contextmanager
def _termination_as_exception() -> Iterator[None]:
    """Let SIGTERM and a closed terminal unwind the stack, so that temporary files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = {}
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):  # not every system has all of them
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores
            previous[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
