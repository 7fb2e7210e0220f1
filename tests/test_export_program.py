"""Programs of torch.export and packages of AOTInductor run at every size, and without us."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch

from dasr_ops.models import DASR
from dasr_ops.models.export import ExportError, export_aoti, export_program, merge

from .export_tools import pictures, tiny_model

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="AOTInductor needs a C++ compiler",
)

ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "dasr_ops":
            raise ImportError("dasr_ops is not here")

sys.meta_path.insert(0, Refuse())
import torch

try:
    import dasr_ops
except ImportError:
    pass
else:
    raise SystemExit("dasr_ops can be imported")
kind, path, inputs, output = sys.argv[1:]
if kind == "pt2":
    module = torch.export.load(path).module()
else:
    module = torch._inductor.aoti_load_package(path)
with torch.no_grad():
    torch.save([module(lr=lr) for lr in torch.load(inputs)], output)
"""


def assert_close(found, expected, tolerance=1e-5):
    """Layers of a hundred terms each, relative to the largest value: some 1e-6 of rounding."""
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


def run_alone(tmp_path, kind, path, inputs):
    torch.save(inputs, tmp_path / "inputs.pt")
    arguments = [kind, path, tmp_path / "inputs.pt", tmp_path / "outputs.pt"]
    result = subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return torch.load(tmp_path / "outputs.pt")


def test_program_runs_where_the_package_is_not(tmp_path):
    model = tiny_model(4, blocks=1)
    agreement = export_program(model, tmp_path / "model.pt2", metadata={"licence": "CC0-1.0"})
    assert agreement.difference < 1e-5 * max(1, agreement.largest)
    sizes = [(24, 20), (13, 7), (1, 1), (2, 1), (1, 40)]
    inputs = [pictures(model, 1, *size) for size in sizes]
    outputs = run_alone(tmp_path, "pt2", tmp_path / "model.pt2", inputs)
    for lr, sr in zip(inputs, outputs, strict=True):
        with torch.no_grad():
            assert_close(sr, model(lr))
    files = {"dasr_ops.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=files)
    entries = json.loads(files["dasr_ops.json"])
    assert entries["licence"] == "CC0-1.0"
    assert json.loads(entries["dasr_ops"]) == model.config
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert all(call.startswith("aten.") for call in calls)
    assert set(program.state_dict) == {f"network.{name}" for name in model.state_dict()}


@pytest.mark.parametrize("channels", [1, 3])
def test_program_of_a_free_batch(tmp_path, channels):
    model = tiny_model(3, 2, channels, feat=4, blocks=1)
    path = tmp_path / "model.pt2"
    export_program(model, path, dynamic_batch=True, degradation_output=True)
    module = torch.export.load(path).module()
    # A batch of grey single pixels is the one thing that torch takes for another program.
    for batch, height, width in [(1, 9, 12), (4, 7, 6), (2, 1, 4 - channels)]:
        lr = pictures(model, batch, height, width)
        with torch.no_grad():
            sr, v = module(lr=lr)
            assert_close(sr, model(lr))
            assert_close(v, model.predict(lr).v)


def test_program_of_half_with_the_degradation_as_input(tmp_path):
    model = tiny_model(blocks=1)
    path = tmp_path / "model.pt2"
    export_program(model, path, half=True, degradation_input=True, clip=True)
    module = torch.export.load(path).module()
    lr, v = pictures(model, 1, 9, 12), torch.rand(1, 33)
    with torch.no_grad():
        sr = module(lr=lr, degradation=v)
        assert sr.dtype == torch.float32
        # 9 layers, each rounding to 2^-11 of its largest value.
        assert_close(sr, model(lr, degradation=v).clamp(0, 1), 9 * 2**-11)


def test_program_of_a_static_network(tmp_path):
    model = tiny_model(blocks=1)
    v = torch.rand(33)
    assert export_program(merge(model, v), tmp_path / "model.pt2", check=False) is None
    lr = pictures(model, 3, 8, 5)
    with torch.no_grad():
        sr = torch.export.load(tmp_path / "model.pt2").module()(lr=lr)
        assert_close(sr, model(lr, degradation=v.expand(3, -1)))


def test_program_of_the_predictor(tmp_path):
    model = tiny_model(blocks=1)
    export_program(model, tmp_path / "model.pt2", predictor_only=True)
    lr = pictures(model, 2, 8, 5)
    with torch.no_grad():
        v = torch.export.load(tmp_path / "model.pt2").module()(lr=lr)
        assert_close(v, model.predict(lr).v)


def test_wrong_results_are_noticed_and_nothing_is_written(tmp_path, monkeypatch):
    from dasr_ops.models.export import _module

    monkeypatch.setattr(_module, "_SLOPE", 0.2)
    with pytest.raises(ExportError, match="results differ from PyTorch's by"):
        export_program(tiny_model(blocks=1), tmp_path / "wrong.pt2")
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments(tmp_path):
    for export in (export_program, export_aoti):
        with pytest.raises(TypeError, match="model: expected a DASR or SRResNet"):
            export(torch.nn.Linear(1, 1), tmp_path / "model.pt2")
        with pytest.raises(ValueError, match="degradation_input: expected False"):
            export(
                tiny_model(), tmp_path / "a.pt2", degradation_input=True, degradation_output=True
            )
        with pytest.raises(ValueError, match=r"path: expected a \.pt2 file"):
            export(tiny_model(), tmp_path / "model.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_there(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    with pytest.raises(ValueError, match="device: cuda: "):
        export_aoti(tiny_model(), tmp_path / "model.pt2", device="cuda")


def test_without_a_compiler_there_is_one_clear_line(tmp_path, monkeypatch):
    from torch._inductor import cpp_builder

    def missing():
        raise RuntimeError("no compiler")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(ExportError, match=r"needs a C\+\+ compiler: install g\+\+ or clang\+\+"):
        export_aoti(tiny_model(), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@needs_compiler
def test_package_runs_where_our_package_is_not(tmp_path):
    model = tiny_model(4, feat=4, blocks=1)
    export_aoti(model, tmp_path / "model.pt2", metadata={"licence": "CC0-1.0"})
    inputs = [pictures(model, 1, *size) for size in [(24, 20), (13, 7), (1, 1), (1, 40)]]
    outputs = run_alone(tmp_path, "aoti", tmp_path / "model.pt2", inputs)
    for lr, sr in zip(inputs, outputs, strict=True):
        with torch.no_grad():
            assert_close(sr, model(lr))
    metadata = torch._inductor.aoti_load_package(str(tmp_path / "model.pt2")).get_metadata()
    assert metadata["licence"] == "CC0-1.0"
    assert metadata["scale"] == "4"


@pytest.mark.slow
@needs_compiler
def test_package_of_a_free_batch(tmp_path):
    model = tiny_model(2, feat=4, blocks=1)
    export_aoti(model, tmp_path / "model.pt2", dynamic_batch=True)
    module = torch._inductor.aoti_load_package(str(tmp_path / "model.pt2"))
    for batch in (1, 2, 5):
        lr = pictures(model, batch, 11, 8)
        with torch.no_grad():
            assert_close(module(lr=lr), model(lr))


@pytest.mark.slow
def test_program_of_the_official_size(tmp_path):
    assert export_program(DASR(), tmp_path / "model.pt2").difference < 1e-5
