"""Builds variants and prints where they are."""

import sys

from . import build

print(*(build(variant) for variant in sys.argv[1:] or ["address"]), sep="\n")
