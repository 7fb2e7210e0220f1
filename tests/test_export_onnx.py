"""ONNX files compute what PyTorch does, at every size, and consist of plain operators."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch

from dasr_ops.models import DASR, load_dasr
from dasr_ops.models.export import ExportError, export_onnx, merge
from dasr_ops.models.shipped import find_weights

from .export_tools import pictures, tiny_model

onnx = pytest.importorskip("onnx", reason="exports to ONNX need onnx")
ort = pytest.importorskip("onnxruntime", reason="ONNX files are run by onnxruntime")

SIZES = [(16, 24), (13, 7), (1, 1), (2, 1), (1, 40)]


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path, **inputs):
    feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
    return [torch.from_numpy(array) for array in session(path).run(None, feeds)]


def operators(path) -> Counter:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def assert_close(found, expected, tolerance=1e-5):
    """Layers of a hundred terms each, relative to the largest value: some 1e-6 of rounding."""
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("dynamic_batch", [False, True])
@pytest.mark.parametrize(
    ("scale", "experts", "channels"), [(2, 3, 3), (3, 1, 1), (4, 5, 3), (3, 2, 3), (4, 1, 3)]
)
def test_networks_of_all_kinds(tmp_path, scale, experts, channels, dynamic_batch):
    model = tiny_model(scale, experts, channels, num_params=33 if experts > 1 else 7)
    path = tmp_path / "model.onnx"
    agreement = export_onnx(model, path, dynamic_batch=dynamic_batch)
    assert agreement.difference < 1e-5 * max(1, agreement.largest)
    assert len(agreement.sizes) == 3
    batch = 3 if dynamic_batch else 1
    runner = session(path)
    for height, width in SIZES:
        lr = pictures(model, batch, height, width)
        (sr,) = runner.run(None, {"lr": lr.numpy()})
        with torch.no_grad():
            assert_close(torch.from_numpy(sr), model.double()(lr.double()))
        model.float()


@pytest.mark.parametrize("dynamic_batch", [False, True])
def test_the_standard_says_so_too(tmp_path, dynamic_batch):
    """onnx's own evaluator, written in NumPy from the operators' definitions."""
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    model = tiny_model(4, 3, feat=2, blocks=1)
    export_onnx(model, tmp_path / "model.onnx", dynamic_batch=dynamic_batch, check=False)
    lr = pictures(model, 2 if dynamic_batch else 1, 5, 4)
    (sr,) = evaluator(str(tmp_path / "model.onnx")).run(None, {"lr": lr.numpy()})
    with torch.no_grad():
        assert_close(torch.from_numpy(sr), model(lr))


def test_experts_are_mixed_into_one_kernel(tmp_path):
    model = tiny_model(4)
    export_onnx(model, tmp_path / "one.onnx")
    found = operators(tmp_path / "one.onnx")
    layers = 1 + 2 * 2 + 2 + 2
    assert found == {
        "Conv": layers + 6,
        "MatMul": 2 * layers,
        "Reshape": 2 * layers,
        "Gemm": 2,
        "LeakyRelu": 4 + 6,
        "Relu": 2,
        "Add": 2 + 1,
        "DepthToSpace": 2,
        "Resize": 1,
        "ReduceMean": 2,
    }
    graph = onnx.load(tmp_path / "one.onnx").graph
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type == "Conv" and not node.name.startswith("net_p."):
            assert makers[node.input[1]].op_type == "Reshape"
            assert makers[makers[node.input[1]].input[0]].op_type == "MatMul"
    names = {constant.name for constant in graph.initializer}
    assert {name for name in model.state_dict()} <= names


def test_free_batch_runs_all_experts(tmp_path):
    export_onnx(tiny_model(4), tmp_path / "any.onnx", dynamic_batch=True)
    found = operators(tmp_path / "any.onnx")
    assert "Reshape" not in found
    assert not {"Loop", "If", "Scan", "Shape"} & set(found)
    (conv,) = (
        n for n in onnx.load(tmp_path / "any.onnx").graph.node if n.name == "conv_hr.experts"
    )
    kernels = {c.name: c.dims for c in onnx.load(tmp_path / "any.onnx").graph.initializer}
    assert kernels[conv.input[1]] == [3 * 6, 6, 3, 3]


def test_pictures_of_a_batch_have_their_own_degradation(tmp_path):
    model = tiny_model()
    export_onnx(model, tmp_path / "any.onnx", dynamic_batch=True, degradation_output=True)
    lr = pictures(model, 2, 12, 10)
    sr, v = run(tmp_path / "any.onnx", lr=lr)
    assert (v[0] - v[1]).abs().max() > 1e-3
    for index in range(2):
        alone = lr[index : index + 1]
        with torch.no_grad():
            assert_close(v[index : index + 1], model.predict(alone).v)
            assert_close(sr[index : index + 1], model(alone))
            assert (
                model(alone, degradation=v[1 - index : 2 - index]) - sr[index]
            ).abs().max() > 1e-3


def test_degradation_goes_in_and_comes_out(tmp_path):
    model = tiny_model()
    lr, v = pictures(model, 1, 9, 11), torch.rand(1, 33)
    export_onnx(model, tmp_path / "in.onnx", degradation_input=True)
    names = {node.name for node in onnx.load(tmp_path / "in.onnx").graph.node}
    assert not any(name.startswith("net_p.ConvNet") for name in names)
    export_onnx(model, tmp_path / "out.onnx", degradation_output=True)
    export_onnx(model, tmp_path / "p.onnx", predictor_only=True)
    with torch.no_grad():
        assert_close(run(tmp_path / "in.onnx", lr=lr, degradation=v)[0], model(lr, degradation=v))
        predicted = model.predict(lr).v
        sr, seen = run(tmp_path / "out.onnx", lr=lr)
        assert_close(sr, model(lr))
        assert_close(seen, predicted)
        assert_close(run(tmp_path / "p.onnx", lr=lr)[0], predicted)
    # The two halves make the whole.
    parts = run(tmp_path / "in.onnx", lr=lr, degradation=seen)
    assert_close(parts[0], sr)


@pytest.mark.parametrize("dynamic_batch", [False, True])
def test_half_is_close_and_keeps_its_interface(tmp_path, dynamic_batch):
    model = tiny_model(4, 5)
    full, half = tmp_path / "full.onnx", tmp_path / "half.onnx"
    export_onnx(model, full, dynamic_batch=dynamic_batch)
    export_onnx(model, half, dynamic_batch=dynamic_batch, half=True)
    assert half.stat().st_size < 0.8 * full.stat().st_size
    lr = pictures(model, 1, 13, 10)
    expected, found = run(full, lr=lr)[0], run(half, lr=lr)[0]
    assert found.dtype == torch.float32
    # 13 layers, each rounding to 2^-11 of its largest value.
    assert 1e-6 < (found - expected).abs().max() < 13 * 2**-11 * max(1, expected.abs().max())
    graph = onnx.load(half).graph
    stored = {c.name: c.data_type for c in graph.initializer}
    assert stored["net_g.conv_hr.weight"] == onnx.TensorProto.FLOAT16
    assert stored["net_p.ConvNet.0.weight"] == onnx.TensorProto.FLOAT


def test_half_does_not_overflow_in_the_average(tmp_path):
    """Features of 40 over 64x64 pixels add up to more than float16 holds, 65504."""
    model = tiny_model()
    with torch.no_grad():
        model.net_p.ConvNet[-1].bias.fill_(40)
        model.net_p.MappingNet[0].weight.mul_(0.02)
    export_onnx(model, tmp_path / "half.onnx", half=True, degradation_output=True)
    lr = pictures(model, 1, 128, 128)
    sr, v = run(tmp_path / "half.onnx", lr=lr)
    with torch.no_grad():
        assert_close(v, model.predict(lr).v)
        assert_close(sr, model(lr), 13 * 2**-11)


@pytest.mark.parametrize("half", [False, True])
def test_static_networks(tmp_path, half):
    model = tiny_model(3)
    v = torch.rand(33)
    export_onnx(merge(model, v), tmp_path / "static.onnx", half=half)
    assert not {"MatMul", "Gemm", "Reshape"} & set(operators(tmp_path / "static.onnx"))
    lr = pictures(model, 2, 9, 14)
    (sr,) = run(tmp_path / "static.onnx", lr=lr)
    with torch.no_grad():
        assert_close(sr, model(lr, degradation=v.expand(2, -1)), 2e-2 if half else 1e-5)


def test_clip(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.net_g.conv_last.bias.normal_(0, 2)
    lr = pictures(model, 1, 10, 10)
    export_onnx(model, tmp_path / "clipped.onnx", clip=True)
    (sr,) = run(tmp_path / "clipped.onnx", lr=lr)
    with torch.no_grad():
        expected = model(lr)
    assert expected.min() < 0 or expected.max() > 1
    ends = [
        c for c in onnx.load(tmp_path / "clipped.onnx").graph.initializer if c.name in "zero one"
    ]
    assert [list(end.dims) for end in ends] == [[], []]  # the standard wants scalars
    assert_close(sr, expected.clamp(0, 1))


def test_what_the_file_says(tmp_path):
    model = tiny_model(4)
    path = tmp_path / "model.onnx"
    export_onnx(model, path, metadata={"licence": "CC0-1.0", "scale": "no"}, half=True)
    proto = onnx.load(path)
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    assert entries["licence"] == "CC0-1.0"
    assert entries["scale"] == "4"
    assert entries["precision"] == "float16"
    assert json.loads(entries["dasr_ops"]) == model.config
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 13)]
    assert proto.ir_version == 7
    assert not any(c.external_data for c in proto.graph.initializer)
    lr, sr = session(path).get_inputs()[0], session(path).get_outputs()[0]
    assert (lr.name, lr.shape) == ("lr", [1, 3, "height", "width"])
    assert (sr.name, sr.shape[:2]) == ("sr", [1, 3])


def test_the_model_stays_as_it_is(tmp_path):
    model = tiny_model().double().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_onnx(model, tmp_path / "model.onnx", half=True)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_wrong_results_are_noticed_and_nothing_is_written(tmp_path, monkeypatch):
    from dasr_ops.models.export import _graph

    monkeypatch.setattr(_graph, "_SLOPE", 0.2)
    with pytest.raises(ExportError, match="results differ from PyTorch's by"):
        export_onnx(tiny_model(), tmp_path / "wrong.onnx")
    assert list(tmp_path.iterdir()) == []
    assert export_onnx(tiny_model(), tmp_path / "wrong.onnx", check=False) is None


def test_broken_weights_are_noticed(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.net_g.conv_hr.weight[0, 0] = float("nan")
    with pytest.raises(ExportError, match="infinities or NaN"):
        export_onnx(model, tmp_path / "model.onnx")
    with torch.no_grad():
        model.net_g.conv_hr.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"half: conv_hr.weight holds values beyond"):
        export_onnx(model, tmp_path / "model.onnx", half=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"degradation_input": True, "degradation_output": True}, "degradation_input: expected"),
        ({"degradation_input": True, "predictor_only": True}, "degradation_input: expected"),
        ({"predictor_only": True, "half": True}, "predictor_only: expected no half"),
        ({"predictor_only": True, "clip": True}, "predictor_only: expected no half, clip"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(tiny_model(), tmp_path / "model.onnx", **options)


def test_bad_arguments(tmp_path):
    with pytest.raises(TypeError, match="model: expected a DASR or SRResNet, got Linear"):
        export_onnx(torch.nn.Linear(1, 1), tmp_path / "model.onnx")
    with pytest.raises(TypeError, match="metadata: expected strings"):
        export_onnx(tiny_model(), tmp_path / "model.onnx", metadata={"scale": 4})
    static = merge(tiny_model(), torch.rand(33))
    with pytest.raises(ValueError, match="model: expected a DASR"):
        export_onnx(static, tmp_path / "model.onnx", degradation_input=True)
    path = tmp_path / "there.onnx"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        export_onnx(tiny_model(), path, overwrite=False)
    assert path.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir()] == ["there.onnx"]


def test_shipped_weights(tmp_path):
    model = load_dasr(find_weights())
    assert export_onnx(model, tmp_path / "small.onnx").difference < 1e-5
    lr = torch.rand(1, 3, 31, 45)
    with torch.no_grad():
        assert_close(run(tmp_path / "small.onnx", lr=lr)[0], model(lr))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic_batch", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_official_size(tmp_path, half, dynamic_batch):
    path = tmp_path / "model.onnx"
    agreement = export_onnx(DASR(), path, half=half, dynamic_batch=dynamic_batch)
    assert agreement.difference < (2e-2 if half else 1e-5)
    size = sum(
        np.prod(p.shape) * (2 if half and n.startswith("net_g") else 4)
        for n, p in DASR().named_parameters()
    )
    assert size < path.stat().st_size < size + 1e5
