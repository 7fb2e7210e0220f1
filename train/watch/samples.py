"""Pictures to restore with their ground truth: pairs of files, or degraded by seeded draws.

One picture is in memory at a time. What a sample is depends on the files, the seed and its own
name alone, so that scores of different runs can be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dasr_ops.models.pictures import PictureError

from ..degradations import LEVELS, NUM_LABELS, apply, labels, sample
from .pairs import find_pictures, match, read_rgb, read_size, shared_size

PAIRS = "pairs"
"""The level of pairs of files."""

Failure = Callable[[str, str], None]
"""Told the name of a picture (or of one at a level), and why it cannot be used."""


@dataclass(eq=False)
class Sample:
    """One picture to restore.

    Attributes:
        name: relative path without extension.
        level: name of the degradation, or "pairs".
        draw: number of the degradation among those of this picture at this level.
        lr: uint8 [1, 3, h, w]; None where only restored pictures are scored.
        gt: uint8 [1, 3, h * scale, w * scale].
        v: the true degradation vector, float32 [1, 33], or None where it is not known.
    """

    name: str
    level: str
    draw: int
    lr: Tensor | None
    gt: Tensor
    v: Tensor | None


class SampleSet(Protocol):
    """Samples in groups, one for each ground-truth picture."""

    levels: tuple[str, ...]
    names: list[str]
    paths: dict[str, Path]  # of the ground truth
    scale: int

    def size(self, name: str) -> tuple[int, int]:
        """Return (height, width) of the least ground truth of this name that is compared.

        Raises:
            PictureError: a file cannot be read, or sizes do not fit.
        """
        ...

    def samples(self, name: str, failed: Failure) -> Iterator[Sample]:
        """Yield the samples of one name; what cannot be read is told to ``failed``."""
        ...

    def files(self) -> list[Path]:
        """Return all files that the samples are made of; some may be missing."""
        ...


class DegradedSet:
    """Ground truth of a folder, degraded at each level by seeded draws.

    The LR pictures are a function of (file, relative path, level, draw, seed). They are made on
    the CPU whatever the network runs on, since noise differs between kinds of devices.

    Args:
        folder: ground truth, searched recursively.
        levels: names in `LEVELS`.
        scale: the magnification. Pixels beyond a multiple of it are cut off.
        draws: degradations of each picture at each level; levels without chance have one.
        seed: of the draws.
        scheme: label scheme of the degradation vectors.
        cache_bytes: LR pictures are kept while they fit in this, for sets that are used again.

    Raises:
        ValueError: no folder, no pictures, unknown levels, none at all, or bad numbers.
    """

    def __init__(
        self,
        folder: Path,
        levels: Sequence[str],
        scale: int,
        *,
        draws: int = 1,
        seed: int = 0,
        scheme: str = "unified",
        cache_bytes: int = 0,
    ) -> None:
        unknown = sorted(set(levels) - set(LEVELS))
        if unknown or not levels:
            raise ValueError(f"levels: expected names among {sorted(LEVELS)}, got {list(levels)}")
        if draws < 1:
            raise ValueError(f"draws: expected 1 or more, got {draws}")
        if seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {seed}")
        self.levels = tuple(dict.fromkeys(levels))
        self.scale, self.draws, self.seed, self.scheme = scale, draws, seed, scheme
        self.paths = find_pictures(folder)
        self.names = list(self.paths)
        self._budget = cache_bytes
        self._cache: dict[tuple[str, str, int], Tensor] = {}

    def size(self, name: str) -> tuple[int, int]:
        """See `SampleSet`."""
        height, width = read_size(self.paths[name])
        return height - height % self.scale, width - width % self.scale

    def samples(self, name: str, failed: Failure) -> Iterator[Sample]:
        """See `SampleSet`."""
        try:
            gt = read_rgb(self.paths[name])
        except PictureError as error:
            failed(name, str(error))
            return
        height, width = (side - side % self.scale for side in gt.shape[2:])
        gt = gt[:, :, :height, :width]
        for level in self.levels:
            draws = 1 if level in ("clean", "clean_area") else self.draws
            for draw in range(draws):
                generator = torch.Generator().manual_seed(sample_seed(name, level, draw, self.seed))
                params = sample(generator, 1, level)
                key = (name, level, draw)
                lr = self._cache.get(key)
                if lr is None:
                    lr = (apply(params, gt.float() / 255, self.scale) * 255).round().byte()
                    if lr.numel() <= self._budget:
                        self._budget -= lr.numel()
                        self._cache[key] = lr
                yield Sample(name, level, draw, lr, gt, labels(params, self.scheme))

    def files(self) -> list[Path]:
        """See `SampleSet`."""
        return list(self.paths.values())


class PairSet:
    """Pairs of files: LR pictures of one or several levels, and their ground truth.

    Args:
        lr: level -> folder of its LR pictures. A file NAME.json beside NAME.png may hold the true
            degradation vector as "v".
        gt: folder of the ground truth, which all levels share.
        scale: the magnification.
        suffix: end of the names of the LR files that the ground truth lacks, such as "x4".
        scheme: label scheme that the degradation vectors must have, where a file names theirs.

    Raises:
        ValueError: a folder is missing or has no pictures, or some have no partner.
    """

    def __init__(
        self,
        lr: Mapping[str, Path],
        gt: Path,
        scale: int,
        *,
        suffix: str = "",
        scheme: str | None = None,
    ) -> None:
        self.levels, self.scale, self.scheme = tuple(lr), scale, scheme
        self.paths = find_pictures(gt)
        self.lr_paths = {level: find_pictures(folder, suffix) for level, folder in lr.items()}
        for level, folder in lr.items():
            match(self.lr_paths[level], self.paths, folder, gt)
        self.names = list(self.paths)

    def has_vectors(self) -> bool:
        """Whether a file that may hold the true degradation vector lies beside some picture."""
        every = (path for paths in self.lr_paths.values() for path in paths.values())
        return any(path.with_suffix(".json").is_file() for path in every)

    def size(self, name: str) -> tuple[int, int]:
        """See `SampleSet`."""
        gt, sizes = read_size(self.paths[name]), []
        for level in self.levels:
            path = self.lr_paths[level][name]
            try:
                sizes.append(shared_size(gt, read_size(path), self.scale))
            except PictureError as error:
                raise type(error)(f"{path}: {error}") from None
        return min(s[0] for s in sizes), min(s[1] for s in sizes)

    def samples(self, name: str, failed: Failure) -> Iterator[Sample]:
        """See `SampleSet`."""
        try:
            gt = read_rgb(self.paths[name])
        except PictureError as error:
            failed(self.paths[name].as_posix(), str(error))
            return
        for level in self.levels:
            path = self.lr_paths[level][name]
            try:
                lr = read_rgb(path)
                height, width = shared_size(tuple(gt.shape[2:]), tuple(lr.shape[2:]), self.scale)
                v = read_vector(path.with_suffix(".json"), self.scheme)
            except PictureError as error:
                failed(path.as_posix(), str(error))
                continue
            yield Sample(name, level, 0, lr, gt[:, :, :height, :width], v)

    def files(self) -> list[Path]:
        """See `SampleSet`."""
        lr = [path for paths in self.lr_paths.values() for path in paths.values()]
        return [*self.paths.values(), *lr, *(path.with_suffix(".json") for path in lr)]


class GroundTruthSet:
    """Ground truth without LR pictures, to score pictures that were restored before.

    Args:
        gt: folder of the ground truth.
        scale: the magnification: results may be by less than this smaller than ground truth.

    Raises:
        ValueError: no folder, or no pictures.
    """

    levels = (PAIRS,)

    def __init__(self, gt: Path, scale: int) -> None:
        self.scale, self.paths = scale, find_pictures(gt)
        self.names = list(self.paths)

    def size(self, name: str) -> tuple[int, int]:
        """See `SampleSet`."""
        return read_size(self.paths[name])

    def samples(self, name: str, failed: Failure) -> Iterator[Sample]:
        """See `SampleSet`."""
        try:
            yield Sample(name, PAIRS, 0, None, read_rgb(self.paths[name]), None)
        except PictureError as error:
            failed(self.paths[name].as_posix(), str(error))

    def files(self) -> list[Path]:
        """See `SampleSet`."""
        return list(self.paths.values())


def open_folder(
    folder: Path,
    levels: Sequence[str],
    scale: int,
    *,
    draws: int = 1,
    seed: int = 0,
    scheme: str | None = None,
    suffix: str = "",
    cache_bytes: int = 0,
) -> DegradedSet | PairSet:
    """Understand a folder: ground truth (or a single picture of it), or pairs.

    Pairs are a folder with ``gt/`` and ``lr/``, or one made by ``dasr degrade``: with ``gt/`` and
    ``LEVEL/lr/`` for each level; then ``levels`` plays no role. Other arguments: see `DegradedSet`
    and `PairSet`.

    Raises:
        ValueError: as they do.
    """
    gt, lr = folder / "gt", folder / "lr"
    if lr.is_dir() and not gt.is_dir():
        raise ValueError(f"{folder} has lr/ but no gt/")
    if gt.is_dir():
        if lr.is_dir():
            return PairSet({PAIRS: lr}, gt, scale, suffix=suffix, scheme=scheme)
        made = {path.parent.name: path for path in folder.glob("*/lr") if path.is_dir()}
        if made:
            known = [level for level in LEVELS if level in made]
            order = [*known, *sorted(set(made) - set(known))]
            levels_made = {level: made[level] for level in order}
            return PairSet(levels_made, gt, scale, suffix=suffix, scheme=scheme)
    return DegradedSet(
        folder,
        levels,
        scale,
        draws=draws,
        seed=seed,
        scheme=scheme or "unified",
        cache_bytes=cache_bytes,
    )


def sample_seed(name: str, level: str, draw: int = 0, seed: int = 0) -> int:
    """Return the seed of one degradation, a hash of its name (0 .. 2**63 - 1)."""
    text = "\0".join((name, level, str(draw), str(seed))).encode(errors="surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def read_vector(path: Path, scheme: str | None = None) -> Tensor | None:
    """Read the degradation vector of ``dasr degrade``'s JSON file, float32 [1, 33].

    Args:
        path: of the file.
        scheme: label scheme that it must have if it names one; None: any.

    Returns:
        None where there is no such file, or one without "v".

    Raises:
        PictureError: the file is broken, "v" is not a list of 33 finite numbers, or of another
            scheme.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PictureError(f"{path.name} cannot be read: {error}") from None
    if not isinstance(content, dict) or "v" not in content:
        return None
    if scheme is not None and content.get("scheme", scheme) != scheme:
        raise PictureError(
            f"{path.name}: expected labels of the scheme {scheme}, got {content['scheme']}"
        )
    try:
        v = torch.tensor(content["v"], dtype=torch.float32).reshape(1, -1)
    except (TypeError, ValueError, RuntimeError):
        v = torch.zeros(1, 0)
    if v.shape[1] != NUM_LABELS or not bool(torch.isfinite(v).all()):
        raise PictureError(f'{path.name}: "v": expected a list of {NUM_LABELS} finite numbers')
    return v
