"""What the page computes: the degradation of a picture, a detail of the result, the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .regions import Box
from .tasks import Task, Worker

if TYPE_CHECKING:
    from dasr_ops.models import DASR, Upscaler
    from dasr_ops.models.pictures import Picture
    from dasr_ops.train.degradations.readable import Readable

LARGEST_FILE = 200 * 2**20
"""Bytes of the largest file that is accepted."""

LARGEST_RESULT = 600_000_000
"""Pixels of the largest result, which is held in memory: 1.8 GB in 8-bit colour."""


class TooLargeError(ValueError):
    """A result that the page does not hold in memory; the message is one line."""


@dataclass(frozen=True)
class Settings:
    """What the page asks for."""

    weights: str
    """One of `Engine.names`."""
    scale: int
    """The magnification."""
    denoise: float = 0.0
    """-1..1, as the two below."""
    deblur: float = 0.0
    dejpeg: float = 0.0


class Engine:
    """The networks, and the one thread that runs them.

    Args:
        models: networks by the names that the page shows, at least one.
        device: where to compute; None for the best there is.
        tile: as for `Upscaler`. Progress is reported after each tile.

    Raises:
        ValueError, RuntimeError: ``device`` or ``tile`` are not usable.
    """

    def __init__(
        self, models: Mapping[str, DASR], *, device: str | None = None, tile: int | str = 256
    ) -> None:
        from dasr_ops.models import Upscaler

        self.worker = Worker()
        self._upscalers: dict[tuple[str, int], Upscaler] = {}
        self._options = {"device": device, "tile": tile}
        self._models = dict(models)
        for name, model in self._models.items():
            upscaler = Upscaler(model, **self._options)
            self._upscalers[name, model.upscale] = upscaler
            self.device = upscaler.device
            for module in model.modules():
                # So a moved slider does not wait for the end of a tile.
                module.register_forward_pre_hook(self.worker.check)

    @property
    def names(self) -> list[str]:
        """Names of the weights; the first is the default."""
        return list(self._models)

    def scales(self, weights: str) -> list[int]:
        """Return the magnifications on offer: those of whole numbers up to the network's own."""
        return list(range(2, self.native_scale(weights) + 1)) or [1]

    def native_scale(self, weights: str) -> int:
        """Return the magnification of the network itself."""
        return self._models[weights].upscale

    def upscaler(self, settings: Settings) -> Upscaler:
        """Return what enlarges as ``settings`` say."""
        from dasr_ops.models import Upscaler

        key = settings.weights, settings.scale
        if key not in self._upscalers:
            self._upscalers[key] = Upscaler(
                self._models[settings.weights], scale=settings.scale, **self._options
            )
        return self._upscalers[key]

    def check_size(self, size: tuple[int, int], settings: Settings) -> None:
        """Raise TooLargeError if the result of a picture of ``size`` (width, height) is."""
        width, height = self.upscaler(settings).output_size(*size)
        if width * height > LARGEST_RESULT:
            raise TooLargeError(
                f"The result would have {width} × {height} pixels, "
                f"{width * height / 1e6:.0f} million; here {LARGEST_RESULT / 1e6:.0f} million is "
                "the most. Choose a smaller magnification, or use dasr upscale."
            )

    def predict(self, picture: Picture, weights: str, task: Task) -> Tensor:
        """Predict the degradation v [1, 33], float32, on the CPU, from the whole picture."""
        task.check()
        upscaler = self._upscalers[weights, self.native_scale(weights)]
        return upscaler.predict(_tensor(picture)).v.cpu()

    def describe(self, v: Tensor, weights: str) -> Readable:
        """Say in readable quantities what v [1, 33] says."""
        from dasr_ops.models.controls import describe_prediction

        (readable,) = describe_prediction(v, self._models[weights].label_scheme)
        return readable

    def enlarge(self, picture: Picture, v: Tensor, settings: Settings, task: Task) -> Picture:
        """Enlarge the whole picture.

        Args:
            picture: the input.
            v: its predicted degradation, [1, 33], which the controls shift.
            settings: weights, magnification and controls.
            task: is told of each tile.

        Raises:
            Cancelled: the task was called off.
            NonFiniteError, MemoryError, RuntimeError: as `Upscaler` raises them.
        """
        return self.upscaler(settings)(
            picture, degradation=self._shifted(v, settings), progress=task.report
        )

    def enlarge_detail(
        self, picture: Picture, box: Box, v: Tensor, settings: Settings, task: Task
    ) -> Picture:
        """Enlarge the part of the picture in ``box``, as it is in the whole result."""
        upscaler = self.upscaler(settings)
        read = box.grown(upscaler.receptive_field_radius, picture.size)
        result = upscaler(
            crop(picture, read), degradation=self._shifted(v, settings), progress=task.report
        )
        return crop(result, box.moved(-read.left, -read.top).scaled(settings.scale))

    def _shifted(self, v: Tensor, settings: Settings) -> Tensor:
        from dasr_ops.models.controls import Controls

        controls = Controls(
            denoise=settings.denoise,
            deblur=settings.deblur,
            dejpeg=settings.dejpeg,
            scheme=self._models[settings.weights].label_scheme,
        )
        return controls(v)


def crop(picture: Picture, box: Box) -> Picture:
    """Return the part of a picture in ``box``."""
    rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
    alpha = None if picture.alpha is None else picture.alpha[rows, columns].copy()
    return dataclasses.replace(picture, color=picture.color[rows, columns].copy(), alpha=alpha)


def _tensor(picture: Picture) -> Tensor:
    """Return the colours as [1, 3, H, W] in 0..1."""
    color = picture.color
    lr = torch.from_numpy(color.astype(np.float32) / np.float32(np.iinfo(color.dtype).max))
    lr = lr.expand(3, -1, -1) if color.ndim == 2 else lr.permute(2, 0, 1)
    return lr.unsqueeze(0)
