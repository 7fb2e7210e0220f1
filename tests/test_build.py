"""The build in csrc/dasr_ops_build: what it finds, asks for, and tells the compilers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dasr_ops_build import cuda, extension, host, ninja_file
from dasr_ops_build.cuda import CudaUnavailable, Toolkit
from dasr_ops_build.host import Compiler
from dasr_ops_build.torch_location import Torch

from tests.build_tools import needs_posix, plain_environment, script  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]


# What the GPU architectures are.


@pytest.mark.parametrize(
    ("text", "archs"),
    [
        ("8.0;9.0a;9.0+PTX", ["80", "90a", "90+ptx"]),
        ("80 90a 90+ptx", ["80", "90a", "90+ptx"]),
        ("8.6+PTX", ["86", "86+ptx"]),
        ("8.0, 8.6;8.6", ["80", "86"]),
        ("9.0a;9.0", ["90a", "90"]),
        ("10.0;12.0f;120+ptx", ["100", "120f", "120+ptx"]),
    ],
)
def test_architectures_parse(text: str, archs: list[str]) -> None:
    assert cuda.parse_archs(text) == archs


@pytest.mark.parametrize(
    "junk", ["volta", "8.0;ninety", "8.", "8.0+sass", "9", "8.0a5", "-80", ";"]
)
def test_junk_for_architectures_is_named(junk: str) -> None:
    with pytest.raises(ValueError, match="DASR_OPS_CUDA_ARCHS: expected architectures like"):
        cuda.parse_archs(junk)


def test_flags_for_machine_code_and_ptx() -> None:
    assert cuda.gencode_flags(["90a", "90+ptx"]) == [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90,code=compute_90",
    ]


def toolkit(root: Path, version: str = "13.0", known: str = "80 86 89 90 100 120") -> Path:
    """A folder that passes for a CUDA toolkit."""
    codes = "\\n".join(f"sm_{arch}" for arch in known.split())
    script(
        root / "bin" / "nvcc",
        'case "$1" in\n'
        f'--version) echo "Cuda compilation tools, release {version}, V{version}.1";;\n'
        f'--list-gpu-code) printf "{codes}\\n";;\n'
        "*) exit 0;;\nesac",
    )
    (root / "lib64").mkdir(exist_ok=True)
    (root / "lib64" / "libcudart_static.a").write_bytes(b"")
    return root


@pytest.fixture
def cuda_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toolkit as CUDA_HOME, and nothing but it on the path."""
    root = toolkit(tmp_path / "cuda tools")
    monkeypatch.setenv("CUDA_HOME", str(root))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    script(tmp_path / "bin" / "nvidia-smi", "exit 9")
    return root


@needs_posix
@pytest.mark.parametrize(
    ("devices", "archs"),
    [
        ("8.0", ["80", "80+ptx"]),
        ("9.0\\n8.6\\n9.0", ["86", "90a", "86+ptx"]),
        ("12.0", ["120", "120+ptx"]),
        ("7.5", list(cuda.DEFAULT_ARCHS)),
        ("13.0", list(cuda.DEFAULT_ARCHS)),
        ("[N/A]", list(cuda.DEFAULT_ARCHS)),
    ],
)
def test_the_gpus_at_hand_are_compiled_for(
    tmp_path: Path, cuda_home: Path, devices: str, archs: list[str]
) -> None:
    script(tmp_path / "bin" / "nvidia-smi", f'printf "{devices}\\n"')
    assert cuda.choose_archs(cuda.find_toolkit()) == archs


@needs_posix
def test_without_a_gpu_the_variable_or_the_default_decides(
    cuda_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cuda.choose_archs(cuda.find_toolkit()) == list(cuda.DEFAULT_ARCHS)
    monkeypatch.setenv("DASR_OPS_CUDA_ARCHS", "all")
    assert cuda.choose_archs(cuda.find_toolkit()) == list(cuda.RELEASE_ARCHS)
    toolkit(cuda_home, known="80 86 89 90")
    assert cuda.choose_archs(cuda.find_toolkit()) == ["80", "86", "89", "90a"]
    monkeypatch.setenv("DASR_OPS_CUDA_ARCHS", "8.9")
    assert cuda.choose_archs(cuda.find_toolkit()) == ["89"]


# The CUDA toolkit.


@needs_posix
def test_the_toolkit_of_cuda_home(cuda_home: Path) -> None:
    found = cuda.find_toolkit()
    assert found == Toolkit(cuda_home, "13.0", cuda_home / "lib64")
    assert found.nvcc.is_file()


@needs_posix
def test_the_toolkit_behind_a_wrapper_on_the_path(
    tmp_path: Path, cuda_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_HOME")
    script(tmp_path / "bin" / "nvcc", f'echo "#$ _HERE_=x" >&2; echo "#$ TOP={cuda_home}" >&2')
    assert cuda.find_toolkit().root == cuda_home


@needs_posix
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda root: toolkit(root, version="11.8"), "CUDA 11.8 in .* is older than 12.0"),
        (lambda root: script(root / "bin" / "nvcc", "exit 1"), "does not run"),
        (lambda root: (root / "bin" / "nvcc").write_text("junk"), "does not run"),
        (lambda root: (root / "bin" / "nvcc").unlink(), "CUDA_HOME is .* has no bin/nvcc"),
        (lambda root: shutil.rmtree(root / "lib64"), r"no libcudart_static\.a"),
    ],
)
def test_an_unusable_toolkit_is_said_and_left_out(
    cuda_home: Path, capsys: pytest.CaptureFixture, damage: object, reason: str
) -> None:
    damage(cuda_home)
    with pytest.raises(CudaUnavailable, match=reason):
        cuda.find_toolkit()
    assert extension._cuda(Compiler(("g++",))) == (None, [])
    said = capsys.readouterr().out
    assert re.search(reason, said) and "CUDA kernels are left out" in said
    assert said.count("\n") == 1


@needs_posix
def test_the_user_may_do_without_cuda(cuda_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert extension._cuda(Compiler(("g++",)))[0] is not None
    monkeypatch.setenv("DASR_OPS_WITHOUT_CUDA", "1")
    assert extension._cuda(Compiler(("g++",))) == (None, [])


@needs_posix
def test_a_host_compiler_that_nvcc_refuses_is_the_reason_given(cuda_home: Path) -> None:
    found = cuda.find_toolkit()
    cuda.check_nvcc(found, Compiler(("g++",)), ["80"])
    complaint = "host_config.h:137:2: error: #error -- unsupported GNU version! gcc later than 15"
    script(
        cuda_home / "bin" / "nvcc", f'echo "In file included" >&2; echo "{complaint}" >&2; exit 1'
    )
    with pytest.raises(ValueError, match="unsupported GNU version") as caught:
        cuda.check_nvcc(found, Compiler(("ccache", "g++-99")), ["80"])
    message = str(caught.value)
    assert "\n" not in message
    for part in ("nvcc 13.0", "g++-99", "CXX", "DASR_OPS_CUDA_ARCHS", "DASR_OPS_WITHOUT_CUDA=1"):
        assert part in message


@pytest.mark.skipif(
    shutil.which("nvcc") is None or shutil.which("g++") is None, reason="there is no nvcc or g++"
)
def test_the_real_nvcc_takes_the_default_and_names_what_it_does_not_know() -> None:
    found = cuda.find_toolkit()
    cuda.check_nvcc(found, host.find_compiler(), cuda.DEFAULT_ARCHS)
    with pytest.raises(ValueError, match="Unsupported gpu architecture 'compute_10'"):
        cuda.check_nvcc(found, host.find_compiler(), ["10"])


# The host compiler and the variables.


@pytest.mark.parametrize(
    ("value", "command", "executable"),
    [
        ("clang++", ("clang++",), "clang++"),
        ("ccache g++", ("ccache", "g++"), "g++"),
        ("/usr/bin/sccache /opt/gcc/bin/g++ -m64", None, "/opt/gcc/bin/g++"),
        ("'/opt/my gcc/g++' -m64", ("/opt/my gcc/g++", "-m64"), "/opt/my gcc/g++"),
        ("ccache", ("ccache",), "ccache"),
    ],
)
def test_cxx_may_have_a_launcher_and_arguments(
    monkeypatch: pytest.MonkeyPatch, value: str, command: tuple[str, ...] | None, executable: str
) -> None:
    monkeypatch.setenv("CXX", value)
    compiler = host.find_compiler()
    assert compiler.command == (command or tuple(value.split()))
    assert compiler.executable == executable


@needs_posix
def test_without_cxx_the_path_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert host.find_compiler() is None
    clang = script(tmp_path / "clang++", "")
    assert host.find_compiler().command == (str(clang),)
    gcc = script(tmp_path / "g++", "")
    assert host.find_compiler().command == (str(gcc),)


def test_max_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.max_jobs() is None
    monkeypatch.setenv("MAX_JOBS", " 3 ")
    assert host.max_jobs() == 3
    for junk in ("0", "many", "-1", "1.5"):
        monkeypatch.setenv("MAX_JOBS", junk)
        with pytest.raises(ValueError, match=f"MAX_JOBS: expected a positive number, got '{junk}'"):
            host.max_jobs()


@pytest.mark.parametrize("name", ["darwin", "win32"])
def test_no_extension_outside_linux(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sys, "platform", name)
    assert extension.extensions() == []


def test_no_extension_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for off in ("", "0", "no", "False"):
        monkeypatch.setenv("DASR_OPS_WITHOUT_EXTENSION", off)
        assert [ext.name for ext in extension.extensions()] == ["dasr_ops._C"]
    monkeypatch.setenv("DASR_OPS_WITHOUT_EXTENSION", "1")
    assert extension.extensions() == []


# The ninja file, run by ninja with compilers that only write down what they are told.


class Build:
    """Made-up sources below a folder with an awkward name, and what their compilers were told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.csrc = folder / "csrc"
        names = ("ops/a.cpp", "ops/b_cuda.cpp", "ops/build_info.cpp", "cpu/deep/c_avx2.cpp")
        for name in (*names, "cpu/d_avx512.cpp", "cuda/e.cu", "emulation/f.cpp"):
            (self.csrc / name).parent.mkdir(parents=True, exist_ok=True)
            (self.csrc / name).write_text("")
        (self.csrc / "dasr_ops_build").mkdir()
        (self.csrc / "dasr_ops_build" / "exports.map").write_text("")
        # Each call writes its arguments, one on a line, beside its output.
        tell = (
            'for word; do last="$word"; done; printf "%s\\n" "$0" "$@" > "$last.told"; : > "$last"'
        )
        self.cxx = script(folder / "bin" / "g++", tell)
        self.toolkit = Toolkit(folder / "cuda", "13.0", folder / "cuda" / "lib64")
        script(self.toolkit.nvcc, tell)
        self.torch = Torch(folder / "torch", "2.11.0")
        self.library = folder / "build" / "_C.abi3.so"

    def run(self, *, with_cuda: bool, defines: list[str]) -> dict[str, list[str]]:
        text = ninja_file.ninja_file(
            self.csrc,
            self.library,
            Compiler((str(self.cxx), "-pipe")),
            self.torch,
            self.toolkit if with_cuda else None,
            ["80", "90+ptx"] if with_cuda else [],
            defines,
        )
        shutil.rmtree(self.library.parent, ignore_errors=True)
        self.library.parent.mkdir()
        (self.library.parent / "build.ninja").write_text(text)
        command = [*extension._ninja(), "-C", str(self.library.parent)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        told = self.library.parent.glob("*.told")
        return {path.name[: -len(".told")]: path.read_text().splitlines() for path in told}


@pytest.fixture
def build(tmp_path: Path) -> Build:
    if os.name != "posix":
        pytest.skip("the scripts need a POSIX shell")
    if subprocess.run([*extension._ninja(), "--version"], capture_output=True).returncode != 0:
        pytest.skip("ninja is not installed")
    return Build(tmp_path / "a b$c: 'd")


def test_arguments_reach_the_compilers_unharmed(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ninja_file, "is_x86", lambda: True)
    monkeypatch.setenv("CXXFLAGS", "-O1 -DNAME='x y'")
    monkeypatch.setenv("LDFLAGS", "-L/some/where")
    told = build.run(with_cuda=True, defines=['-DTEXT="a $b"'])
    objects = {
        *("ops_a.cpp.o", "ops_b_cuda.cpp.o", "ops_build_info.cpp.o", "cpu_deep_c_avx2.cpp.o"),
        *("cpu_d_avx512.cpp.o", "cuda_e.cu.o"),
    }
    assert set(told) == {*objects, "_C.abi3.so"}

    plain = told["ops_a.cpp.o"]
    assert plain[:2] == [str(build.cxx), "-pipe"]
    assert {f"-I{build.csrc}", f"{build.torch.folder}/include", "-DDASR_OPS_WITH_CUDA"} <= set(
        plain
    )
    assert str(build.csrc / "ops" / "a.cpp") in plain
    assert plain.index("-O1") > plain.index("-O3") and "-DNAME=x y" in plain
    assert not [flag for flag in plain if flag.startswith("-mavx")]
    assert '-DTEXT="a $b"' in told["ops_build_info.cpp.o"]
    assert '-DTEXT="a $b"' not in plain
    assert "-mavx2" in told["cpu_deep_c_avx2.cpp.o"]
    assert "-mavx512f" not in told["cpu_deep_c_avx2.cpp.o"]
    assert "-mavx512f" in told["cpu_d_avx512.cpp.o"]

    kernel = told["cuda_e.cu.o"]
    assert kernel[0] == str(build.toolkit.nvcc)
    assert kernel[kernel.index("-ccbin") + 1] == str(build.cxx)
    assert set(cuda.gencode_flags(["80", "90+ptx"])) <= set(kernel)

    link = told["_C.abi3.so"]
    assert objects <= set(link)
    torch_at = link.index("-ltorch")
    assert "-Wl,--no-as-needed" in link[:torch_at] and "-L/some/where" in link[:torch_at]
    assert f"-L{build.torch.folder}/lib" in link
    assert f"-L{build.toolkit.library_dir}" in link and "-lcudart_static" in link
    assert f"-Wl,--version-script={build.csrc}/dasr_ops_build/exports.map" in link


def test_a_build_without_cuda_on_another_architecture(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    told = build.run(with_cuda=False, defines=[])
    assert set(told) == {"ops_a.cpp.o", "ops_build_info.cpp.o", "_C.abi3.so"}
    words = [word for words in told.values() for word in words]
    assert not [word for word in words if word.startswith("-m") or "WITH_CUDA" in word]
    assert "-lcudart_static" not in words


def test_nvcc_keeps_to_one_thread_if_asked(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--threads=2" in build.run(with_cuda=True, defines=[])["cuda_e.cu.o"]
    monkeypatch.setenv("MAX_JOBS", "1")
    assert "--threads=1" in build.run(with_cuda=True, defines=[])["cuda_e.cu.o"]


def test_ninja_is_given_max_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []
    monkeypatch.setattr(extension, "ROOT", tmp_path)
    monkeypatch.setattr(extension, "find_torch", lambda: Torch(tmp_path, "2.12.1"))
    monkeypatch.setattr(extension, "_build_info", lambda *_: [])
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.setenv("DASR_OPS_WITHOUT_CUDA", "1")
    folder = extension._build(Compiler(("g++",))).parent
    monkeypatch.setenv("MAX_JOBS", "3")
    extension._build(Compiler(("g++",)))
    assert commands[0][-2:] == ["-C", str(folder)]
    assert commands[1][-3:] == ["-C", str(folder), "-j3"]
    assert folder.name.endswith("cpu-torch2.12") and (folder / "build.ninja").is_file()
