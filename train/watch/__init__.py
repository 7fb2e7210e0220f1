"""Watching a run: progress, logs, TensorBoard, pictures, validation."""

from .log import RunLog
from .validation import Validation

__all__ = ["RunLog", "Validation"]
