"""The build in csrc/dasr_ops_build: which torch it builds against, and what it requires."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from dasr_ops_build import backend, torch_location
from dasr_ops_build.torch_location import Torch

import dasr_ops
from tests.build_tools import needs_posix, plain_environment, script  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]


def torch_folder(folder: Path, version: str = "2.11.0+cpu", stable: bool = True) -> Path:
    """A folder that passes for torch."""
    torch = folder / "torch"
    (torch / "include" / "torch" / "csrc" / ("stable" if stable else "api")).mkdir(parents=True)
    (torch / "version.py").write_text(f"from typing import Optional\n__version__ = '{version}'\n")
    (torch / "__init__.py").write_text("raise ImportError('torch is not to be imported')\n")
    return torch


def python(path: Path, torch: Path) -> Path:
    """A file that passes for the interpreter of an environment with that torch."""
    (path.parents[1] / "pyvenv.cfg").parent.mkdir(parents=True, exist_ok=True)
    (path.parents[1] / "pyvenv.cfg").write_text("home = /usr/bin\n")
    return script(path, f'[ "$1" = -E ] && echo {shlex.quote(str(torch / "__init__.py"))}')


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment from which no torch can be found; returns a place for one."""
    if os.name != "posix":
        pytest.skip("the scripts need a POSIX shell")
    (tmp_path / "empty").mkdir()
    (tmp_path / "prefix").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "empty")])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "empty" / "python"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(tmp_path / "empty")
    assert torch_location.find_torch() is None
    return tmp_path / "the target"


def test_torch_named_by_the_variable(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = torch_folder(nowhere)
    monkeypatch.setenv("DASR_OPS_TORCH_DIR", str(torch))
    assert torch_location.find_torch() == Torch(torch, "2.11.0+cpu")
    monkeypatch.setenv("DASR_OPS_TORCH_DIR", str(nowhere))
    with pytest.raises(ValueError, match=r"DASR_OPS_TORCH_DIR: expected .* torch >= 2\.11"):
        torch_location.find_torch()


def test_torch_on_the_search_path(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = torch_folder(nowhere)
    monkeypatch.setattr(sys, "path", [*sys.path, str(nowhere)])
    assert torch_location.find_torch().folder == torch


def test_torch_of_the_same_interpreter_without_the_isolation(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = torch_folder(nowhere)
    monkeypatch.setattr(sys, "executable", str(python(nowhere / "bin" / "python", torch)))
    assert torch_location.find_torch().folder == torch


def test_torch_of_the_maker_of_the_build_environment(nowhere: Path) -> None:
    torch = torch_folder(nowhere)
    maker = python(nowhere / "bin" / "python3", torch)
    config = Path(sys.prefix) / "pyvenv.cfg"
    config.write_text(f"home = /usr/bin\nversion = 3.12\ncommand = {maker} -m venv {sys.prefix}\n")
    assert torch_location.find_torch().folder == torch
    config.write_text("home = /usr/bin\ncommand = gibberish\n")
    assert torch_location.find_torch() is None


@pytest.mark.parametrize("way", ["active", "on the path", "in the project"])
def test_torch_of_the_active_environment(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    torch = torch_folder(nowhere)
    environment = Path(".venv").absolute() if way == "in the project" else nowhere
    python(environment / "bin" / "python", torch)
    if way == "active":
        monkeypatch.setenv("VIRTUAL_ENV", str(nowhere))
    elif way == "on the path":
        monkeypatch.setenv("PATH", f"/usr/bin:{nowhere / 'bin'}:/bin")
    assert torch_location.find_torch().folder == torch


@pytest.mark.parametrize("version", ["2.10.1", "1.13.1", "2.9.0+cu128", "unknown"])
def test_a_torch_of_no_use_is_passed_over(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(sys, "path", [str(nowhere / "old")])
    torch_folder(nowhere / "old", version)
    assert torch_location.find_torch() is None
    good = torch_folder(nowhere / "good", "2.13.0a0+git1234")
    monkeypatch.setenv("VIRTUAL_ENV", str(nowhere))
    python(nowhere / "bin" / "python", good)
    assert torch_location.find_torch() == Torch(good, "2.13.0a0+git1234")
    assert torch_location.find_torch().release == (2, 13)


def test_a_torch_without_headers_is_passed_over(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(nowhere)])
    torch = torch_folder(nowhere, stable=False)
    assert torch_location.find_torch() is None
    (torch / "include" / "torch" / "csrc" / "stable").mkdir()
    assert torch_location.find_torch().folder == torch
    (torch / "version.py").unlink()
    assert torch_location.find_torch() is None


# The hooks that pip and other frontends call.


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("get_requires_for_build_wheel", "get_requires_for_build_editable"):
        monkeypatch.setattr(backend.build_meta, name, lambda settings: ["others"])
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("CXX", "g++")
    monkeypatch.setattr(backend, "find_torch", lambda: None)
    return backend


def requirements(hooks: ModuleType) -> list[str]:
    wheel, editable = hooks.get_requires_for_build_wheel(), hooks.get_requires_for_build_editable()
    assert wheel == editable and wheel[0] == "others"
    return wheel[1:]


def test_torch_is_a_build_requirement_only_where_there_is_none(
    hooks: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert requirements(hooks) == ["torch>=2.11"]
    assert "no installed torch >= 2.11 found" in capsys.readouterr().out
    monkeypatch.setattr(hooks, "find_torch", lambda: Torch(ROOT, "2.11.0"))
    assert requirements(hooks) == []


def test_torch_is_no_build_requirement_where_nothing_is_compiled(
    hooks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASR_OPS_WITHOUT_EXTENSION", "1")
    assert requirements(hooks) == []
    monkeypatch.delenv("DASR_OPS_WITHOUT_EXTENSION")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    assert requirements(hooks) == []
    monkeypatch.setenv("CXX", "g++")
    assert requirements(hooks) == ["torch>=2.11"]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert requirements(hooks) == []


def test_the_backend_has_every_hook() -> None:
    for kind in ("wheel", "editable"):
        for hook in (f"build_{kind}", f"prepare_metadata_for_build_{kind}"):
            assert callable(getattr(backend, hook))
    assert callable(backend.build_sdist) and callable(backend.get_requires_for_build_sdist)


def test_setup_py_tells_the_version_without_torch_or_compilers() -> None:
    pytest.importorskip("setuptools", minversion="77")  # as pyproject.toml says
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['setup.py', '--version'];"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    environment = {**os.environ, "PATH": "", "DASR_OPS_TORCH_DIR": "/nowhere"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == dasr_ops.__version__
