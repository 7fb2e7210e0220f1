"""Settings that make no sense are refused where they are set, in one line that names the field."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from dasr_ops.train.config import (
    DataConfig,
    EngineConfig,
    LevelWeights,
    NetworkConfig,
    OptimizerConfig,
    ScheduleConfig,
    StartConfig,
    TrainConfig,
    ValidationConfig,
)
from dasr_ops.train.config_checks import problems
from dasr_ops.train.config_losses import (
    GanLossConfig,
    LossConfig,
    PerceptualLossConfig,
    PixelLossConfig,
    RegressionLossConfig,
)
from dasr_ops.train.config_rules import ConfigError


def _off(**kept: object) -> LossConfig:
    parts = {
        "pixel": PixelLossConfig(weight=0),
        "regression": RegressionLossConfig(weight=0),
        "perceptual": PerceptualLossConfig(weight=0),
        "gan": GanLossConfig(weight=0),
    }
    return LossConfig(**{**parts, **kept})


STATIC = NetworkConfig(kind="srresnet")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NetworkConfig(upscale=5), "network.upscale: expected 2, 3 or 4, got 5"),
        (lambda: StartConfig(weights=(Path("a"),) * 3), "start.weights: expected one or two files"),
        (
            lambda: DataConfig(patch_size=512),
            "data.source_size: expected at least data.patch_size = 512, got 400",
        ),
        (lambda: LevelWeights(weak=math.nan), "degradation.levels: expected weights >= 0, not all"),
        (lambda: LevelWeights(severe=math.nan), "degradation.levels: expected weights >= 0, not"),
        (
            lambda: LevelWeights(weak=0, standard=0, severe=0),
            "degradation.levels: expected weights >= 0, not all 0",
        ),
        (
            lambda: RegressionLossConfig(entries=(1.0,) * 32),
            "loss.regression.entries: expected 33 numbers, got 32",
        ),
        (
            lambda: RegressionLossConfig(entries=(-1.0,) * 33),
            "loss.regression.entries: expected weights >= 0",
        ),
        (
            lambda: PerceptualLossConfig(layers={"conv3_4": 1.0}, network="vgg16_hed"),
            "loss.perceptual.layers: expected layers of vgg16_hed, conv1_1 .. conv5_3, got "
            "['conv3_4']",
        ),
        (
            lambda: PerceptualLossConfig(layers={"conv1_2": 0.0}),
            "loss.perceptual.layers: expected weights >= 0, not all 0",
        ),
        (
            lambda: GanLossConfig(kind="wgan_softplus", relativistic=True),
            "loss.gan.relativistic: expected False for kind wgan_softplus",
        ),
        (lambda: TrainConfig(seed=2**63), "seed: expected 0 to 2^63 - 1, got 9223372036854775808"),
        (lambda: LossConfig(true_vector=1.5), "loss.true_vector: expected a number in 0..1"),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), "optimizer.betas: expected two numbers"),
        (
            lambda: OptimizerConfig(options={"lr": 1.0}),
            "optimizer.options: expected options that have no field of their own, got ['lr']",
        ),
        (
            lambda: OptimizerConfig(options={"eps": math.inf}),
            "optimizer.options: expected finite numbers",
        ),
        (lambda: ScheduleConfig(milestones=(2, 1)), "schedule.milestones: expected rising step"),
        (lambda: EngineConfig(ema=1.0), "engine.ema: expected 0 or more, below 1, got 1.0"),
        (lambda: ValidationConfig(levels=("mild",)), "validation.levels: expected names among"),
        (
            lambda: TrainConfig(data=DataConfig(patch_size=252)),
            "data.patch_size: expected a multiple of 8 for the discriminator, got 252",
        ),
        (
            lambda: TrainConfig(network=NetworkConfig(upscale=3)),
            "data.patch_size: expected a multiple of 3, got 256",
        ),
        (
            lambda: TrainConfig(
                loss=_off(regression=RegressionLossConfig(weight=1)),
                validation=ValidationConfig(pictures=Path("a")),
            ),
            "validation.pictures: expected none where no picture is restored",
        ),
        (lambda: TrainConfig(loss=_off()), "loss: expected a weight above 0 that trains the"),
        (
            lambda: TrainConfig(
                network=STATIC, loss=_off(regression=RegressionLossConfig(weight=1))
            ),
            "loss: expected a weight above 0 that trains the network, got 'none'",
        ),
        (
            lambda: TrainConfig(network=STATIC, start=StartConfig(weights=(Path("a"), Path("b")))),
            "start.weights: expected one file for network.kind = srresnet, got 2",
        ),
    ],
)
def test_refused(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_sensible_settings_pass():
    schedule = ScheduleConfig(iterations=10, milestones=(20, 30), kind="multistep", warmup=50)
    TrainConfig(schedule=schedule)  # milestones after the end are no mistake in a trial run
    TrainConfig(network=STATIC, loss=LossConfig())  # no v to regress: that loss is not there
    TrainConfig(loss=_off(regression=RegressionLossConfig()))  # P alone
    TrainConfig(loss=_off(perceptual=PerceptualLossConfig(weight=0, style_weight=1)))
    without_gan = LossConfig(gan=GanLossConfig(weight=0))
    TrainConfig(data=DataConfig(patch_size=252), loss=without_gan)


# --- files and folders that a run needs ---


@pytest.fixture
def ready(tmp_path, monkeypatch) -> TrainConfig:
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "lists", "val", "runs"):
        (tmp_path / folder).mkdir()
    for name in ("start.pth", "vgg.pth", "d.pth"):
        (tmp_path / name).touch()
    return TrainConfig(
        run=Path("runs/a"),
        start=StartConfig(weights=(Path("start.pth"),), discriminator=Path("d.pth")),
        data=DataConfig(train=(Path("photos"),), root=Path("lists")),
        loss=LossConfig(perceptual=PerceptualLossConfig(weights=Path("vgg.pth"))),
        validation=ValidationConfig(pictures=Path("val")),
    )


def test_nothing_missing(ready):
    assert problems(ready) == []


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("data", {"train": ()}, "data.train: expected folders, databases or lists"),
        ("data", {"train": (Path("no"), Path("photos"))}, "data.train: no does not exist"),
        ("data", {"root": Path("d.pth")}, "data.root: d.pth is no folder"),
        ("start", {"weights": (Path("no.pth"),)}, "start.weights: no.pth does not exist"),
        ("start", {"discriminator": Path("no.pth")}, "start.discriminator: no.pth does not exist"),
        ("validation", {"pictures": Path("no")}, "validation.pictures: no does not exist"),
        ("optimizer", {"name": "adamw"}, "optimizer.name: expected one of torch.optim, got adamw; "
         "did you mean AdamW?"),
        *(("optimizer", {"name": n}, f"optimizer.name: expected one of torch.optim, got {n}; there")
          for n in ("Optimizer", "lr_scheduler", "LBFGS", "Lion!")),
        ("optimizer", {"options": {"epss": 1.0}}, "optimizer.options: Adam has no option 'epss'"),
        (None, {"run": Path("d.pth")}, "run: d.pth is a file, not a folder"),
        (None, {"run": Path("d.pth/a/b")}, "run: d.pth is a file, not a folder"),
    ],
)  # fmt: skip
def test_missing(ready, section, values, message):
    part = ready if section is None else getattr(ready, section)
    changed = dataclasses.replace(part, **values)
    config = changed if section is None else dataclasses.replace(ready, **{section: changed})
    (found,) = problems(config)
    assert found.startswith(message)


def test_weights_of_the_perceptual_loss(ready, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    loss = ready.loss.perceptual
    loss.weights = None
    (found,) = problems(ready)
    assert found.startswith("loss.perceptual.weights: no weights of vgg19 at ")
    loss.weights = Path("no.pth")
    assert problems(ready) == ["loss.perceptual.weights: no.pth does not exist"]
    loss.weight = 0
    assert problems(ready) == []
    loss.style_weight = 1
    assert len(problems(ready)) == 1
    # Found by itself where torchvision keeps it.
    loss.weights = None
    cache = tmp_path / "cache" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / "vgg19-dcbb9e9d.pth").touch()
    assert problems(ready) == []


def test_a_run_that_goes_on_needs_no_weights_to_start_from(ready):
    Path("start.pth").unlink()
    Path("d.pth").unlink()
    assert len(problems(ready)) == 2
    ready.run.mkdir()
    (ready.run / "config.yml").touch()
    assert problems(ready) == []


def test_a_discriminator_that_is_not_used_is_not_asked_for(ready):
    Path("d.pth").unlink()
    ready.loss.gan.weight = 0
    assert problems(ready) == []
