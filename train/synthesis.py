"""Training pairs on any device: sharpen, degrade, label and cut whole batches of ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .batch import Batch
from .degradations import (
    SCHEMES,
    DegradationParams,
    apply,
    labels,
    sample_seeds,
    usm_sharpen,
)
from .degradations._checks import upload

if TYPE_CHECKING:
    from .config import TrainConfig


class Synthesis:
    """Makes batches of (LR, GT, sharpened GT, v) out of squares of ground truth.

    The sharpened ground truth is rounded to 8 bits, as a saved file would be, and is what is
    degraded. A whole square is degraded and a patch is cut out of the results, so that the patch
    holds no border of a blur or a resize. On a GPU nothing is copied back and nothing is waited
    for; JPEG is computed there (`degradations.jpeg_batched`).

    Args:
        levels: relative weights of the levels of degradation, names of `degradations.LEVELS`.
        scale: magnification, 1 or more.
        patch_size: side of a ground-truth patch in pixels, a multiple of `scale`.
        scheme: meaning of v, a name of `degradations.SCHEMES`.
        sharpen: degrade the ground truth sharpened by unsharp masking.

    Raises:
        ValueError: unknown names, bad weights or sizes.
    """

    def __init__(
        self,
        levels: Mapping[str, float],
        scale: int,
        patch_size: int,
        *,
        scheme: str = "unified",
        sharpen: bool = True,
    ) -> None:
        if scale < 1 or scale != int(scale):
            raise ValueError(f"scale: expected a whole number, 1 or more, got {scale}")
        if patch_size < scale or patch_size % scale:
            raise ValueError(f"patch_size: expected a multiple of {scale}, got {patch_size}")
        if scheme not in SCHEMES:
            raise ValueError(f"scheme: expected one of {sorted(SCHEMES)}, got {scheme!r}")
        self.levels, self.scale, self.patch_size = dict(levels), int(scale), int(patch_size)
        self.scheme, self.sharpen = scheme, sharpen
        labels(sample_seeds([0], self.levels), scheme)  # complains about bad levels now

    @classmethod
    def from_config(cls, config: TrainConfig) -> Synthesis:
        """Return the synthesis of a training run."""
        return cls(
            config.degradation.levels.drawn(),
            config.network.upscale,
            config.data.patch_size,
            scheme=config.degradation.labels,
            sharpen=config.degradation.sharpen,
        )

    def draw(self, seeds: Sequence[int]) -> DegradationParams:
        """Draw one sample for each seed (0 .. 2^63 - 1), a function of that seed alone.

        Raises:
            ValueError: a seed out of range.
        """
        return sample_seeds(seeds, self.levels)

    @torch.no_grad()
    def __call__(self, sources: Tensor, corners: Tensor, params: DegradationParams) -> Batch:
        """Degrade squares of ground truth and cut one patch out of each.

        Args:
            sources: uint8 [B, 3, S, S] on any device, S a multiple of the scale and at least the
                patch size. (Rectangles are possible too.)
            corners: int64 [B, 2], top and left of each patch in low-resolution pixels. Best on the
                CPU, where they are checked.
            params: B samples.

        Returns:
            The batch, on the device of `sources`. A pair depends on its source, corner and
            parameters alone, on one kind of device; on a CPU bit for bit.

        Raises:
            TypeError: sources that are not uint8, corners that are not int64.
            ValueError: sizes that do not fit each other or the scale, a patch beyond its source.
        """
        self._check(sources, corners, params)
        size, scale = self.patch_size, self.scale
        sharp = sources
        if self.sharpen:
            sharp = (usm_sharpen(sources.float() / 255) * 255).round_().to(torch.uint8)
        low = (apply(params, sharp.float() / 255, scale) * 255).round_().to(torch.uint8)

        gt = _crop(sources, corners * scale, size)
        return Batch(
            lr=_crop(low, corners, size // scale),
            gt=gt,
            sharp=_crop(sharp, corners * scale, size) if self.sharpen else gt,
            v=upload(labels(params, self.scheme), sources.device),
        )

    def _check(self, sources: Tensor, corners: Tensor, params: DegradationParams) -> None:
        if sources.dtype != torch.uint8:
            raise TypeError(f"sources: expected uint8, got {sources.dtype}")
        if sources.dim() != 4 or sources.shape[1] != 3:
            raise ValueError(f"sources: expected shape [B, 3, S, S], got {list(sources.shape)}")
        batch, _, *sides = sources.shape
        if min(sides) < self.patch_size or any(side % self.scale for side in sides):
            raise ValueError(
                f"sources: expected sides of {self.patch_size} or more, multiples of "
                f"{self.scale}, got {sides[0]}x{sides[1]}"
            )
        if corners.dtype != torch.int64:
            raise TypeError(f"corners: expected int64, got {corners.dtype}")
        if corners.shape != (batch, 2):
            raise ValueError(f"corners: expected shape [{batch}, 2], got {list(corners.shape)}")
        if len(params) != batch:
            raise ValueError(f"params: expected {batch} samples, as in sources, got {len(params)}")
        if corners.device.type == "cpu" and batch:
            most = torch.tensor([(side - self.patch_size) // self.scale for side in sides])
            if bool(((corners < 0) | (corners > most)).any()):
                raise ValueError(
                    f"corners: expected 0 .. {most[0]} and 0 .. {most[1]}, got {corners.tolist()}"
                )


def _crop(pictures: Tensor, corners: Tensor, size: int) -> Tensor:
    """Cut [B, C, size, size] out of [B, C, H, W] at corners [B, 2], without reading back."""
    if corners.device.type == "cpu":
        if not len(pictures):
            return pictures[:, :, :size, :size]
        places = zip(pictures, corners.tolist(), strict=True)
        return torch.stack([p[:, t : t + size, s : s + size] for p, (t, s) in places])
    line = torch.arange(size, device=pictures.device)
    sample = torch.arange(len(pictures), device=pictures.device)[:, None, None, None]
    channel = torch.arange(pictures.shape[1], device=pictures.device)[:, None, None]
    rows = (corners[:, :1] + line)[:, None, :, None]
    columns = (corners[:, 1:] + line)[:, None, None, :]
    return pictures[sample, channel, rows, columns]
