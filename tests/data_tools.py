"""Pictures, settings and a synthesis that only cuts, for the tests of training data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from dasr_ops.train.batch import Batch
from dasr_ops.train.config import DataConfig, EngineConfig, NetworkConfig, TrainConfig
from dasr_ops.train.data.library import Library
from dasr_ops.train.data.samples import Samples
from dasr_ops.train.data.sources import open_source

SCALE, PATCH, SOURCE = 2, 16, 24


def pixels(seed: int, height: int = 40, width: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, picture: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


def make_folder(root: Path, count: int) -> Path:
    for i in range(count):
        save(root / f"{i:02}.png", pixels(i))
    return root


def damage(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def make_config(*train: Path, seed: int = 5, accumulate: int = 1, **data: object) -> TrainConfig:
    settings = {"batch_size": 3, "pool_size": 0, "workers": 0, **data}
    return TrainConfig(
        seed=seed,
        network=NetworkConfig(upscale=SCALE),
        data=DataConfig(train=train, patch_size=PATCH, source_size=SOURCE, **settings),
        engine=EngineConfig(accumulate=accumulate),
    )


def make_samples(config: TrainConfig) -> Samples:
    sources = [open_source(path) for path in config.data.train]
    library = Library(sources, config.data.patch_size, config.data.cache_bytes)
    return Samples(library, config.data, SCALE, config.seed)


class Params(NamedTuple):
    seeds: torch.Tensor
    half: torch.Tensor  # NumPy has no such type


class CutSynthesis:
    """LR are means of 2x2, `sharp` is the negative, v the seed in 16-bit digits and the corner."""

    def draw(self, seeds: Sequence[int]) -> Params:
        return Params(torch.tensor(seeds), torch.ones(1, dtype=torch.bfloat16))

    def __call__(self, sources: torch.Tensor, corners: torch.Tensor, params: Params) -> Batch:
        assert sources.dtype == torch.uint8 and corners.dtype == torch.int64
        assert params.half.dtype == torch.bfloat16
        cuts = [
            source[:, top * SCALE : top * SCALE + PATCH, left * SCALE : left * SCALE + PATCH]
            for source, (top, left) in zip(sources, corners.tolist(), strict=True)
        ]
        gt = torch.stack(cuts)
        lr = torch.nn.functional.avg_pool2d(gt.float(), SCALE).round().byte()
        v = torch.zeros(len(gt), 33)
        for digit in range(4):
            v[:, digit] = (params.seeds >> 16 * digit & 0xFFFF).float()
        v[:, 4:6] = corners.float()
        return Batch(lr, gt, 255 - gt, v)


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(a.state_dict()[name], b.state_dict()[name]) for name in vars(a))


def expected(config: TrainConfig, numbers: Sequence[int]) -> Batch:
    """What the samples of these numbers must be as a batch."""
    samples = make_samples(config)
    chosen = [samples[n] for n in numbers]
    synthesis = CutSynthesis()
    return synthesis(
        torch.stack([s.source for s in chosen]),
        torch.tensor([s.corner for s in chosen]),
        synthesis.draw([s.seed for s in chosen]),
    )
