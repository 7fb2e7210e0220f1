"""``python -m dasr_ops.bench``: the same as ``dasr bench``."""

import sys

from dasr_ops.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
