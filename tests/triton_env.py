"""Triton's kernels on machines without a GPU: interpreted, on CPU tensors.

Imported before anything else: Triton decides when a kernel is defined whether it is interpreted.
The variable does not stay set, so that other processes are as users have them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def mend_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Widens bfloat16 operands of `tl.dot`: the interpreter holds them as integers (issue 11584)."""
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    dot = builder.create_dot

    def wide(handle: Any) -> Any:
        if handle.dtype != interpreter.tl.bfloat16:
            return handle
        data = interpreter._convert_float(
            handle.data, interpreter.tl.bfloat16, interpreter.tl.float32, None
        )
        return interpreter.TensorHandle(data.view("float32"), interpreter.tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, wide(a), wide(b), *rest)

    monkeypatch.setattr(builder, "create_dot", create_dot)


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
