"""A pool of degraded pairs, so that a batch mixes degradations and pictures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dasr_ops.train.batch import Batch


class PairPool:
    """Keeps pairs and hands out others, everything of a pair together.

    While it is filling, batches pass through unchanged, and copies of their pairs are kept, as in
    the official code. Once it is full, `exchange` draws as many different pairs as come in, hands
    them out, and puts what came in into their places; what came in is not handed out at once.

    Pairs stay uint8, on the device that they came on. Memory, for ground truth of P x P pixels
    and magnification s: size * (3 P^2 + 3 P^2 + 3 (P/s)^2 + 132) bytes, 3 P^2 less where nothing is
    sharpened; 78 MB for 192 pairs at P = 256, s = 4.

    The draws are functions of (seed, rank, number of exchanges so far).

    Args:
        size: pairs to keep.
        seed: 0 or more.
        rank: of this process, so that each draws its own.

    Raises:
        ValueError: `size` is below 1, or `seed` or `rank` below 0.
    """

    def __init__(self, size: int, seed: int = 0, rank: int = 0) -> None:
        for name, value, least in (("size", size, 1), ("seed", seed, 0), ("rank", rank, 0)):
            if value < least:
                raise ValueError(f"{name}: expected {least} or more, got {value}")
        self.size, self.seed, self.rank = size, seed, rank
        self.exchanges = 0
        self._filled = 0
        self._pairs: Batch | None = None

    def __len__(self) -> int:
        """Return how many pairs are kept."""
        return self._filled

    def exchange(self, batch: Batch) -> Batch:
        """Put the pairs of a batch in, and return as many.

        Args:
            batch: any number of pairs up to `size`; pictures of the size that the first call had.

        Returns:
            `batch` itself while the pool is filling, else new tensors.

        Raises:
            ValueError: a batch larger than the pool, or of pictures of another size.
        """
        count = len(batch)
        if count > self.size:
            raise ValueError(
                f"batch: expected at most size = {self.size} pairs, got {count}; "
                "the pool must hold a batch"
            )
        pairs = self._storage(batch)
        number, self.exchanges = self.exchanges, self.exchanges + 1
        if self._filled < self.size:
            taken = min(count, self.size - self._filled)
            places = slice(self._filled, self._filled + taken)
            for kept, given in _tensors(pairs, batch):
                kept[places] = given[:taken]
            self._filled += taken
            return batch
        rng = np.random.default_rng([self.seed, self.rank, number])
        drawn = torch.from_numpy(rng.choice(self.size, count, replace=False)).to(batch.v.device)
        chosen = pairs[drawn]
        for kept, given in _tensors(pairs, batch):
            kept[drawn] = given
        return chosen

    def state_dict(self) -> dict[str, int | Tensor]:
        """Return copies of the pairs, on the CPU, and the number of exchanges."""
        state: dict[str, int | Tensor] = {"exchanges": self.exchanges}
        if self._pairs is not None:
            kept = self._pairs[: self._filled]
            state |= {
                name: tensor.to("cpu", copy=True)
                for name, tensor in kept.state_dict().items()
                if name != "sharp" or kept.sharp is not kept.gt
            }
        return state

    def load_state_dict(self, state: Mapping[str, int | Tensor]) -> None:
        """Take over the pairs of another pool.

        Where that was larger, its last pairs are dropped; where it was smaller, this one goes on
        filling.

        Raises:
            ValueError: not what `state_dict` returned.
        """
        names = {"lr", "gt", "v"}
        if "exchanges" not in state or (names & set(state) and not names <= set(state)):
            raise ValueError(f"state: expected exchanges, lr, gt, sharp and v, got {sorted(state)}")
        self.exchanges, self._filled, self._pairs = int(state["exchanges"]), 0, None
        if "v" in state:
            pairs = Batch(state["lr"], state["gt"], state.get("sharp", state["gt"]), state["v"])
            pairs = pairs[: self.size]
            self._storage(pairs)
            self._filled = len(pairs)
            for kept, given in _tensors(self._pairs, pairs):
                kept[: len(pairs)] = given

    def _storage(self, batch: Batch) -> Batch:
        """Return room for `size` pairs like those of a batch, on its device."""
        if self._pairs is None:

            def room(tensor: Tensor) -> Tensor:
                return tensor.new_empty((self.size, *tensor.shape[1:]))

            gt = room(batch.gt)
            sharp = gt if batch.sharp is batch.gt else room(batch.sharp)
            self._pairs = Batch(room(batch.lr), gt, sharp, room(batch.v))
        for (name, kept), given in zip(
            self._pairs.state_dict().items(), batch.state_dict().values(), strict=True
        ):
            if kept.shape[1:] != given.shape[1:] or kept.dtype != given.dtype:
                shape = [len(batch), *kept.shape[1:]]
                raise ValueError(
                    f"batch.{name}: expected {kept.dtype} {shape} as in the pool, "
                    f"got {given.dtype} {list(given.shape)}"
                )
        if self._pairs.v.device != batch.v.device:
            self._pairs = self._pairs.to(batch.v.device)
        if self._pairs.sharp is self._pairs.gt and batch.sharp is not batch.gt:
            self._pairs.sharp = self._pairs.gt.clone()
        return self._pairs


def _tensors(pairs: Batch, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Return each tensor of the pool beside the batch's, one that stands for two only once."""
    both = {
        id(kept): (kept, given)
        for kept, given in zip(
            pairs.state_dict().values(), batch.state_dict().values(), strict=True
        )
    }
    return list(both.values())
