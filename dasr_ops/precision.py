"""How exactly the CPU's kernels form float32 products: a switch."""

from __future__ import annotations

CPU_PRECISIONS = ("fast", "precise")
"""What `set_cpu_precision` takes."""

_cpu_precision = "fast"


def set_cpu_precision(precision: str) -> None:
    """Choose how 3x3 and 5x5 convolutions of stride 1 are computed by the CPU's own kernels.

    =====================  ===================  ===================
    against float64        ``"fast"``           ``"precise"``
    =====================  ===================  ===================
    3x3                    Winograd F(4x4,3x3)  Winograd F(2x2,3x3)
    5x5                    Winograd F(2x2,5x5)  direct
    output, max / max |y|  3e-6                 1e-6
    gradients, RMS         at most 2e-6         at most 2e-6
    =====================  ===================  ===================

    These are figures of random pictures and kernels, of normal distribution; of uniform ones
    3.8e-6 was seen. A Winograd tile errs by its largest input: of one bright pixel on black, with
    weights of about 1 or -1, 1.4e-5 and 3.4e-6 were seen (``python benches/cpu_errors.py``, AMD
    EPYC, AVX-512).

    ``"precise"`` is about as exact as direct convolution. ``"fast"`` is the default: it errs by
    about as much as the roundings of a network's other layers, and takes a quarter of the products
    of a direct 3x3 convolution, where ``"precise"`` takes four ninths.

    The choice is one for all threads. It concerns float32 and, since they are computed in float32,
    bfloat16 and float16. Convolutions of other sizes, strides or dilations, and depthwise ones, do
    not ask for it, although the gradient of a strided one's input may consist of such that do; nor
    do other backends and devices (on CUDA, PyTorch's switches of TF32 do what this one does here).
    Backward passes keep to what their forward pass saw, and `torch.compile` compiles again when
    the switch has changed.

    Args:
        precision: ``"fast"`` or ``"precise"``.

    Raises:
        ValueError: ``precision`` is something else.
    """
    global _cpu_precision
    if precision not in CPU_PRECISIONS:
        expected = " or ".join(map(repr, CPU_PRECISIONS))
        raise ValueError(f"set_cpu_precision: precision: expected {expected}, got {precision!r}")
    _cpu_precision = precision


def get_cpu_precision() -> str:
    """Return what `set_cpu_precision` has chosen: ``"fast"`` or ``"precise"``."""
    return _cpu_precision
