"""What was drawn for each sample of a batch: a record of tensors, all on the CPU."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch

from .resize import RESIZE_MODES

NOISE_KINDS = ("none", "gaussian", "poisson")
NO_RESIZE = -1


@dataclass(eq=False)
class StageParams:
    """One round for B samples. "No effect" has one value per quantity, given below.

    Attributes:
        blur_size: int64 [B], odd; with sigma 0 the smallest size.
        blur_sigma: float32 [B, 2]; (0, 0) is no blur. Isotropic: equal, rotation 0.
        blur_rotation: float32 [B], radians in [-pi, pi].
        scale: float32 [B]; 1 is no change.
        resize_mode: int64 [B], index into RESIZE_MODES, NO_RESIZE where nothing is resized.
        noise_kind: int64 [B], index into NOISE_KINDS.
        noise_level: float32 [B]; sigma in 8-bit steps, or the Poisson scale; 0 without noise.
        noise_grey: bool [B].
        noise_seed: int64 [B]; the noise field is a function of it (and of the device's generator).
        jpeg_quality: int64 [B]; NO_JPEG (100) is no compression.
    """

    blur_size: torch.Tensor
    blur_sigma: torch.Tensor
    blur_rotation: torch.Tensor
    scale: torch.Tensor
    resize_mode: torch.Tensor
    noise_kind: torch.Tensor
    noise_level: torch.Tensor
    noise_grey: torch.Tensor
    noise_seed: torch.Tensor
    jpeg_quality: torch.Tensor


@dataclass(eq=False)
class DegradationParams:
    """Everything that turns B ground-truth pictures into B low-resolution ones.

    Attributes:
        level: B names, for reports and for label schemes that depend on the level.
        stage1: the first round.
        stage2: the second round, with "no effect" values where a sample has none.
        has_stage2: bool [B].
        sinc_size: int64 [B], odd; 0 is no sinc filter.
        sinc_omega: float32 [B]; pi without the filter.
        jpeg_last: bool [B]; see `Level.stage2`. False without a second stage.
        final_mode: int64 [B], index into RESIZE_MODES.
        final_antialias: bool [B].
    """

    level: tuple[str, ...]
    stage1: StageParams
    stage2: StageParams
    has_stage2: torch.Tensor
    sinc_size: torch.Tensor
    sinc_omega: torch.Tensor
    jpeg_last: torch.Tensor
    final_mode: torch.Tensor
    final_antialias: torch.Tensor

    def __len__(self) -> int:
        return len(self.level)

    def __getitem__(self, index: int | slice | list[int] | torch.Tensor) -> DegradationParams:
        """Select samples; an int gives a batch of one. Raises IndexError out of range."""
        positions = torch.arange(len(self))[index].reshape(-1)

        def pick(record: object) -> dict[str, object]:
            chosen: dict[str, object] = {}
            for field in fields(record):  # type: ignore[arg-type]
                value = getattr(record, field.name)
                if isinstance(value, torch.Tensor):
                    chosen[field.name] = value[positions]
                elif isinstance(value, tuple):
                    chosen[field.name] = tuple(value[i] for i in positions.tolist())
                else:
                    chosen[field.name] = StageParams(**pick(value))  # type: ignore[arg-type]
            return chosen

        return DegradationParams(**pick(self))  # type: ignore[arg-type]

    @staticmethod
    def cat(parts: Iterable[DegradationParams]) -> DegradationParams:
        """Join batches in order. Raises ValueError on an empty list."""
        parts = list(parts)
        if not parts:
            raise ValueError("parts: expected at least one batch of parameters, got none")

        def join(records: list[object]) -> dict[str, object]:
            joined: dict[str, object] = {}
            for field in fields(records[0]):  # type: ignore[arg-type]
                values = [getattr(record, field.name) for record in records]
                if isinstance(values[0], torch.Tensor):
                    joined[field.name] = torch.cat(values)
                elif isinstance(values[0], tuple):
                    joined[field.name] = sum(values, ())
                else:
                    joined[field.name] = StageParams(**join(values))  # type: ignore[arg-type]
            return joined

        return DegradationParams(**join(list(parts)))  # type: ignore[arg-type]


def mode_name(index: int) -> str | None:
    """Return the resize mode of an index, None for NO_RESIZE."""
    return None if index == NO_RESIZE else RESIZE_MODES[index]
