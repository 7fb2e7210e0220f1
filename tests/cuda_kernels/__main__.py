"""Runs the small inputs of every kernel on a device."""

import sys

from . import KERNELS
from .kernel import errors


def main() -> int:
    """Run the small cases on the device and say how far the results are off."""
    import dasr_ops

    print(dasr_ops.backends()["cuda"])
    status = 0
    for kernel in KERNELS:
        for case in kernel.small:
            inputs = kernel.inputs(*case)
            outputs = {name: value.cpu() for name, value in kernel.device(inputs).items()}
            worst = max(errors(kernel, inputs, outputs).values())
            print(f"{kernel.launcher} {case}: {worst:.3g} of the bound", flush=True)
            status |= worst > 1
    return status


if __name__ == "__main__":
    sys.exit(main())
