"""Triton's kernels on machines without a GPU: interpreted, on CPU tensors.

Imported before anything else: Triton decides when a kernel is defined whether it is interpreted.
The variable does not stay set, so that other processes are as users have them.
"""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "TRITON_INTERPRET"


def _has_gpu() -> bool:
    # torch would have to be imported to ask it.
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def missing() -> str | None:
    """Why kernels cannot be interpreted in this process, or None."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return "triton is not installed"
    from dasr_ops._backends.triton import INTERPRETED

    if not INTERPRETED:
        return f"kernels run on the device; {VARIABLE}=1 interprets them"
    return None


def _interpret() -> None:
    given = os.environ.get(VARIABLE)
    if given is None and not _has_gpu():
        os.environ[VARIABLE] = "1"
    try:
        # Some versions import this at the first call, and there look at the variable.
        import triton.experimental.gluon  # noqa: F401

        import dasr_ops._backends.triton.operators  # noqa: F401
    except ImportError:
        return
    finally:
        if given is None:
            os.environ.pop(VARIABLE, None)


_interpret()
