"""Every CUDA kernel with inputs to try it on: for a device, the emulation and float64.

A kernel is one entry of `KERNELS`. ``python -m tests.cuda_kernels`` runs the small inputs on a
device, as a program for compute-sanitizer to watch.
"""

from .aggregate import AGGREGATE
from .convolution import CONVOLUTION
from .kernel import Kernel
from .pack import PACK

KERNELS: list[Kernel] = [*AGGREGATE, *PACK, *CONVOLUTION]
