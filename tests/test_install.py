"""Installing and packaging by every usual way, in environments of their own (slow).

Nothing is downloaded but the two small build requirements: an environment borrows the packages of
the running one, torch among them, and a build that asked for torch would fail.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "dasr_ops/_C.abi3.so"
TAG = f"cp310-abi3-linux_{platform.machine()}"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="there is no extension elsewhere"),
]
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="there is no C++ compiler"
)

REPORT = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import dasr_ops
    from dasr_ops import DynamicConv2d
    import dasr_ops.models, dasr_ops.train
import torch
from dasr_ops._extension import extension
layer = DynamicConv2d(4, 6, 3, padding=1, num_experts=2)
input, routing = torch.randn(2, 4, 5, 7), torch.rand(2, 2)
output = layer(input, routing)
with dasr_ops.use_backend("eager"):
    expected = layer(input, routing)
print(json.dumps({
    "package": dasr_ops.__file__,
    "models": dasr_ops.models.__file__,
    "library": extension.path and str(extension.path),
    "info": extension.info,
    "backends": dasr_ops.backends(),
    "warnings": [str(w.message) for w in caught if "dasr_ops" in str(w.message)],
    "error": (output - expected).abs().max().item(),
}))
"""


def run(
    *command: str | Path, cwd: Path, env: dict[str, str], check: bool = True
) -> subprocess.CompletedProcess:
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert not check or result.returncode == 0, result.stdout
    return result


class Environment:
    """A virtual environment that borrows every package of the running one but dasr_ops."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        venv.EnvBuilder(symlinks=True).create(folder)
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.variables = variables
        (self.site,) = (folder / "lib").glob("python*/site-packages")
        for entry in sys.path:
            if Path(entry).name not in ("site-packages", "dist-packages"):
                continue
            for item in Path(entry).iterdir():
                own = item.name.lower().startswith(("dasr", "__editable__", "_virtualenv"))
                link = self.site / item.name
                if not own and item.suffix != ".pth" and not link.exists():
                    link.symlink_to(item)

    def pip(self, *arguments: str | Path, cwd: Path, check: bool = True, **variables: str) -> str:
        command = (self.python, "-m", "pip", *arguments)
        return run(*command, cwd=cwd, env={**self.variables, **variables}, check=check).stdout

    def report(self, cwd: Path) -> dict:
        """What dasr_ops says of itself when it is imported in the folder ``cwd``."""
        output = run(self.python, "-c", REPORT, cwd=cwd, env=self.variables).stdout
        report = json.loads(output.splitlines()[-1])
        assert report["error"] < 1e-4
        return report


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of the builds: quick ones without CUDA, and no index to download from."""
    downloads = tmp_path_factory.mktemp("requirements")
    requires = re.search(r"^requires = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.M)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    result = subprocess.run(
        [*command, str(downloads), *ast.literal_eval(requires.group(1))],
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        pytest.skip(f"the build requirements cannot be had: {result.stderr.strip()[-200:]}")
    others = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CXX", "LDFLAGS", "MAX_JOBS")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in others and not name.startswith(("DASR_OPS_", "PIP_"))
    }
    return {
        **kept,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(downloads),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "DASR_OPS_WITHOUT_CUDA": "1",
        # The kernels are tested elsewhere: here they need only compile.
        "CXXFLAGS": "-O0 -w",
    }


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources without what was built; its path has a space."""
    folder = tmp_path_factory.mktemp("sources") / "check out"
    unwanted = ("build", "dist", "data", "runs", "upscaled", "*.egg-info", "*.so", "__pycache__")
    ignore = shutil.ignore_patterns(".*", *unwanted)

    def ignored(path: str, names: list[str]) -> set[str]:
        # tests/data and the like belong to the sources.
        return ignore(path, names) - (set() if Path(path) == ROOT else {"data", "build", "runs"})

    shutil.copytree(ROOT, folder, symlinks=True, ignore=ignored)
    return folder


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, variables: dict[str, str]) -> Environment:
    return Environment(tmp_path_factory.mktemp("target") / "env", variables)


@pytest.fixture
def installed(target: Environment, tmp_path: Path) -> Iterator[Environment]:
    """The environment, cleared of dasr_ops afterwards."""
    yield target
    target.pip("uninstall", "--yes", "dasr-ops", cwd=tmp_path)


@pytest.fixture
def edited(checkout: Path) -> Iterator[Path]:
    """A source that the test may change."""
    source = checkout / "csrc" / "ops" / "build_info.cpp"
    text = source.read_text()
    yield source
    source.write_text(text)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, checkout: Path, target: Environment) -> Path:
    """The wheel of `pip wheel .`."""
    folder = tmp_path_factory.mktemp("wheel")
    output = target.pip("wheel", "-v", "--no-deps", "-w", folder, ".", cwd=checkout)
    assert f"building against torch {torch.__version__}, without CUDA" in output
    (path,) = folder.iterdir()
    return path


def check_contents(wheel: Path, checkout: Path) -> list[str]:
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name.endswith(f"-{TAG}.whl")
    assert len(names) == len(set(names))
    (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
    assert {name.split("/")[0] for name in names} == {"dasr_ops", info}
    assert [name for name in names if name.endswith((".so", ".pyd", ".dll"))] == [LIBRARY]
    assert "dasr_ops/py.typed" in names
    metadata = zipfile.ZipFile(wheel).read(f"{info}/WHEEL").decode()
    assert f"Tag: {TAG}" in metadata and "Root-Is-Purelib: false" in metadata

    modules = set()
    for folder, prefix in (("dasr_ops", ""), ("models", "models/"), ("train", "train/")):
        for path in (checkout / folder).rglob("*.py"):
            relative = path.relative_to(checkout / folder)
            if folder != "dasr_ops" or relative.parts[0] not in ("models", "train"):
                modules.add(f"dasr_ops/{prefix}{relative.as_posix()}")
    assert {name for name in names if name.endswith(".py")} == modules
    assert {"dasr_ops/models/__init__.py", "dasr_ops/train/__init__.py"} <= modules
    rest = [name for name in names if name not in modules and not name.startswith(info)]
    assert not [name for name in rest if re.search(r"csrc|tests|\.(cpp|cu|cuh|h|pyc|o)$", name)]
    return names


@needs_compiler
def test_pip_install_from_inside_and_outside_the_checkout(
    installed: Environment, checkout: Path, edited: Path, tmp_path: Path
) -> None:
    output = installed.pip("install", "-v", "--no-deps", ".", cwd=checkout)
    assert f"building against torch {torch.__version__}, without CUDA" in output
    own = installed.site / LIBRARY

    outside = installed.report(tmp_path)
    assert outside["package"] == str(installed.site / "dasr_ops" / "__init__.py")
    assert outside["models"] == str(installed.site / "dasr_ops" / "models" / "__init__.py")
    assert outside["info"]["torch"] == torch.__version__ and outside["info"]["cuda"] is None
    inside = installed.report(checkout)
    assert inside["package"] == str(checkout / "dasr_ops" / "__init__.py")
    assert inside["models"].startswith(str(checkout))
    for report in (outside, inside):
        assert report["library"] == str(own)
        assert report["backends"]["cpu"].startswith("available")
        assert report["warnings"] == []
    assert (
        "usage"
        in run(
            installed.folder / "bin" / "dasr", "--help", cwd=tmp_path, env=installed.variables
        ).stdout
    )

    # The checkout moves on: there the binary is stale, elsewhere it is as good as before.
    edited.write_text(edited.read_text() + "// changed\n")
    stale = installed.report(checkout)
    assert stale["backends"]["cpu"].startswith("unavailable")
    (warning,) = stale["warnings"]
    assert "rebuild" in warning and str(own) in warning and "\n" not in warning
    assert installed.report(tmp_path)["backends"]["cpu"].startswith("available")


@needs_compiler
def test_editable_install(
    installed: Environment, checkout: Path, edited: Path, tmp_path: Path
) -> None:
    installed.pip("install", "--no-deps", "-e", ".", cwd=checkout)
    library = checkout / LIBRARY
    try:
        for folder in (checkout, tmp_path):
            report = installed.report(folder)
            assert report["package"] == str(checkout / "dasr_ops" / "__init__.py")
            assert report["models"].startswith(str(checkout))
            assert report["library"] == str(library)
            assert report["backends"]["cpu"].startswith("available")
        edited.write_text(edited.read_text() + "// changed\n")
        assert "rebuild" in installed.report(tmp_path)["backends"]["cpu"]
        installed.pip("install", "--no-deps", "-e", ".", cwd=checkout)
        assert installed.report(tmp_path)["backends"]["cpu"].startswith("available")

        # A damaged library is a reason, not a crash.
        with library.open("r+b") as file:
            file.truncate(library.stat().st_size // 2)
        report = installed.report(tmp_path)
        assert "truncated" in report["backends"]["cpu"] and len(report["warnings"]) == 1
    finally:
        library.unlink()


@needs_compiler
def test_the_wheel_holds_what_it_should_and_works(
    wheel: Path, checkout: Path, installed: Environment, tmp_path: Path
) -> None:
    check_contents(wheel, checkout)
    # Installing a wheel needs no compiler.
    installed.pip("install", "--no-deps", wheel, cwd=tmp_path, PATH=str(tmp_path))
    report = installed.report(tmp_path)
    assert report["library"] == str(installed.site / LIBRARY)
    assert report["backends"]["cpu"].startswith("available")


@needs_compiler
def test_a_package_in_a_zip_file_runs_in_pure_pytorch(
    wheel: Path, target: Environment, tmp_path: Path
) -> None:
    code = f"import sys; sys.path.insert(0, {str(wheel)!r})\n{REPORT}"
    output = run(target.python, "-c", code, cwd=tmp_path, env=target.variables).stdout
    report = json.loads(output.splitlines()[-1])
    assert report["package"].startswith(str(wheel))
    assert "was not built" in report["backends"]["cpu"] and report["error"] == 0


@needs_compiler
def test_build_makes_a_source_distribution_and_a_wheel_of_it(
    wheel: Path, checkout: Path, target: Environment, tmp_path: Path
) -> None:
    pytest.importorskip("build")
    if sys.version_info < (3, 11):
        pytest.skip("the environments of `build` do not name their maker before Python 3.11")
    output = run(
        *(target.python, "-m", "build", "--outdir", tmp_path), cwd=checkout, env=target.variables
    ).stdout
    assert f"building against torch {torch.__version__}, without CUDA" in output
    (built,) = tmp_path.glob("*.whl")
    assert sorted(check_contents(built, checkout)) == sorted(zipfile.ZipFile(wheel).namelist())

    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("csrc", "models", "train", "tests", "benches"):
        for path in (checkout / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(checkout).as_posix() in names
    assert {"pyproject.toml", "setup.py", "LICENSE", "README.md"} <= names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]
    assert not [name for name in names if name.startswith("build/")]


@needs_compiler
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_a_wheel_with_cuda(checkout: Path, installed: Environment, tmp_path: Path) -> None:
    (tmp_path / "wheel").mkdir()
    output = installed.pip(
        *("wheel", "-v", "--no-deps", "-w", tmp_path / "wheel", "."),
        cwd=checkout,
        DASR_OPS_WITHOUT_CUDA="0",
        DASR_OPS_CUDA_ARCHS="8.0+PTX",
    )
    assert re.search(r"building against torch .*, with CUDA \d+\.\d+ for 80 80\+ptx", output)
    (wheel,) = (tmp_path / "wheel").iterdir()
    check_contents(wheel, checkout)
    installed.pip("install", "--no-deps", wheel, cwd=tmp_path)
    report = installed.report(tmp_path)
    assert report["info"]["cuda_archs"] == "80 80+ptx" and report["info"]["cuda"]
    assert report["backends"]["cpu"].startswith("available")
    # What the library needs and asks for is the business of test_wheel.py.
    shutil.copytree(checkout / "tests", tmp_path / "tests")
    command = (installed.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest")
    command += ("-c", os.devnull, "--rootdir", tmp_path, tmp_path / "tests" / "test_wheel.py")
    assert " passed" in run(*command, cwd=tmp_path, env=installed.variables).stdout


@pytest.mark.parametrize("editable", [False, True])
def test_without_a_compiler_everything_runs_in_pure_pytorch(
    installed: Environment, checkout: Path, tmp_path: Path, editable: bool
) -> None:
    (tmp_path / "bin").mkdir()
    arguments = ("-e", ".") if editable else (".",)
    output = installed.pip(
        *("install", "-v", "--no-deps", *arguments), cwd=checkout, PATH=str(tmp_path / "bin")
    )
    assert "no C++ compiler found: dasr_ops will run in pure PyTorch" in output
    report = installed.report(tmp_path)
    assert report["package"].startswith(str(checkout if editable else installed.site))
    assert report["library"] is None
    assert "was not built (no C++ compiler" in report["backends"]["cpu"]
    assert report["backends"]["eager"].startswith("available")
    assert len(report["warnings"]) == 1 and report["error"] == 0


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_a_broken_compiler_is_an_error_that_says_what_to_do(
    target: Environment, checkout: Path, tmp_path: Path, compiler: str
) -> None:
    output = target.pip(
        *("wheel", "--no-deps", "-w", tmp_path, "."), cwd=checkout, check=False, CXX=compiler
    )
    assert not list(tmp_path.iterdir())
    for part in (f"'{compiler}'", "CXX", "DASR_OPS_WITHOUT_CUDA=1", "DASR_OPS_WITHOUT_EXTENSION=1"):
        assert part in output


def test_without_the_extension_no_deleted_module_is_shipped(
    target: Environment, checkout: Path, tmp_path: Path
) -> None:
    surplus = [checkout / "dasr_ops" / "surplus.py", checkout / "models" / "surplus.py"]
    listings = []
    for present in (True, False):
        for path in surplus:
            if present:
                path.write_text("")
            else:
                path.unlink()
        folder = tmp_path / str(present)
        target.pip(
            *("wheel", "--no-deps", "-w", folder, "."), cwd=checkout, DASR_OPS_WITHOUT_EXTENSION="1"
        )
        (wheel,) = folder.iterdir()
        assert wheel.name.endswith("-py3-none-any.whl")
        listings.append(set(zipfile.ZipFile(wheel).namelist()))
    assert listings[0] - listings[1] == {"dasr_ops/surplus.py", "dasr_ops/models/surplus.py"}
    assert not [name for name in listings[1] if name.endswith(".so")]


@needs_compiler
def test_uv_builds_against_the_torch_of_the_active_environment(
    target: Environment, checkout: Path, tmp_path: Path
) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    variables = {
        **target.variables,
        "PATH": f"{target.folder / 'bin'}:{target.variables['PATH']}",
        "VIRTUAL_ENV": str(target.folder),
        "UV_CACHE_DIR": str(tmp_path / "cache"),
    }
    command = (uv, "build", "--wheel", "--no-config", "--offline", "--no-index", "--find-links")
    command += (target.variables["PIP_FIND_LINKS"], "--out-dir", tmp_path / "out")
    output = run(*command, "--python", target.python, cwd=checkout, env=variables).stdout
    assert f"building against torch {torch.__version__}, without CUDA" in output
    (wheel,) = (tmp_path / "out").glob("*.whl")
    check_contents(wheel, checkout)
