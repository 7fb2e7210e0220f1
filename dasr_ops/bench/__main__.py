"""``python -m dasr_ops.bench``: the same as ``dasr bench``."""

import sys

from dasr_ops.cli import program

if __name__ == "__main__":
    program(["bench", *sys.argv[1:]])
