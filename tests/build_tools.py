"""What the tests of the build share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

needs_posix = pytest.mark.skipif(os.name != "posix", reason="the scripts need a POSIX shell")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("DASR_OPS_") or name in (
            *("CUDA_HOME", "CUDA_PATH", "CXX", "CXXFLAGS", "LDFLAGS", "MAX_JOBS", "VIRTUAL_ENV"),
        ):
            monkeypatch.delenv(name)


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path
