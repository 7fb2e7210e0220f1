"""What a training step sees: pictures and their degradation vectors, kept together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(eq=False)
class Batch:
    """B pairs of pictures; everything of one pair has one index.

    Attributes:
        lr: degraded pictures, uint8 [B, 3, H / scale, W / scale].
        gt: ground truth, uint8 [B, 3, H, W].
        sharp: ground truth after unsharp masking, uint8 [B, 3, H, W]; `gt` itself where nothing is
            sharpened. It is what was degraded.
        v: degradation vectors, float32 [B, 33].
    """

    lr: Tensor
    gt: Tensor
    sharp: Tensor
    v: Tensor

    def __len__(self) -> int:
        return len(self.v)

    def __getitem__(self, index: slice | Tensor) -> Batch:
        return self._map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> Batch:
        """Copy to a device, without waiting where the memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Copy to page-locked memory; `torch.utils.data.DataLoader` calls it."""
        return self._map(Tensor.pin_memory)

    @staticmethod
    def cat(parts: Sequence[Batch]) -> Batch:
        """Join batches of pictures of one size, in order."""
        return parts[0]._join([vars(part) for part in parts])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return dict(vars(self))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        done: dict[int, Tensor] = {}  # `sharp` stays `gt` where it is

        def once(tensor: Tensor) -> Tensor:
            if id(tensor) not in done:
                done[id(tensor)] = function(tensor)
            return done[id(tensor)]

        return Batch(*(once(getattr(self, part.name)) for part in fields(self)))

    @staticmethod
    def _join(parts: Sequence[dict[str, Tensor]]) -> Batch:
        return Batch(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})
