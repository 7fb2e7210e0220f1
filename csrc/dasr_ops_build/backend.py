"""The PEP 517 backend: setuptools, plus torch as a build requirement only where none is installed.

A build requirement on torch would download gigabytes into every isolated build, and of a version
that need not be the installed one.
"""

from __future__ import annotations

from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

from .extension import extensions
from .host import find_compiler
from .torch_location import MINIMUM, find_torch


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """Return what building a wheel needs."""
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """Return what building an editable install needs."""
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_requirement()


def _torch_requirement() -> list[str]:
    if not extensions() or find_compiler() is None or find_torch() is not None:
        return []
    version = ".".join(map(str, MINIMUM))
    print(f"dasr_ops: no installed torch >= {version} found, asking for one to build against")
    return [f"torch>={version}"]
