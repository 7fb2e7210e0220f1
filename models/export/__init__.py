"""Networks for other programs: ONNX, `torch.export`, AOTInductor, static networks, spandrel."""

from __future__ import annotations

from ._check import Agreement
from ._common import ExportError
from ._onnx import export_onnx
from ._program import export_aoti, export_program

__all__ = ["Agreement", "ExportError", "export_aoti", "export_onnx", "export_program"]
