"""Triton's kernels on machines without a GPU: interpreted, on CPU tensors.

Imported before anything else: Triton decides when a kernel is defined whether it is interpreted.
The variable does not stay set, so that other processes are as users have them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pytest

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


def clean() -> dict[str, str]:
    """The environment without what interprets kernels."""
    return {name: value for name, value in os.environ.items() if name != VARIABLE}


def mend_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the interpreter treat bfloat16 as devices do.

    It holds such numbers as integers, which `tl.dot` multiplies (triton issue 11584), and cuts off
    digits where devices round to the nearest.
    """
    from triton.runtime import interpreter

    builder, handle_of, tl = (
        interpreter.InterpreterBuilder,
        interpreter.TensorHandle,
        interpreter.tl,
    )
    dot, cast = builder.create_dot, builder.cast_impl

    def wide(self: Any, handle: Any) -> Any:
        return cast(self, handle, tl.float32) if handle.dtype == tl.bfloat16 else handle

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, wide(self, a), wide(self, b), *rest)

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        if to.scalar != tl.bfloat16 or source.dtype.scalar not in (tl.float32, tl.float64):
            return cast(self, source, to)
        source = cast(self, source, tl.float32)
        bits = np.ascontiguousarray(source.data).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return handle_of(
            np.where(np.isnan(source.data), 0x7FC0, rounded).astype(np.uint16), tl.bfloat16
        )

    monkeypatch.setattr(builder, "create_dot", create_dot)
    for name, method in vars(builder).items():
        # Others call it by its name.
        if method is cast:
            monkeypatch.setattr(builder, name, cast_impl)


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
