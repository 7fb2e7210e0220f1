"""``python -m dasr_ops.train.pretrain PHOTOS RUN``: PSNR-oriented training of DASR or SRResNet.

G learns by L1 on pictures, P by L1 on the degradation vector. For half of the samples G is told the
true vector instead of the predicted one, so that it learns to use what a perfect P would say. Both
networks are averaged (EMA), and what is saved are the averages. A run that was interrupted goes on
where its last checkpoint was written.
"""

from __future__ import annotations

import copy
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dasr_ops.models import DASR, Degradation_Predictor, MSRResNetDynamic, save_dasr
from dasr_ops.models.files import atomic_path

from .data import PatchDataset
from .degradations import degrade

SCALE = 4


@dataclass
class Config:
    """What to train, on what, for how long.

    Attributes:
        photos: folder of training photographs.
        run: folder for the checkpoint and the result.
        static: train an SRResNet of the same body, the yardstick for the experts.
        num_feat: features of G.
        num_block: residual blocks of G.
        num_models: experts of each convolution of G.
        predictor_feat: features of P.
        iterations: training steps.
        batch_size: patches of a step.
        patch_size: side of a ground-truth patch in pixels.
        learning_rate: of Adam at its highest; it falls to 0 along a cosine.
        warmup: steps until the learning rate has risen to its highest.
        ema: decay of the averages, per step.
        true_vector: share of the samples for which G is told the true vector.
        clean: weight of the level "clean" among the levels.
        weak: weight of the level "weak".
        standard: weight of the level "standard".
        seed: of initialisation, patches and degradations.
        checkpoint_every: steps between two checkpoints.
        threads: of PyTorch; 0 for its default.
    """

    photos: tyro.conf.Positional[Path]
    run: tyro.conf.Positional[Path]
    static: bool = False
    num_feat: int = 32
    num_block: int = 5
    num_models: int = 5
    predictor_feat: int = 16
    iterations: int = 20000
    batch_size: int = 8
    patch_size: int = 160
    learning_rate: float = 1e-3
    warmup: int = 500
    ema: float = 0.999
    true_vector: float = 0.5
    clean: float = 0.15
    weak: float = 0.35
    standard: float = 0.5
    seed: int = 0
    checkpoint_every: int = 500
    threads: int = 0

    @property
    def levels(self) -> dict[str, float]:
        """Weights of the degradation levels."""
        weights = {"clean": self.clean, "weak": self.weak, "standard": self.standard}
        return {name: weight for name, weight in weights.items() if weight > 0}


class DegradedBatches(Dataset):
    """Batch i of a run as (LR, GT, v), a function of (seed, i) and the folder of photographs."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.patches = PatchDataset(
            config.photos,
            config.patch_size,
            length=config.iterations * config.batch_size,
            seed=config.seed,
        )

    def __len__(self) -> int:
        return self.config.iterations

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        size = self.config.batch_size
        gt = torch.stack([self.patches[index * size + i] for i in range(size)])
        seed = np.random.SeedSequence([self.config.seed, index]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(seed[0] >> 1))
        lr, v = degrade(gt, generator, self.config.levels, SCALE)
        return lr, gt, v


def build(config: Config) -> nn.Module:
    """Return the network to train, initialised from the seed.

    The static network is trained as a dynamic one with a single expert, which is the same function
    in the same kernels, and saved as the SRResNet that it is.
    """
    torch.manual_seed(config.seed)
    body = {"num_feat": config.num_feat, "num_block": config.num_block, "upscale": SCALE}
    if config.static:
        return MSRResNetDynamic(num_models=1, **body)
    return DASR(
        MSRResNetDynamic(num_models=config.num_models, **body),
        Degradation_Predictor(nf=config.predictor_feat, num_networks=config.num_models),
    )


def losses(
    model: nn.Module, lr: Tensor, gt: Tensor, v: Tensor, told: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and its parts; ``told`` [B] says which samples G knows the truth of."""
    if not isinstance(model, DASR):
        pixel = (model(lr, lr.new_ones(len(lr), 1)) - gt).abs().mean()
        return pixel, {"pixel": pixel}
    predicted = model.net_p(lr)
    weights = torch.where(told[:, None], model.net_p.mix(v), predicted.weights)
    pixel = (model.net_g(lr, weights) - gt).abs().mean()
    regression = (predicted.v - v).abs().mean()
    return pixel + regression, {"pixel": pixel, "v": regression}


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up, then a cosine to 0."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.iterations - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train(config: Config) -> nn.Module:
    """Train to the end of the schedule and return the averaged network.

    Raises:
        ValueError: the configuration or the folder of photographs is not usable, or the
            checkpoint in the run's folder belongs to another configuration.
        FloatingPointError: the loss is no longer finite.
    """
    if config.threads > 0:
        torch.set_num_threads(config.threads)
    config.run.mkdir(parents=True, exist_ok=True)
    batches = DegradedBatches(config)
    model = build(config)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), config.learning_rate, betas=(0.9, 0.99))
    checkpoint = config.run / "checkpoint.pt"
    start = _resume(checkpoint, config, model, average, optimizer)

    # One worker: batches are made while the step before is computed.
    loader = DataLoader(
        batches, batch_size=None, sampler=range(start, config.iterations), num_workers=1
    )
    bar = tqdm(loader, initial=start, total=config.iterations, mininterval=5, unit="step")
    smooth: dict[str, float] = {}
    for step, (lr, gt, v) in enumerate(bar, start):
        lr, gt = (t.contiguous(memory_format=torch.channels_last) for t in (lr, gt))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        told = torch.arange(len(lr)) < round(config.true_vector * len(lr))
        loss, parts = losses(model, lr, gt, v, told)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        for name, part in parts.items():
            smooth[name] = 0.98 * smooth.get(name, part.item()) + 0.02 * part.item()
        bar.set_postfix({name: f"{value:.4f}" for name, value in smooth.items()}, refresh=False)
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.iterations:
            _save(checkpoint, config, step + 1, model, average, optimizer)
            _export(config, average)
    return average


def _state(config: Config) -> dict[str, Any]:
    # What must not change between the parts of a run.
    kept = {k: v for k, v in vars(config).items() if k not in ("checkpoint_every", "threads")}
    return {k: os.fspath(v) if isinstance(v, Path) else v for k, v in kept.items()}


def _save(
    path: Path,
    config: Config,
    step: int,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    state = {
        "config": _state(config),
        "step": step,
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _resume(
    path: Path,
    config: Config,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    if state["config"] != _state(config):
        changed = sorted(k for k, v in _state(config).items() if state["config"].get(k) != v)
        raise ValueError(f"run: {path} was written with other settings of {', '.join(changed)}")
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def _export(config: Config, average: nn.Module) -> None:
    if isinstance(average, DASR):
        save_dasr(average, config.run / "dasr.safetensors")
        return
    with atomic_path(config.run / "srresnet.pth") as temporary:
        static = average.to_static(torch.ones(1, 1))
        torch.save({"params": static.state_dict()}, temporary)


if __name__ == "__main__":
    train(tyro.cli(Config, description=__doc__))
