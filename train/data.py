"""Patches of ground-truth pictures."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

_CANDIDATES = 8  # crops tried for one patch before the most detailed one is taken


def read_rgb(path: Path) -> np.ndarray:
    """Decode a picture to uint8 [H, W, 3], upright; alpha is dropped, 16 bits become 8.

    Raises:
        OSError: not a picture, or a damaged one.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            upright = ImageOps.exif_transpose(picture)
    except OSError:
        raise
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"cannot decode {path}: {error}") from error
    if upright.mode.startswith("I"):
        wide = np.asarray(upright).astype(np.int64).clip(0, 65535)
        return np.repeat(((wide + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(upright.convert("RGB"))


def detail(patch: np.ndarray) -> float:
    """Mean absolute difference of neighbouring pixels of uint8 [H, W, 3], in 8-bit steps."""
    grey = patch.astype(np.float32).mean(axis=2)
    return float((np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()) / 2)


class PatchDataset(Dataset):
    """Random square patches from a folder of pictures, mirrored left to right half of the time.

    Patch i of an epoch is a function of (seed, epoch, i) and the folder, whatever the number of
    workers. Pictures are chosen uniformly; of a few random crops the first with enough detail is
    taken. Pictures that cannot be read or are smaller than a patch are skipped with one warning
    each and listed in `skipped`.

    Args:
        root: folder, searched recursively for files that Pillow knows by extension.
        patch_size: side of a patch.
        length: patches per epoch; default: the number of usable pictures.
        seed: 0 or more.
        min_detail: least mean absolute difference of neighbouring pixels, in 8-bit steps; 0
            accepts every crop.
        flip: mirror half of the patches.
        cache_bytes: pictures are decoded once and kept while they fit in this; the others are
            decoded on every use.

    Raises:
        ValueError: bad numbers, no folder at `root`, or no usable picture in it.
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
        self._cache: dict[Path, np.ndarray] = {}
        # Shared, so that workers that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

        known = {ext for ext, kind in Image.registered_extensions().items() if kind in Image.OPEN}
        self.paths = sorted(
            path
            for path in self.root.rglob("*")
            if path.suffix.lower() in known and path.is_file() and not path.name.startswith(".")
        )
        self._fill_cache(cache_bytes)
        usable = len(self.paths) - len(self.skipped)
        if usable == 0:
            raise ValueError(
                f"root: expected a picture of at least {patch_size} pixels a side in {self.root}, "
                f"found {len(self.paths)} picture files, none usable"
            )
        self.length = usable if length is None else length

    def _fill_cache(self, budget: int) -> None:
        for path in self.paths:
            try:
                with Image.open(path) as picture:
                    need = picture.width * picture.height * 3
            except (OSError, Image.DecompressionBombError) as error:
                self._skip(path, str(error))
                continue
            if need <= budget and self._picture(path, keep=True) is not None:
                budget -= need

    def _skip(self, path: Path, reason: str) -> None:
        if path not in self.skipped:
            self.skipped[path] = reason
            warnings.warn(f"skipping {path}: {reason}", stacklevel=2)

    def _picture(self, path: Path, keep: bool = False) -> np.ndarray | None:
        """Return uint8 [H, W, 3], or None for a picture that is skipped."""
        if path in self.skipped:
            return None
        picture = self._cache.get(path)
        if picture is not None:
            return picture
        try:
            picture = read_rgb(path)
        except OSError as error:
            self._skip(path, str(error))
            return None
        if min(picture.shape[:2]) < self.patch_size:
            self._skip(path, f"{picture.shape[1]}x{picture.shape[0]} is below {self.patch_size}")
            return None
        if keep:
            self._cache[path] = picture
        return picture

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
            RuntimeError: no picture can be read any more.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"index: expected 0..{self.length - 1}, got {index}")
        rng = np.random.default_rng([self.seed, self.epoch, index])
        # Drawn among all files, so that a failure does not shift the draws of other patches.
        start = int(rng.integers(len(self.paths)))
        for offset in range(len(self.paths)):
            picture = self._picture(self.paths[(start + offset) % len(self.paths)])
            if picture is not None:
                break
        else:
            raise RuntimeError(f"no picture in {self.root} can be read any more")
        patch = self._crop(picture, rng)
        if self.flip and rng.random() < 0.5:
            patch = patch[:, ::-1]
        return torch.from_numpy(patch.transpose(2, 0, 1).astype(np.float32) / np.float32(255))

    def _crop(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        size = self.patch_size
        best, most = picture[:size, :size], -1.0
        for _ in range(_CANDIDATES):
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
