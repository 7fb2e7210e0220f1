"""Patches of ground-truth pictures, as a dataset of PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from .crops import CANDIDATES
from .library import Library
from .pictures import detail
from .sources import FileSource, list_pictures


class PatchDataset(Dataset):
    """Random square patches from a folder of pictures, mirrored left to right half of the time.

    Patch i of an epoch is a function of (seed, epoch, i) and the folder, whatever the number of
    workers. Pictures are chosen uniformly; of a few random crops the first with enough detail is
    taken. Pictures that cannot be read or are smaller than a patch are skipped, with one warning
    each in each process, and listed in `skipped`.

    Args:
        root: folder, searched recursively for files that Pillow knows by extension; hidden ones are
            left out.
        patch_size: side of a patch.
        length: patches per epoch; default: the number of pictures.
        seed: 0 or more.
        min_detail: least mean absolute difference of neighbouring pixels, in 8-bit steps; 0
            accepts every crop.
        flip: mirror half of the patches.
        cache_bytes: pictures are kept when they have been decoded, while they fit in this; the
            others are decoded on every use.

    Raises:
        ValueError: bad numbers, no folder at `root`, or no picture in it.
    """

    def __init__(
        self,
        root: str | Path,
        patch_size: int = 256,
        *,
        length: int | None = None,
        seed: int = 0,
        min_detail: float = 1.0,
        flip: bool = True,
        cache_bytes: int = 2**31,
    ) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise ValueError(f"root: expected a folder, got {self.root}")
        if patch_size < 2:
            raise ValueError(f"patch_size: expected 2 or more, got {patch_size}")
        if seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {seed}")
        if length is not None and length < 1:
            raise ValueError(f"length: expected 1 or more, got {length}")
        self.patch_size, self.seed = patch_size, seed
        self.min_detail, self.flip = min_detail, flip
        self.skipped: dict[Path, str] = {}
        # Shared, so that workers that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        names = list_pictures(self.root)
        if not names:
            raise ValueError(
                f"root: expected a folder of pictures, found 0 picture files in {self.root}"
            )
        self.paths = [self.root / name for name in names]
        self._library = Library([FileSource(self.root, names)], patch_size, cache_bytes)
        self.length = len(names) if length is None else length

    @property
    def epoch(self) -> int:
        """The epoch that `set_epoch` set last; 0 at first."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the patches of an epoch (0 or more). Call it before iterating.

        Raises:
            ValueError: a negative epoch.
        """
        if epoch < 0:
            raise ValueError(f"epoch: expected 0 or more, got {epoch}")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return patch `index` of the epoch: float32 [3, P, P] in 0..1.

        Raises:
            IndexError: out of range.
            RuntimeError: no picture can be used.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"index: expected 0..{self.length - 1}, got {index}")
        rng = np.random.default_rng([self.seed, self.epoch, index])
        # Drawn among all files, so that a failure does not shift the draws of other patches.
        start = int(rng.integers(len(self.paths)))
        try:
            picture = self._library.usable(start, lambda: self._after(start))
        finally:
            self._tell()
        patch = self._crop(picture, rng)
        if self.flip and rng.random() < 0.5:
            patch = patch[:, ::-1]
        return torch.from_numpy(patch.transpose(2, 0, 1).astype(np.float32) / np.float32(255))

    def _after(self, start: int) -> Iterator[int]:
        count = len(self.paths)
        return ((start + offset) % count for offset in range(1, count))

    def _tell(self) -> None:
        for index, reason in list(self._library.skipped.items())[len(self.skipped) :]:
            self.skipped[self.paths[index]] = reason
            warnings.warn(f"skipping {self.paths[index]}: {reason}", stacklevel=3)

    def _crop(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        size = self.patch_size
        best, most = picture[:size, :size], -1.0
        for _ in range(CANDIDATES):
            top = rng.integers(picture.shape[0] - size + 1)
            left = rng.integers(picture.shape[1] - size + 1)
            patch = picture[top : top + size, left : left + size]
            if self.min_detail <= 0:
                return patch
            amount = detail(patch)
            if amount >= self.min_detail:
                return patch
            if amount > most:
                best, most = patch, amount
        return best
