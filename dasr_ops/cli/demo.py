"""``dasr demo``: a web page on this computer that enlarges pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from . import EXIT_FAILURE, UsageError
from ._about import about
from ._weights import NAMES_HELP, every, find, load_networks


@dataclass(frozen=True)
class Demo:
    """Enlarge pictures on a web page, on this computer, without the internet.

    Prints the address of the page and serves it until Ctrl-C. Uploaded pictures and results are
    temporary files: an upload is removed once it is read, or after some minutes if it never is,
    results when the page is closed, and everything at the end.

    Exit code: 130 after Ctrl-C, 1 if something failed, 2 if the command line is wrong or the port
    is taken.
    """

    host: Annotated[
        str,
        about(
            "Address to listen on. 0.0.0.0 lets everybody who reaches this computer over the "
            "network use the page."
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int | None, about("Port to listen on. Default: the first free one from 7860 on.")
    ] = None
    weights: Annotated[
        tuple[Path, ...],
        about(
            f"Weights, of which the page offers a choice: {NAMES_HELP}, .safetensors files, and "
            "pairs of .pth files of G and P. Default: all of the package."
        ),
    ] = ()
    device: Annotated[str | None, about("cpu, cuda, cuda:1, mps. Default: the best there is.")] = (
        None
    )
    tile: Annotated[
        int,
        about(
            "Side of the square that the network sees at a time, in pixels of the input; 0: the "
            "whole picture. Less takes less memory."
        ),
    ] = 256
    open: Annotated[bool, about("Open the page in the browser.")] = False


def main(argv: Sequence[str]) -> int:
    """Run ``dasr demo`` with the arguments ``argv`` and return its exit code."""
    options = tyro.cli(Demo, args=list(argv), prog="dasr demo")
    if options.port is not None and not 0 <= options.port <= 65535:
        raise UsageError(f"--port {options.port}: expected 0 to 65535")
    if options.tile < 0 or 0 < options.tile <= 32:
        raise UsageError(f"--tile {options.tile}: expected 0 or more than 32")
    from dasr_ops.demo.server import ServerError, check_gradio, serve

    try:
        check_gradio()
        models = load_networks(find(options.weights) or every())
        serve(
            models,
            host=options.host,
            port=options.port,
            device=options.device,
            tile=options.tile,
            open_browser=options.open,
        )
    except ServerError as error:
        raise UsageError(str(error)) from None
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        print(f"dasr demo: error: {lines[0]}", file=sys.stderr)
        return EXIT_FAILURE
    return 0
