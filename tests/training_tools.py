"""Tiny training runs for the tests of the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from dasr_ops.train.config import (
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    LogConfig,
    NetworkConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from dasr_ops.train.config_losses import GanLossConfig, LossConfig, PerceptualLossConfig


def photographs(folder: Path, count: int = 3, side: int = 72) -> Path:
    """Write smooth random pictures of different sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        noise = np.random.default_rng(i).random((side + 4 * i, side, 3))
        picture = ndimage.gaussian_filter(noise, (2, 2, 0))
        picture = (picture - picture.min()) / (picture.max() - picture.min())
        Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def tiny(folder: Path, **changes: object) -> TrainConfig:
    """Return a run of a few quick steps, with every kind of state but a perceptual network.

    Args:
        folder: where pictures and run are.
        **changes: sections or fields of sections, "data__pool_size" and so on.
    """
    pictures = folder / "pictures"
    if not pictures.exists():
        photographs(pictures)
    config = TrainConfig(
        run=folder / "run",
        network=NetworkConfig(
            num_feat=8, num_block=2, num_models=2, predictor_feat=4, discriminator_feat=4
        ),
        data=DataConfig(
            train=(pictures,),
            patch_size=48,
            source_size=56,
            batch_size=2,
            pool_size=4,
            workers=0,
        ),
        loss=LossConfig(perceptual=PerceptualLossConfig(weight=0.0), gan=GanLossConfig(weight=0.1)),
        optimizer=OptimizerConfig(lr=1e-3, discriminator_lr=1e-3),
        schedule=ScheduleConfig(iterations=6, kind="cosine", warmup=1),
        engine=EngineConfig(device="cpu", deterministic=True, threads=1),
        log=LogConfig(every=1, images_every=0, tensorboard=False),
        checkpoint=CheckpointConfig(every=2),
    )
    for name, value in changes.items():
        owner: object = config
        *sections, field = name.split("__")
        for section in sections:
            owner = getattr(owner, section)
        assert hasattr(owner, field), name
        setattr(owner, field, value)
    return config


def newest(config: TrainConfig) -> dict:
    """Return the newest checkpoint of a run."""
    from dasr_ops.train.engine.checkpoints import Checkpoints

    state = Checkpoints(config.run / "checkpoints", 1, print).newest()
    assert state is not None
    return state


def tensors(state: object, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return all tensors within a checkpoint by their path."""
    if isinstance(state, torch.Tensor):
        return {prefix: state}
    found: dict[str, torch.Tensor] = {}
    items = state.items() if isinstance(state, dict) else ()
    if isinstance(state, (list, tuple)):
        items = enumerate(state)
    for name, value in items:
        found.update(tensors(value, f"{prefix}/{name}"))
    return found


def assert_same(one: dict, other: dict) -> None:
    """Compare two checkpoints bit by bit."""
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different
