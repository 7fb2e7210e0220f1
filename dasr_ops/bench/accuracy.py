"""How exact a formulation must be before its time is taken.

The bounds follow from the arithmetic. u is the unit roundoff of the operands' type, n the number of
products in a sum.

- float32: rounding errors of a sum of n terms add up like a random walk, to sqrt(n) u; 3e-6 of the
  largest value is what Winograd's F(4x4, 3x3) adds.
- TF32: each product errs by up to 2 u, u = 2^-11, and errors average out like the values do.
- bfloat16, float16: one rounding each of the mixed kernel, the convolution and what follows it.
"""

from __future__ import annotations

from torch import Tensor

_ROUNDOFF = {"float32": 2.0**-24, "tfloat32": 2.0**-11, "bfloat16": 2.0**-8, "float16": 2.0**-11}
_WINOGRAD = 3e-6


def bound(dtype: str, terms: int) -> float:
    """Return the relative error that results and gradients may have.

    Args:
        dtype: a key of `dasr_ops.bench.cases.DTYPES`.
        terms: n, the number of products in the longest sum.
    """
    u = _ROUNDOFF[dtype]
    accumulation = 2 * terms**0.5 * 2.0**-24
    operands = {"float32": _WINOGRAD, "tfloat32": 2 * u}.get(dtype, 3 * u)
    return max(accumulation, operands)


def max_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest error relative to the largest expected value; inf for NaN."""
    error = (actual.double() - expected).abs().max().item()
    scale = expected.abs().max().item()
    return error / scale if error == error and scale > 0 else _degenerate(error)


def rms_error(actual: Tensor, expected: Tensor) -> float:
    """Return the root mean square error relative to that of the expected values."""
    error = (actual.double() - expected).norm().item()
    scale = expected.norm().item()
    return error / scale if error == error and scale > 0 else _degenerate(error)


def _degenerate(error: float) -> float:
    return 0.0 if error == 0 else float("inf")
