"""The benchmarks measure what they say: cases, gate, clocks, statistics, reports."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from pathlib import Path

import pytest
import torch

from dasr_ops.bench import Settings, cases, formulations, measure, report, results, tables
from dasr_ops.bench.cases import INFERENCE, TRAINING, Case, Layer, Network
from dasr_ops.bench.clock import CpuClock
from dasr_ops.bench.results import Samples
from dasr_ops.bench.subjects import Accuracy
from dasr_ops.cli import main
from dasr_ops.models import DASR, MSRResNetDynamic, SRResNet

CPU = torch.device("cpu")
PLAIN = Layer("Test", "plain", 2, 6, 4, 7, 5, experts=3)
LAYERS = [
    PLAIN,
    Layer("Test", "shuffle", 3, 5, 8, 6, 9, activation="leaky_relu", upscale_factor=2),
    Layer("Test", "residual", 1, 4, 3, 5, 5, activation="relu", residual=True),
    Layer("Test", "entry", 2, 4, 6, 7, 8, stride=2, experts=1),
    Layer("Test", "pointwise", 2, 8, 4, 5, 5, kernel_size=1),
    Layer("Test", "depthwise", 2, 8, 8, 5, 5, groups=8, stride=2),
    Layer("Test", "groups", 2, 8, 4, 5, 5, groups=2, kernel_size=5),
]
TINY = Network("Test", "dasr", 2, 9, 8, experts=2, features=8, blocks=1)
EAGER = ("dasr_ops", "official", "loop", "vmap", "condconv", "static")


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_selections_grow_and_have_unique_names(device_type: str) -> None:
    found = {s: cases.cases(s, device_type) for s in cases.SELECTIONS}
    for chosen in found.values():
        names = [case.identifier(timed) for case in chosen for timed in case.mode]
        assert len(set(names)) == len(names)
    labels = {s: {(c.label, c.mode) for c in chosen} for s, chosen in found.items()}
    assert labels["quick"] < labels["full"]
    assert labels["default"] < labels["full"]
    full = found["full"]
    assert {c.subject.experts for c in full} == {1, 4, 5, 8}
    assert {c.memory_format for c in full} == {"NCHW", "channels_last"}
    dtypes = {"float32", "bfloat16", "float16"} | ({"tfloat32"} if device_type == "cuda" else set())
    assert {c.dtype for c in full} == dtypes


def test_unknown_selection() -> None:
    with pytest.raises(ValueError, match="selection: expected one of"):
        cases.cases("everything", "cpu")  # type: ignore[arg-type]


def test_work_of_a_layer() -> None:
    layer = Layer("T", "t", 2, 6, 8, 10, 12, stride=2, groups=2, upscale_factor=2, experts=3)
    pixels, kernel = 2 * 5 * 6, 8 * 3 * 9
    flops, elements = cases.work(layer, "forward")
    assert flops == 2 * pixels * kernel + 2 * 2 * 3 * (kernel + 8)
    assert elements == 2 * 6 * 10 * 12 + 3 * (kernel + 8) + pixels * 8
    both = cases.work(layer, "forward+backward")
    back = cases.work(layer, "backward")
    assert both == (flops + back[0], elements + back[1])
    assert back[0] == 4 * pixels * kernel + 3 * 2 * 2 * 3 * (kernel + 8)


def test_layers_of_the_networks_are_those_of_the_models() -> None:
    """G and P have 8,055,998 parameters and take 184.2 GMAC for a picture of 256x256."""
    found = cases.layers(Network("T", "dasr", 1, 256, 256))
    macs = sum(
        layer.batch * math.prod(layer.output_shape[1:]) * math.prod(layer.kernel_shape[1:])
        for layer in found
    )
    assert macs == pytest.approx(184.2e9, rel=1e-3)
    parameters = sum(
        layer.experts * (math.prod(layer.kernel_shape) + layer.out_channels) for layer in found
    )
    mapping = 33 * 15 + 15 + 15 * 5 + 5
    assert parameters + mapping == sum(p.numel() for p in DASR().parameters())
    small = cases.layers(Network("T", "generator", 1, 8, 8, experts=2, features=16, blocks=3))
    g = MSRResNetDynamic(num_feat=16, num_block=3, num_models=2)
    expected = [p.shape for name, p in g.named_parameters() if name.endswith("weight")]
    assert sorted((layer.experts, *layer.kernel_shape) for layer in small) == sorted(
        map(tuple, expected)
    )


@pytest.mark.parametrize("memory_format", ["NCHW", "channels_last"])
@pytest.mark.parametrize("mode", [INFERENCE, TRAINING])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_all_formulations_agree(layer: Layer, mode: tuple[str, ...], memory_format: str) -> None:
    case = Case(layer, mode, "float32", memory_format)
    for peer, samples in measure.check(case, CPU, EAGER).items():
        assert (samples.skipped, samples.failed) == (None, None), peer
        assert samples.accuracy is not None
        assert 0 < samples.accuracy.error <= samples.accuracy.bound, peer


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("mode", [INFERENCE, TRAINING])
def test_narrow_types(mode: tuple[str, ...], dtype: str) -> None:
    found = measure.check(Case(LAYERS[1], mode, dtype), CPU, ["dasr_ops", "official"])
    for samples in found.values():
        assert (samples.skipped, samples.failed) == (None, None)
        # Not computed in float32 by mistake.
        assert samples.accuracy.error > 1e-5


@pytest.mark.parametrize(
    ("name", "mode"), [("generator", INFERENCE), ("generator", TRAINING), ("dasr", INFERENCE)]
)
def test_networks_agree(name: str, mode: tuple[str, ...]) -> None:
    network = Network("Test", name, 2, 9, 8, experts=2, features=8, blocks=1)
    found = measure.check(
        Case(network, mode, "float32", "channels_last"), CPU, ["dasr_ops", "official", "static"]
    )
    for peer, samples in found.items():
        assert (samples.skipped, samples.failed) == (None, None), peer


@pytest.mark.slow
@pytest.mark.parametrize("subject", [LAYERS[1], LAYERS[5], TINY], ids=lambda s: s.name)
def test_compiled_formulations_agree(subject: Layer | Network) -> None:
    modes = [INFERENCE] if subject is TINY else [INFERENCE, TRAINING]
    for mode in modes:
        case = Case(subject, mode, "float32", "channels_last")
        names = [peer for peer in measure.peers(case, "cpu") if "compiled" in peer]
        for samples in measure.check(case, CPU, names).values():
            assert (samples.skipped, samples.failed) == (None, None)


class TestGate:
    """What is wrong is not timed."""

    def results(self, monkeypatch, peer: str, formulation, mode=INFERENCE) -> dict[str, Samples]:
        monkeypatch.setitem(formulations.FORMULATIONS, peer, formulation)
        settings = Settings(seconds=0.01, peers=(peer,), memory=False)
        return measure.measure(Case(PLAIN, mode), CPU, settings)

    def test_wrong_values(self, monkeypatch) -> None:
        def wrong(layer, tensors):
            return formulations.official(layer, tensors) * (1 + 1e-5)

        found = self.results(monkeypatch, "loop", wrong)
        assert "against float64" in found["loop"].failed
        assert not found["loop"].visits
        assert found["official"].visits
        rows = results.rows(Case(PLAIN, INFERENCE), found, None)
        assert [r["peer"] for r in rows[0]["results"] if "failed" in r] == ["loop"]

    def test_not_a_number(self, monkeypatch) -> None:
        def wrong(layer, tensors):
            return formulations.official(layer, tensors) * math.nan

        assert "inf" in self.results(monkeypatch, "loop", wrong)["loop"].failed

    @pytest.mark.parametrize("argument", ["input", "weight", "routing", "bias"])
    def test_a_wrong_gradient(self, monkeypatch, argument: str) -> None:
        def wrong(layer, tensors):
            tensor = getattr(tensors, argument)
            other = tensor + 1e-3 * (tensor - tensor.detach())  # the value is right
            return formulations.official(layer, tensors._replace(**{argument: other}))

        found = self.results(monkeypatch, "loop", wrong, TRAINING)
        assert "against float64" in found["loop"].failed

    def test_a_peer_that_does_not_run_is_skipped(self, monkeypatch) -> None:
        def broken(layer, tensors):
            raise RuntimeError("no such kernel\nand more")

        assert self.results(monkeypatch, "vmap", broken)["vmap"].skipped == (
            "RuntimeError: no such kernel"
        )

    def test_ours_that_does_not_run_is_a_failure(self, monkeypatch) -> None:
        def broken(layer, tensors):
            raise RuntimeError("no such kernel")

        assert "no such kernel" in self.results(monkeypatch, "dasr_ops", broken)["dasr_ops"].failed


class TestClock:
    def test_phases(self) -> None:
        def call(index, lap):
            time.sleep(0.002 * (1 + index))
            lap()
            time.sleep(0.001)
            lap()

        first, second = CpuClock().sample(call, [0, 2])
        assert 0.004 <= first < 0.02
        assert 0.001 <= second < 0.01

    def test_peak_memory(self) -> None:
        size = 64 << 20

        def call(index, lap):
            first = torch.ones(size // 4)
            second = torch.ones(size // 4)
            del first, second

        peak = CpuClock().peak_memory(call)
        if peak is None:
            pytest.skip("this system does not tell the peak of resident memory")
        # The kernel adds pages to its counters in batches of each CPU.
        assert 2 * size - (1 << 20) <= peak < 2.3 * size

    def test_peak_memory_of_nothing(self) -> None:
        peak = CpuClock().peak_memory(lambda index, lap: None)
        assert peak is None or peak < 1 << 20


def test_interval() -> None:
    """The 95 % interval of the median of 100 values ends at the 40th and 61st."""
    median, low, high = results.interval([float(i) for i in range(1, 101)])
    assert (median, low, high) == (50.5, 41.0, 60.0 + 1)
    assert results.interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)


def test_ratio_is_that_within_a_round() -> None:
    """A machine that becomes three times slower half-way changes no ratio."""
    slowdown = [1.0] * 5 + [3.0] * 6
    samples = {
        "official": Samples(visits=[[[2 * s, 4 * s] for s in slowdown]]),
        "dasr_ops": Samples(visits=[[[1 * s, 1 * s] for s in slowdown]]),
    }
    assert results.ratio(samples, "dasr_ops", "backward") == (4.0, 4.0, 4.0)
    assert results.ratio(samples, "dasr_ops", "forward+backward") == (3.0, 3.0, 3.0)
    assert results.ratio({"dasr_ops": samples["dasr_ops"]}, "dasr_ops", "backward") is None


def test_the_fastest_visits_count() -> None:
    samples = {
        "official": Samples(visits=[[[6.0]] * 3, [[4.0]] * 3, [[4.4]] * 3]),
        "dasr_ops": Samples(visits=[[[1.0]] * 3, [[2.0]] * 3, [[1.25]] * 3]),
    }
    assert results.ratio(samples, "dasr_ops", "forward") == (4.0, 4.0, 4.0)
    assert results.ratio(samples, "official", "forward") == (1.0, 1.0, 1.0)
    assert samples["official"].best("forward") == [4.0] * 3
    assert samples["dasr_ops"].best("forward") == [1.0] * 3


@pytest.fixture
def tiny(monkeypatch) -> list[Case]:
    """A selection of three cases that take a moment."""
    chosen = [Case(PLAIN, INFERENCE), Case(PLAIN, TRAINING), Case(TINY, INFERENCE)]
    chosen = [
        Case(c.subject, c.mode, peers=("dasr_ops", "official", "static", "timm")) for c in chosen
    ]
    monkeypatch.setattr(report, "cases", lambda selection, device_type: chosen)
    monkeypatch.setattr(
        report.machine, "roofline", lambda device: {"bandwidth": 1e10, "rates": {"float32": 1e11}}
    )
    return chosen


def test_run_writes_a_report(tiny, tmp_path: Path) -> None:
    lines: list[str] = []
    path = tmp_path / "new" / "report.json"
    found = report.run(
        "quick",
        device="cpu",
        settings=Settings(seconds=0.01),
        json=path,
        markdown=tmp_path / "report.md",
        commit="abc1234",
        progress=lines.append,
    )
    stored = json.loads(path.read_text())
    assert stored["format"] == report.FORMAT
    assert stored["machine"]["commit"] == "abc1234"
    assert [row["pass"] for row in stored["cases"]] == [*INFERENCE, *TRAINING, *INFERENCE]
    assert len(lines) == 1 + 2 * len(stored["cases"])  # after the first visit and the last
    for row in stored["cases"]:
        peers = {result["peer"]: result for result in row["results"]}
        assert peers["official"]["ratio"] == 1
        ours = peers["dasr_ops"]
        assert 0 < ours["q1"] <= ours["median"] <= ours["q3"]
        assert ours["ratio_low"] <= ours["ratio"] <= ours["ratio_high"]
        assert ours["rounds"] * ours["visits"] >= 5
        assert 0 < ours["error"] <= ours["bar"]
        expected = max(row["flops"] / 1e11, row["bytes"] / 1e10)
        if row["level"] == "op":
            assert row["floor"] == pytest.approx(expected, rel=1e-4)
        else:
            assert row["floor"] > expected
    assert not tables.failures(found)
    page = (tmp_path / "report.md").read_text()
    assert "abc1234" in page
    assert page.count("Test, plain") == 3 + 2  # ratios, and details without the backward pass
    assert f"2 x {TINY}" in page


def test_run_within_a_budget(tiny) -> None:
    found = report.run("quick", device="cpu", budget=0.0, progress=None)
    assert not found["cases"]
    assert [entry["case"] for entry in found["left_out"]] == [case.label for case in tiny]
    assert "Left out" in tables.markdown(found)


@pytest.mark.parametrize("visits", [1, 3])
def test_an_interrupted_run_keeps_what_was_measured(
    tiny, tmp_path: Path, monkeypatch, visits: int
) -> None:
    original = measure.Measurement

    def interrupted(case, device, settings):
        if case is tiny[1]:
            raise KeyboardInterrupt
        return original(case, device, settings)

    monkeypatch.setattr(measure, "Measurement", interrupted)
    path = tmp_path / "report.json"
    settings = Settings(seconds=0, visits=visits)
    with pytest.raises(KeyboardInterrupt):
        report.run("quick", device="cpu", settings=settings, json=path, progress=None)
    (row,) = json.loads(path.read_text())["cases"]
    # As long as the case that is under way was not visited, the first visit is all there is.
    assert (row["results"][0]["rounds"], row["results"][0]["visits"]) == (-(-5 // visits), 1)


def test_visits_are_spread_over_all_cases(tiny, monkeypatch) -> None:
    order = []
    original = measure.Measurement.visit

    def visit(self):
        order.append(tiny.index(self.case))
        original(self)

    monkeypatch.setattr(measure.Measurement, "visit", visit)
    settings = Settings(seconds=0, visits=3)  # 5 rounds at least, 2 in each visit
    found = report.run("quick", device="cpu", settings=settings, progress=None)
    assert order == [0, 1, 2] * 3
    measured = [r for row in found["cases"] for r in row["results"] if "rounds" in r]
    assert [(r["rounds"], r["visits"]) for r in measured] == [(2, 3)] * 4 * 3

    # However many visits there are, each has a spread.
    many = Settings(seconds=0, visits=7)
    found = report.run("quick", device="cpu", settings=many, only="plain", progress=None)
    assert found["cases"][0]["results"][0]["rounds"] == 2

    # A budget that ends during the first visits leaves these.
    order.clear()
    clock = iter([0.0, 1.0, 1.0, 2.0])
    monkeypatch.setattr(report.time, "monotonic", lambda: next(clock, 100.0))
    found = report.run("quick", device="cpu", settings=settings, budget=3, progress=None)
    monkeypatch.undo()
    assert order == [0, 1]
    assert len(found["left_out"]) == 1
    assert found["cases"][0]["results"][0]["visits"] == 1


def test_with_memory_for_one_case_each_has_its_visits_by_itself(tiny, monkeypatch) -> None:
    order = []
    original = measure.Measurement.visit

    def visit(self):
        order.append(tiny.index(self.case))
        original(self)

    monkeypatch.setattr(measure.Measurement, "visit", visit)
    settings = Settings(seconds=0, visits=3)
    monkeypatch.setattr(measure, "_memory", lambda device: 0)
    report.run("quick", device="cpu", settings=settings, progress=None)
    assert order == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_case_that_cannot_be_set_up_is_a_failure(tiny, monkeypatch) -> None:
    def broken(case, device, cache):
        raise RuntimeError("no such device function")

    monkeypatch.setattr(measure, "_subject", broken)
    found = report.run("quick", device="cpu", progress=None)
    assert len(tables.failures(found)) == len(found["cases"]) == 4


def test_too_little_memory_is_no_failure(tiny, monkeypatch) -> None:
    def large(layer, tensors):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(formulations.FORMULATIONS, "dasr_ops", large)
    found = report.run("quick", device="cpu", only="plain", settings=Settings(0.01), progress=None)
    assert not tables.failures(found)
    assert "out of memory" in found["cases"][0]["results"][0]["skipped"]


def test_json_has_no_infinity(tmp_path: Path) -> None:
    samples = {"dasr_ops": Samples(Accuracy(math.inf, 1e-6), visits=[[[1e-3]] * 5])}
    stored = {"cases": results.rows(Case(PLAIN, INFERENCE), samples, None)}
    report.write_json(stored, tmp_path / "report.json")
    row = json.loads((tmp_path / "report.json").read_text())["cases"][0]
    assert row["results"][0]["error"] is None
    assert row["results"][0]["ratio"] is None
    assert row["floor"] is None


needs_tyro = pytest.mark.skipif(
    importlib.util.find_spec("tyro") is None, reason="the command parses its arguments by tyro"
)


@needs_tyro
def test_command(tiny, tmp_path: Path, capsys) -> None:
    path = tmp_path / "report.json"
    arguments = ["bench", "--device", "cpu", "--seconds", "0.01", "--only", "plain"]
    arguments += ["--json", str(path), "--plot", str(tmp_path / "plot.svg")]
    assert main([*arguments, "--markdown", str(tmp_path / "pages" / "report.md")]) == 0
    output = capsys.readouterr()
    assert "Times faster than the official formulation" in output.out
    assert output.out.count("Test, plain: 2 x 6->4 3x3, 7x5, K = 3") == 3
    assert len(json.loads(path.read_text())["cases"]) == 3
    assert {p.name for p in tmp_path.glob("plot*.svg")} == {"plot-ratios.svg", "plot-roofline.svg"}
    page = (tmp_path / "pages" / "report.md").read_text()
    assert "(../plot-ratios.svg)" in page
    assert "(../plot-roofline.svg)" in page


@needs_tyro
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nowhere"], "--only: no case"),
        (["--device", "tpu"], "--device: "),
        (["--device", "meta"], "--device: expected a CPU or a CUDA device"),
        (["--seconds", "0"], "--seconds: expected more than 0"),
        (["--threads", "-1"], "--threads: expected more than 0"),
    ],
)
def test_command_refuses(arguments: list[str], message: str, capsys) -> None:
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


@needs_tyro
def test_command_reports_failures(tiny, monkeypatch, capsys) -> None:
    def broken(layer, tensors):
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(formulations.FORMULATIONS, "dasr_ops", broken)
    assert main(["bench", "--device", "cpu", "--only", "plain", "--seconds", "0.01"]) == 1
    assert "no such kernel" in capsys.readouterr().err


def test_static_network_is_the_first_picture_s_mixture() -> None:
    from dasr_ops.bench.networks import OfficialGenerator

    g = MSRResNetDynamic(num_feat=8, num_block=1, num_models=2)
    x, weights = torch.rand(2, 3, 6, 5), torch.randn(2, 2)
    static = g.to_static(weights[0])
    assert isinstance(static, SRResNet)
    assert torch.allclose(static(x)[0], OfficialGenerator(g)(x, weights)[0], atol=1e-5)
