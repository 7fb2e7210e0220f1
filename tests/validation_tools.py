"""What the tests of benches/validate_gpu.py share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

BENCHES = Path(__file__).resolve().parents[1] / "benches"
sys.path.insert(0, str(BENCHES))
try:
    import validate_gpu
    from validation import facts, parts, report, runner, suite
    from validation.runner import Session
finally:
    sys.path.remove(str(BENCHES))

__all__ = ["facts", "parts", "report", "runner", "suite", "validate_gpu"]


def new_session(folder: Path) -> Session:
    for name in ("root", "folder", "scratch"):
        (folder / name).mkdir()
    folders = [folder / name for name in ("root", "folder", "scratch")]
    return Session(*folders, limit=600, save=report.save, say=lambda text: None)


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
