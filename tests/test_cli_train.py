"""``dasr train``: where settings come from, what comes before what, and exit codes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

pytest.importorskip("tyro", reason="the commands parse their arguments by tyro")
pytest.importorskip("yaml", reason="settings in files need PyYAML")

import torch
import yaml

from dasr_ops.cli import main
from dasr_ops.train import config_yaml
from dasr_ops.train.config import TrainConfig
from dasr_ops.train.config_files import load_config, presets, save_config, to_dict
from dasr_ops.train.config_rules import ConfigError

from .test_config_basicsr import DASR


class Engine(types.ModuleType):
    """Stands in for the engine: notes the settings, returns or raises what it is told to."""

    def __init__(self) -> None:
        super().__init__("dasr_ops.train.engine")
        self.seen: list[TrainConfig] = []
        self.outcome: int | Exception = 0

    def train(self, config: TrainConfig) -> int:
        self.seen.append(config)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def engine(monkeypatch, tmp_path) -> Engine:
    """The engine, in a working directory with a folder of photographs."""
    module = Engine()
    monkeypatch.setitem(sys.modules, "dasr_ops.train.engine", module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path.with_name("no cache of weights")))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    (tmp_path / "photos").mkdir()
    (tmp_path / "vgg.pth").touch()
    return module


def _train(engine: Engine, *arguments: object) -> TrainConfig:
    assert main(["train", *map(str, arguments)]) == 0
    return engine.seen[-1]


def _error(capsys, *arguments: object) -> str:
    """Run a command that has to fail as a wrong command line does; return its one line."""
    assert main(["train", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("dasr train: error: ")
    return line.removeprefix("dasr train: error: ")


def _differences(first: TrainConfig, second: TrainConfig) -> dict[str, object]:
    def flat(mapping, path=""):
        for name, value in mapping.items():
            if isinstance(value, dict) and name not in ("layers", "options"):
                yield from flat(value, f"{path}{name}.")
            else:
                yield f"{path}{name}", value

    others = dict(flat(to_dict(second)))
    return {k: v for k, v in flat(to_dict(first)) if v != others[k]}


def test_preset_with_overrides(engine):
    config = _train(engine, "smoke", "--data.train", "photos", "--schedule.iterations", 7)
    changes = {"data.train": ["photos"], "schedule.iterations": 7}
    assert _differences(config, load_config("smoke")) == changes
    assert isinstance(config.data.train[0], Path)


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        (["--run", "here"], {"run": "here"}),
        (["--data.no-flip", "--data.rotate"], {"data.flip": False, "data.rotate": True}),
        (["--data.batch_size", "3"], {"data.batch_size": 3}),
        (["--data.batch-size=3"], {"data.batch_size": 3}),
        (["--optimizer.lr", "1e-5"], {"optimizer.lr": 1e-5}),
        (["--optimizer.betas", ".5", ".6"], {"optimizer.betas": [0.5, 0.6]}),
        (["--schedule.milestones", "5", "6"], {"schedule.milestones": [5, 6]}),
        (["--schedule.milestones"], {"schedule.milestones": []}),
        (["--loss.gan.kind", "hinge"], {"loss.gan.kind": "hinge"}),
        (["--degradation.levels.clean", "2"], {"degradation.levels.clean": 2.0}),
        (["--data.root", "photos"], {"data.root": "photos"}),
        (["--data.root", "None"], {"data.root": None}),
        (["--validation.levels", "weak", "severe"], {"validation.levels": ["weak", "severe"]}),
        (["--optimizer.options", "eps", "1e-6"], {"optimizer.options": {"eps": 1e-6}}),
        (["--optimizer.options"], {"optimizer.options": {}}),
        (
            ["--loss.perceptual.layers", "conv1_1", "1", "conv2_1", "2"],
            {"loss.perceptual.layers": {"conv1_1": 1.0, "conv2_1": 2.0}},
        ),
        # Sizes that make sense only together.
        (
            ["--data.patch-size", "480", "--data.source-size", "512"],
            {"data.patch_size": 480, "data.source_size": 512},
        ),
    ],
)
def test_every_kind_of_field(engine, arguments, changes):
    """On settings whose values are all there already, so that each is replaced."""
    start = load_config("paper")
    start.data.train, start.data.root = (Path("photos"),), Path("..")
    start.loss.perceptual.weights = Path("vgg.pth")
    start.loss.perceptual.layers = {"conv5_4": 1.0}
    start.optimizer.options = {"amsgrad": 1.0, "eps": 1e-3}
    save_config(start, "mine.yml")
    config = _train(engine, "mine.yml", *arguments)
    assert _differences(config, start) == changes
    assert _differences(_train(engine, "mine.yml"), start) == {}


def test_yaml_file_and_run_folder(engine, tmp_path):
    Path("mine.yml").write_text("preset: smoke\nrun: runs/b\ndata: {train: [photos]}\n")
    config = _train(engine, "mine.yml")
    assert (config.run, config.network.num_feat) == (Path("runs/b"), 16)
    config.run.mkdir(parents=True)
    save_config(config, config.run / "config.yml")
    for source in ("runs/b/config.yml", "runs/b", tmp_path / "runs" / "b"):
        again = _train(engine, source)
        assert again.run.resolve() == config.run.resolve()
        assert dataclasses.replace(again, run=config.run) == config
    assert _train(engine, "runs/b", "--schedule.iterations", 9).schedule.iterations == 9


@pytest.mark.parametrize("code", [0, 1, 130, 143])
def test_exit_code_is_that_of_the_engine(engine, code):
    engine.outcome = code
    assert main(["train", "smoke", "--data.train", "photos"]) == code


def test_errors_of_the_engine(engine, capsys):
    arguments = ["smoke", "--data.train", "photos"]
    engine.outcome = ConfigError("engine.device: no GPU here")
    assert _error(capsys, *arguments) == "engine.device: no GPU here"
    text = "an extra is missing: pip install 'dasr-ops[train]'"
    engine.outcome = ModuleNotFoundError(text, name="lmdb")
    assert main(["train", *arguments]) == 1
    assert capsys.readouterr().err == f"dasr train: error: {text}\n"
    engine.outcome = ModuleNotFoundError("No module named 'dasr_ops.x'", name="dasr_ops.x")
    with pytest.raises(ModuleNotFoundError):  # a bug, not a missing extra
        main(["train", *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a preset or a file first: dasr train CONFIG"),
        (["--data.train", "photos"], "expected a preset or a file first"),
        (["--dry-run"], "expected a preset or a file first"),
        (["papr"], "no preset and no file named 'papr'; did you mean paper? (presets: dasr, "),
        (["photos"], "photos: expected the folder of a run, with config.yml in it"),
        (["bad.yml"], "bad.yml:2: data.batch_size: expected 1 or more, got 0"),
        (["smoke"], "data.train: expected folders, databases or lists of pictures, got none"),
        (["smoke", "--data.train", "no"], "data.train: no does not exist"),
        (["smoke", "--seed", "-1"], "seed: expected 0 to 2^63 - 1, got -1"),
        (["smoke", "--network.upscale", "5"], "network.upscale: expected 2, 3 or 4, got 5"),
        (["smoke", "--data.source-size", "40"], "data.source_size: expected at least data.patch"),
        (["smoke", "--loss.pixel.weight", "nan"], "loss.pixel.weight: expected 0 or more, got nan"),
        (
            ["smoke", "--loss.perceptual.layers", "a", "1"],
            "loss.perceptual.layers: expected layers",
        ),
        (["smoke", "--optimizer.options", "lr", "1"], "optimizer.options: expected options that"),
        (["smoke", "--degradation.levels.clean", "0"], "degradation.levels: expected weights >= 0"),
        (["smoke", "--from-basicsr", "a.yml"], "expected either smoke or --from-basicsr a.yml"),
        (["--from-basicsr"], "--from-basicsr: expected a YAML file"),
        (["--from-basicsr", "--dry-run"], "--from-basicsr: expected a YAML file"),
        (["--from-basicsr", "no.yml"], "no.yml: No such file or directory"),
        (["--from-basicsr", "bad.yml"], "bad.yml: network_g.type: expected one of"),
    ],
)
def test_one_line_for_each_error(engine, capsys, arguments, message):
    Path("bad.yml").write_text("data:\n  batch_size: 0\n")
    assert _error(capsys, *arguments).startswith(message)
    assert engine.seen == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--data.batch-size", "x"], "--data.batch-size"),
        (["--loss.gan.wieght", "1"], "--loss.gan.weight"),
        (["--loss.gan.kind", "wgan"], "wgan_softplus"),
        (["stray"], "stray"),
    ],
)
def test_errors_of_the_parser(engine, capsys, arguments, text):
    assert main(["train", "smoke", *arguments]) == 2
    out, err = capsys.readouterr()
    assert text in out + err
    assert engine.seen == []


def test_dry_run(engine, capsys):
    arguments = ["small", "--dry-run", "--data.train", "photos", "--run", "runs/x"]
    assert main(["train", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    expected = load_config("small")
    expected.data.train, expected.run = (Path("photos"),), Path("runs/x")
    assert yaml.safe_load(out) == to_dict(expected)
    assert engine.seen == []
    assert sorted(os.listdir()) == ["photos", "vgg.pth"]
    Path("mine.yml").write_text(out)
    assert _train(engine, "mine.yml") == expected
    # What is missing is said, all of it, and the YAML still comes.
    assert main(["train", "paper", "--dry_run", "--start.weights", "no.pth"]) == 2
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["start"]["weights"] == ["no.pth"]
    names = [line.split(": ")[2] for line in err.splitlines()]
    assert names == ["data.train", "start.weights", "loss.perceptual.weights"]


def test_official_file(engine, capsys, monkeypatch):
    Path("train_DASR.yml").write_text(DASR)
    for folder in ("data/photos", "start"):
        Path(folder).mkdir(parents=True)
    for file in ("data/list.txt", "start/srresnet.pth"):
        Path(file).touch()
    vgg = ["--loss.perceptual.weights", "vgg.pth"]
    config = _train(engine, "--from-basicsr", "train_DASR.yml", *vgg, "--seed", "8")
    err = capsys.readouterr().err
    assert (config.seed, config.run) == (8, Path("runs/my_dasr"))
    assert config.loss.perceptual.layers["conv3_4"] == 1.0
    assert err.startswith("ignored, without effect here: datasets.train.name, ")
    assert "dist_params.port\n" in err
    assert _train(engine, *vgg, "--from_basicsr=train_DASR.yml").seed == 3
    capsys.readouterr()
    monkeypatch.setenv("RANK", "1")
    _train(engine, "--from-basicsr", "train_DASR.yml", *vgg)
    assert capsys.readouterr().err == ""  # said once, by the first process


def test_list_and_help(engine, capsys):
    assert main(["train", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(presets())
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: dasr train CONFIG")
    flat = " ".join(text.split())
    for name, line in presets().items():
        assert f"{name} {line}" in flat
    for option in ("--dry-run", "--from-basicsr FILE", "--list", "--loss.gan.relativistic"):
        assert option in text

    def names(cls, path=""):
        for field in dataclasses.fields(cls):
            if dataclasses.is_dataclass(field.default_factory):
                yield from names(field.default_factory, f"{path}{field.name}.")
            else:
                yield f"--{path}{field.name}".replace("_", "-")

    assert all(name in text for name in names(TrainConfig))
    # Docstrings of several lines are running text.
    plain = " ".join(text.replace("│", " ").split())
    assert "whose kernels every expert then copies. The sizes of the network must agree." in plain
    assert main(["train", "smoke", "-h"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: dasr train smoke")
    assert "runs/smoke" in text
    assert engine.seen == []


def test_without_pyyaml(engine, capsys, monkeypatch):
    config_yaml._classes.cache_clear()
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert "pip install 'dasr-ops[train]'" in _error(capsys, "smoke", "--data.train", "photos")
    assert main(["train", "--help"]) == 0
    assert main(["train", "--list"]) == 0


def test_as_a_process(tmp_path):
    """From another folder, without the stand-in: the command is there, and its errors are clean."""
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "dasr_ops", "train", "smoke", "--engine.ema", "2"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    message = "dasr train: error: engine.ema: expected 0 or more, below 1, got 2.0\n"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(message)
    assert "Traceback" not in done.stderr
