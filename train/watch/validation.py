"""`Validation`: scores of a network on pictures that it does not learn from, while it learns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from dasr_ops.models.pictures import PictureError

from ..config import TrainConfig
from .pairs import SizeMismatchError
from .samples import Sample, open_folder
from .scores import Means, Scores

_CACHE_BYTES = 2**28  # degraded pictures kept from one validation to the next


class Validation:
    """Restores the pictures of ``config.validation`` and scores them.

    `validation.pictures` may be a folder of ground truth, which is degraded at each of
    `validation.levels`, seeded by relative path and level, so that scores of different steps and
    runs can be compared; or a folder with pairs in ``lr/`` and ``gt/``, whose level is called
    "pairs"; or one made by ``dasr degrade``, with ``gt/`` and ``LEVEL/lr/``. Ground truth is used
    as it is, not sharpened. One picture at a time is in memory, whole: `validation.limit` bounds
    their number, their size is up to the user.

    A picture that cannot be read, is too small for the metrics, or too large for the memory is left
    out, with one warning.

    Args:
        config: the run's settings; of them `validation` and the magnification count.
        device: where the network is.

    Attributes:
        levels: names of the levels.
        names: names of the pictures.
        skipped: what is left out -> reason.

    Raises:
        ValueError: there is no folder, no usable picture, a picture of a pair without partner, or a
            pair whose sizes do not fit.
        MissingWeightsError: the weights of the perceptual distance are not installed.
    """

    def __init__(self, config: TrainConfig, device: torch.device | str = "cpu") -> None:
        settings, scale = config.validation, config.network.upscale
        if settings.pictures is None:
            raise ValueError("validation.pictures: expected a folder, got None")
        self.device = torch.device(device)
        border = scale if settings.border < 0 else settings.border
        self._scores = Scores(border, perceptual=settings.perceptual, device=self.device)
        self.skipped: dict[str, str] = {}
        try:
            self._set = open_folder(
                Path(settings.pictures), settings.levels, scale, cache_bytes=_CACHE_BYTES
            )
            self.names = self._usable(settings.limit)
        except ValueError as error:  # PictureError too
            raise ValueError(f"validation.pictures: {error}") from None
        self.levels = self._set.levels

    def run(
        self, model: nn.Module | Callable[[Tensor], Tensor], progress: bool = False
    ) -> dict[str, dict[str, float]]:
        """Score a network.

        It runs without gradients and, if it is a module, in evaluation mode; each part's mode is
        restored afterwards. No random numbers of the process are drawn.

        Args:
            model: maps LR float32 [1, 3, h, w] in 0..1 to SR float [1, 3, h * scale, w * scale].
            progress: show a bar on a terminal.

        Returns:
            Level -> metric ("psnr" in dB, "ssim", "perceptual") -> mean over the pictures. A level
            of which no picture could be used is left out; nothing, with a warning, if all are gone.

        Raises:
            ValueError: the network returns another shape.
        """
        from tqdm import tqdm

        means = Means()
        names = tqdm(
            self.names,
            desc="validation",
            unit="picture",
            leave=False,
            disable=None if progress else True,
        )
        with torch.no_grad(), evaluation_mode(model):
            for name in names:
                for one in self._set.samples(name, self._skip):
                    try:
                        means.add(one.level, self._score(model, one))
                    except (torch.OutOfMemoryError, MemoryError):
                        self._skip(f"{name} ({one.level})", "not enough memory for all of it")
                self._scores.forget()
        result = means.result()
        if not result:  # a disk that is gone should not end days of training
            warnings.warn("validation: no picture can be used any more", stacklevel=2)
        return {level: result[level] for level in self.levels if level in result}

    def _score(
        self, model: nn.Module | Callable[[Tensor], Tensor], one: Sample
    ) -> dict[str, float]:
        sr = model(one.lr.to(self.device, torch.float32) / 255)
        if sr.shape != one.gt.shape:
            raise ValueError(
                f"model: expected {list(one.gt.shape)} for {one.name}, got {list(sr.shape)}"
            )
        return self._scores(sr, one.gt)

    def _usable(self, limit: int) -> list[str]:
        usable: list[str] = []
        least = self._scores.least_side
        for name in self._set.names:
            if limit and len(usable) == limit:
                break
            try:
                size = self._set.size(name)
            except SizeMismatchError:
                raise
            except PictureError as error:
                self._skip(name, str(error))
                continue
            if min(size) < least:
                self._skip(name, f"{size[1]}x{size[0]} is below {least} pixels a side")
                continue
            usable.append(name)
        if not usable:
            first = next(iter(self.skipped))
            raise ValueError(
                f"none of {len(self._set.names)} pictures can be used; "
                f"the first, {first}: {self.skipped[first]}"
            )
        return usable

    def _skip(self, name: str, reason: str) -> None:
        if name not in self.skipped:
            self.skipped[name] = reason
            warnings.warn(f"validation leaves out {name}: {reason}", stacklevel=2)


@contextmanager
def evaluation_mode(model: object) -> Iterator[None]:
    """Put a module into evaluation mode for a while; each of its parts gets its own mode back."""
    modes = [(m, m.training) for m in model.modules()] if isinstance(model, nn.Module) else []
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
