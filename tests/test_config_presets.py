"""The presets: complete, installed, and what they say they are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dasr_ops.train import config_files
from dasr_ops.train.config import TrainConfig
from dasr_ops.train.config_files import load_config, presets, to_dict

yaml = pytest.importorskip("yaml", reason="presets need PyYAML")

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["dasr", "dasr-gan", "dasr-p", "paper", "paper-dasr-psnr", "paper-psnr"]
NAMES += ["small", "small-gan", "small-p", "smoke"]


def _differences(first: TrainConfig, second: TrainConfig) -> dict[str, tuple]:
    def flat(mapping, path=""):
        for name, value in mapping.items():
            if isinstance(value, dict) and value:
                yield from flat(value, f"{path}{name}.")
            else:
                yield f"{path}{name}", value

    others = dict(flat(to_dict(second)))
    return {k: (v, others[k]) for k, v in flat(to_dict(first)) if v != others[k]}


def test_names_and_lines():
    found = presets()
    assert list(found) == NAMES
    for name, line in found.items():
        assert 20 < len(line) < 100, name
        assert line.endswith((".", "?")), name


@pytest.mark.parametrize("name", NAMES)
def test_each_says_what_to_give_and_has_a_folder_of_its_own(name):
    config = load_config(name)
    assert config.run == Path("runs") / name
    assert not config.data.train
    assert not config.start.weights
    comments = (config_files._PRESETS / f"{name}.yml").read_text().split("\n\n")[0]
    assert "# To give: data.train" in comments


def test_paper_is_the_recipe_of_the_paper_and_the_default():
    config = load_config("paper")
    assert _differences(config, TrainConfig()) == {"run": ("runs/paper", "runs/dasr")}
    # Liang, Zeng, Zhang, ECCV 2022, and the official options.
    assert (config.network.kind, config.network.upscale) == ("dasr", 4)
    network = config.network
    assert (network.num_feat, network.num_block, network.num_models) == (64, 16, 5)
    assert (network.predictor_feat, network.discriminator_feat) == (64, 64)
    assert config.degradation.levels.drawn() == {"weak": 0.3, "standard": 0.3, "severe": 0.4}
    assert config.degradation.sharpen
    data = config.data
    assert (data.patch_size, data.source_size, data.batch_size, data.pool_size) == (
        256,
        400,
        6,
        192,
    )
    assert data.flip
    assert not data.rotate
    loss = config.loss
    assert (loss.pixel.weight, loss.pixel.criterion, loss.pixel.usm) == (1, "l1", True)
    assert (loss.regression.weight, loss.perceptual.weight) == (1, 1)
    assert (loss.perceptual.network, loss.perceptual.usm) == ("vgg19", True)
    assert (loss.gan.weight, loss.gan.kind, loss.gan.usm) == (0.1, "vanilla", False)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.discriminator_lr) == ("Adam", 1e-4, 1e-4)
    assert (optimizer.betas, optimizer.weight_decay) == ((0.9, 0.99), 0)
    assert (config.schedule.iterations, config.schedule.kind) == (500_000, "constant")
    assert config.engine.ema == 0.999


def test_stages_of_the_paper_fit_together():
    psnr, dasr, paper = map(load_config, ("paper-psnr", "paper-dasr-psnr", "paper"))
    for name in ("num_feat", "num_block", "upscale"):
        assert getattr(psnr.network, name) == getattr(paper.network, name)
    assert psnr.network.kind == "srresnet"
    assert psnr.degradation.levels.drawn() == {"clean": 1.0}
    assert not psnr.loss.pixel.usm
    assert psnr.optimizer.lr * psnr.schedule.final == pytest.approx(1e-7)  # as BasicSR's MSRResNet
    changed = {"run", "loss.perceptual.weight", "loss.gan.weight", "optimizer.lr"}
    assert set(_differences(dasr, paper)) == {*changed, "schedule.kind", "schedule.final"}


def test_small_is_the_recipe_of_the_shipped_network():
    # models/weights/README.md
    config = load_config("small")
    network, data, optimizer = config.network, config.data, config.optimizer
    assert (network.num_feat, network.num_block, network.num_models) == (32, 5, 5)
    assert network.predictor_feat == 16
    assert (data.patch_size, data.batch_size) == (160, 6)
    levels = {"clean": 0.15, "weak": 0.25, "standard": 0.35, "severe": 0.25}
    assert config.degradation.levels.drawn() == levels
    assert (optimizer.name, optimizer.lr, optimizer.clip_norm) == ("Adam", 1e-3, 1)
    assert optimizer.betas == (0.9, 0.99)
    schedule = config.schedule
    assert (schedule.iterations, schedule.warmup) == (20000, 300)
    assert (schedule.kind, schedule.final) == ("cosine", 0)
    assert (config.loss.regression.weight, config.loss.regression.criterion) == (1, "l2")
    assert (config.engine.ema, config.loss.true_vector) == (0.999, 0.5)
    assert not (config.degradation.sharpen or config.loss.pixel.usm)
    assert config.loss.perceptual.weight == config.loss.gan.weight == 0


def test_small_p_is_the_predictor_of_small():
    small_p = load_config("small-p")
    assert not small_p.loss.restores
    assert set(_differences(small_p, load_config("small"))) == {
        *("run", "data.patch_size", "data.source_size", "data.batch_size"),
        *("loss.pixel.weight", "optimizer.lr", "schedule.iterations", "log.images_every"),
    }


def test_dasr_has_the_size_of_the_paper_and_its_second_stage_fits():
    dasr, gan = load_config("dasr"), load_config("dasr-gan")
    assert dasr.network == gan.network == load_config("paper").network
    assert dasr.degradation.levels == gan.degradation.levels
    assert not (dasr.degradation.sharpen or dasr.loss.pixel.usm or dasr.loss.gan.weight)
    assert set(_differences(gan, dasr)) == {
        *("run", "degradation.sharpen", "optimizer.lr"),
        *("loss.pixel.usm", "loss.gan.weight", "loss.perceptual.weight"),
        *("loss.perceptual.usm", "loss.perceptual.network"),
        *("schedule.iterations", "schedule.kind", "schedule.warmup"),
    }


def test_dasr_p_is_the_predictor_of_dasr():
    dasr_p = load_config("dasr-p")
    assert not dasr_p.loss.restores
    assert set(_differences(dasr_p, load_config("dasr"))) == {
        *("run", "data.source_size", "loss.pixel.weight"),
        *("optimizer.lr", "schedule.iterations", "log.images_every"),
    }


def test_small_gan_adds_to_small():
    changed = set(_differences(load_config("small-gan"), load_config("small")))
    assert changed == {
        *("run", "data.patch_size", "data.source_size", "data.batch_size"),
        *("loss.perceptual.weight", "loss.perceptual.network", "loss.gan.weight"),
        *("optimizer.lr", "optimizer.discriminator_lr"),
        *("schedule.iterations", "schedule.kind", "schedule.warmup"),
    }


def test_a_preset_comes_before_a_file_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").write_text("seed: 9")
    assert load_config("small").seed == 0
    assert load_config("./small").seed == 9


def test_presets_are_installed(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    environment = {**os.environ, "DASR_OPS_WITHOUT_EXTENSION": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    installed = tmp_path / "dasr_ops" / "train" / "presets"
    assert sorted(path.stem for path in installed.iterdir()) == NAMES


def test_extras_name_what_settings_need():
    text = (ROOT / "pyproject.toml").read_text()
    for extra in ("train", "test"):
        (section,) = re.findall(rf"^{extra} = \[(.*?)\]", text, re.DOTALL | re.MULTILINE)
        for package in ("pyyaml", "tensorboard", "lmdb", "h5py", "scikit-image"):
            assert f'"{package}>=' in section, (extra, package)
