"""The compiled extension: what it needs, asks for and exports, and how the package picks it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from dasr_ops._extension import (
    FILE_NAME,
    HASH_MARKER,
    Extension,
    embedded_hash,
    extension,
    find_library,
)
from dasr_ops._sources import source_hash

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
# The oldest supported torch has no others to offer.
STABLE_ABI = ROOT / "tests" / "data" / "stable_abi_2_11.txt"
STREAM = "aoti_torch_get_current_cuda_stream"

needs_library = pytest.mark.skipif(
    not extension.loaded, reason=f"the extension is not loaded: {extension.reason}"
)
needs_readelf = pytest.mark.skipif(shutil.which("readelf") is None, reason="there is no readelf")


def readelf(*arguments: str) -> str:
    command = ["readelf", "--wide", *arguments, str(extension.path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def dynamic_symbols() -> list[tuple[str, str, bool]]:
    """Name, binding, and whether it is defined, of each symbol that the loader sees."""
    symbols = []
    for line in readelf("--dyn-syms").splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[0].rstrip(":").isdecimal():
            symbols.append((fields[7].partition("@")[0], fields[4], fields[6] != "UND"))
    assert symbols
    return symbols


@needs_library
@needs_readelf
def test_needs_libtorch_and_nothing_of_python_or_cuda() -> None:
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("--dynamic")))
    torch = {"libtorch.so", "libtorch_cpu.so", "libc10.so"}
    assert torch <= needed
    system = r"lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|c\+\+|c\+\+abi|unwind)\.so\.\d+|ld-linux.*"
    assert [name for name in needed - torch if not re.fullmatch(system, name)] == []


@needs_library
@needs_readelf
def test_carries_no_search_path() -> None:
    assert not re.search(r"\((RPATH|RUNPATH)\)", readelf("--dynamic"))


@needs_library
@needs_readelf
def test_asks_libtorch_only_for_what_the_oldest_one_exports() -> None:
    lines = STABLE_ABI.read_text().splitlines()
    exported = {line for line in lines if not line.startswith("#")}
    undefined = {(name, binding) for name, binding, defined in dynamic_symbols() if not defined}
    asked = {
        name
        for name, binding in undefined
        if binding == "GLOBAL" and re.match(r"(aoti_)?torch_|_Z\w*(2at|3c10|5torch)\d", name)
    }
    assert "torch_call_dispatcher" in asked
    assert asked - exported == set()
    weak = {name for name, binding in undefined if binding == "WEAK" and "torch" in name}
    assert weak == ({STREAM} if extension.info["cuda"] else set())
    assert not {name for name, _ in undefined if re.match(r"_?Py[A-Z_]", name)}


@needs_library
@needs_readelf
def test_exports_its_own_names_alone() -> None:
    exported = {name for name, _, defined in dynamic_symbols() if defined}
    assert {"dasr_ops_build_info", "dasr_ops_cuda_driver_version"} <= exported
    assert [name for name in exported if not name.startswith("dasr_ops_")] == []


@needs_library
def test_abi3audit_passes() -> None:
    if importlib.util.find_spec("abi3audit") is None:
        pytest.skip("abi3audit is not installed")
    command = [sys.executable, "-m", "abi3audit", "--strict", "--verbose"]
    command += ["--assume-minimum-abi3", "3.10", str(extension.path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 ABI version mismatches and 0 ABI violations" in " ".join(
        (result.stdout + result.stderr).split()
    )


@needs_library
def test_is_built_from_the_sources_at_hand() -> None:
    if not (CSRC / "ops").is_dir():
        pytest.skip("there are no sources beside the tests")
    assert embedded_hash(extension.path) == source_hash(CSRC)


def test_source_hash_sees_names_and_contents_but_not_the_emulation(tmp_path: Path) -> None:
    for name in ("ops/a.cpp", "cuda/b.cu", "emulation/c.h", "dasr_ops_build/d.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("x")
    before = source_hash(tmp_path)
    (tmp_path / "emulation" / "c.h").write_text("y")
    (tmp_path / "dasr_ops_build" / "d.py").write_text("y")
    assert source_hash(tmp_path) == before
    (tmp_path / "cuda" / "b.cu").write_text("y")
    changed = source_hash(tmp_path)
    (tmp_path / "cuda" / "b.cu").rename(tmp_path / "cuda" / "c.cu")
    assert len({before, changed, source_hash(tmp_path)}) == 3


def library(folder: Path, contents_hash: str | None) -> Path:
    """A file that passes for a complete library, without being one that loads."""
    body = b"" if contents_hash is None else HASH_MARKER + contents_hash.encode() + b"\0"
    sections = bytes(2 * 64)
    header = bytearray(64)
    header[:5] = b"\x7fELF\x02"
    struct.pack_into("<Q", header, 0x28, len(header) + len(body))
    struct.pack_into("<HH", header, 0x3A, 64, 2)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    path.write_bytes(bytes(header) + body + sections)
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "checkout" / "csrc" / "dasr_ops_build").mkdir(parents=True)
    (tmp_path / "checkout" / "csrc" / "a.cpp").write_text("int a;")
    return tmp_path / "checkout"


def refusal(package_dir: Path) -> str:
    with pytest.raises(RuntimeError) as caught:
        find_library(package_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_installed_package_trusts_its_own_library_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = library(tmp_path / "other" / "dasr_ops", "0" * 32)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "other"), str(tmp_path / "site")])
    package = tmp_path / "site" / "dasr_ops"
    assert "was not built" in refusal(package)
    assert find_library(other.parent) == other
    own = library(package, "1" * 32)
    assert find_library(package) == own


def test_a_checkout_takes_the_first_library_built_from_its_sources(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = checkout / "dasr_ops"
    sites = [tmp_path / "first", tmp_path / "second"]
    monkeypatch.setattr(sys, "path", [str(checkout), *map(str, sites)])
    assert "was not built" in refusal(package)
    stale = library(sites[0] / "dasr_ops", "0" * 32)
    reason = refusal(package)
    assert str(stale) in reason and "rebuild" in reason and "other sources" in reason
    good = library(sites[1] / "dasr_ops", source_hash(checkout / "csrc"))
    assert find_library(package) == good
    own = library(package, source_hash(checkout / "csrc"))
    assert find_library(package) == own
    (checkout / "csrc" / "a.cpp").write_text("int b;")
    assert str(own) in refusal(package)


@pytest.mark.parametrize("length", [0, 4, 63, 64, 150, -1])
def test_a_truncated_library_is_refused_before_it_is_loaded(tmp_path: Path, length: int) -> None:
    whole = library(tmp_path, "0" * 32)
    assert find_library(tmp_path) == whole
    whole.write_bytes(whole.read_bytes()[:length])
    assert "truncated" in refusal(tmp_path)


@needs_library
def test_the_real_library_is_complete_and_less_of_it_is_not(tmp_path: Path) -> None:
    shutil.copy(extension.path, tmp_path / FILE_NAME)
    assert find_library(tmp_path) == tmp_path / FILE_NAME
    with (tmp_path / FILE_NAME).open("r+b") as file:
        file.truncate(extension.path.stat().st_size - 1)
    assert "truncated" in refusal(tmp_path)


def test_a_foreign_library_is_refused(tmp_path: Path) -> None:
    library(tmp_path, None)
    assert "no extension of dasr_ops" in refusal(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no extension elsewhere")
def test_a_library_that_does_not_load_is_a_reason_not_an_error(tmp_path: Path) -> None:
    path = library(tmp_path, "0" * 32)
    outcome = Extension(tmp_path)
    assert not outcome.loaded and outcome.cuda_driver_version() is None
    assert outcome.reason.startswith(f"{path} does not load with torch ")
    assert "\n" not in outcome.reason


def test_unreadable_sources_are_a_reason_not_an_error(checkout: Path) -> None:
    library(checkout / "dasr_ops", "0" * 32)
    (checkout / "csrc" / "folder.cpp").mkdir()
    outcome = Extension(checkout / "dasr_ops")
    assert not outcome.loaded and "folder.cpp" in outcome.reason


def test_a_package_in_a_zip_file_or_in_no_file_has_no_library(tmp_path: Path) -> None:
    (tmp_path / "package.zip").write_bytes(b"PK")
    for folder in (tmp_path / "package.zip" / "dasr_ops", tmp_path / "missing" / "dasr_ops"):
        assert "was not built" in Extension(folder).reason


def test_a_deleted_working_folder_and_odd_search_paths_do_no_harm(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    os.rmdir(tmp_path / "gone")
    monkeypatch.setattr(sys, "path", ["", b"bytes", str(tmp_path / "a file"), "/proc/nowhere"])
    (tmp_path / "a file").write_text("")
    assert "was not built" in Extension(checkout / "dasr_ops").reason


@pytest.mark.parametrize("name", ["darwin", "win32"])
def test_other_systems_have_no_extension(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    library(tmp_path, "0" * 32)
    monkeypatch.setattr(sys, "platform", name)
    assert Extension(tmp_path).reason == f"the extension is not built on {name}"


@needs_library
def test_the_build_tells_what_it_was_made_with() -> None:
    assert set(extension.info) == {"torch", "cuda", "cuda_archs", "cpu_isa"}
    assert re.match(r"\d+\.\d+", extension.info["torch"])
    assert (extension.info["cuda"] is None) == (extension.info["cuda_archs"] is None)
    assert extension.cuda_driver_version() >= 0
    if extension.info["cuda"] is None:
        assert extension.cuda_driver_version() == 0
