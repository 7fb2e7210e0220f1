"""Networks for other programs: ONNX, `torch.export`, AOTInductor, static networks, spandrel."""

from __future__ import annotations

from ._common import ExportError
from ._onnx import Agreement, export_onnx

__all__ = ["Agreement", "ExportError", "export_onnx"]
