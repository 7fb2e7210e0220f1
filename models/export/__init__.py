"""Networks for other programs: ONNX, `torch.export`, AOTInductor, static networks, spandrel.

`dasr_ops.models.export.spandrel` describes our files to spandrel.
"""

from __future__ import annotations

from ._check import Agreement
from ._common import ExportError
from ._degradation import choose_degradation
from ._merged import degradation_metadata, merge, save_merged
from ._onnx import export_onnx
from ._program import export_aoti, export_program

__all__ = [
    "Agreement",
    "ExportError",
    "choose_degradation",
    "degradation_metadata",
    "export_aoti",
    "export_onnx",
    "export_program",
    "merge",
    "save_merged",
]
