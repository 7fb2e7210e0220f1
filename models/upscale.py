"""`Upscaler`: super-resolution of pictures, arrays and tensors of any size in bounded memory."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from ._checks import check_rows
from .checkpoint import CheckpointError, load_dasr
from .dasr import DASR
from .predictor import Prediction
from .tiling import cut, upscale_bands

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "small.safetensors"
"""The weights shipped with the package."""

DEFAULT_TILE = 256
DEFAULT_OVERLAP = 16
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Progress = Callable[[int, int], None]
Edit = Callable[[Tensor], Tensor]


class NonFiniteError(RuntimeError):
    """The network returned infinities or NaN in float32."""


class Upscaler:
    """Magnifies pictures, arrays and tensors with a DASR model.

    The degradation is predicted once for each image, from all of it, and shared by all tiles.
    Tiles see ``overlap`` LR pixels of context on each side. With `receptive_field_radius` pixels or
    more (35 for the official network) the result equals that of the whole image to float rounding;
    with less, neighbouring tiles fade into each other, so that no seam shows.

    Args:
        model: the networks; they are moved to ``device`` and converted to float32, in which the
            experts are mixed and the degradation is predicted.
        tile: side of the largest square of LR pixels that the network sees at a time, context
            included; 0 for the whole image. A tile of 256 takes about 1 GB at x4 in float32, on a
            CPU about 0.15 GB.
        overlap: context of a tile on each side, in LR pixels, less than half of ``tile``; no more
            than `receptive_field_radius` is used. Ignored where ``tile`` is 0.
        device: where to compute; None for CUDA, Apple's MPS or the CPU, the first there is.
        dtype: float32, float16 or bfloat16, of the features of G; None for float16 on CUDA and
            float32 elsewhere. What is not finite in 16 bits is computed again in float32.

    Attributes:
        model: the networks.
        tile, overlap, device, dtype: as above.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range, or the model is not one of RGB pictures.
    """

    def __init__(
        self,
        model: DASR,
        tile: int = DEFAULT_TILE,
        overlap: int = DEFAULT_OVERLAP,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(model, DASR):
            raise TypeError(f"Upscaler: model: expected a DASR, got {type(model).__name__}")
        if model.net_g.config["num_in_ch"] != 3:
            raise ValueError(
                "Upscaler: model: expected one of 3 channels, "
                f"got {model.net_g.config['num_in_ch']}"
            )
        for name, value in (("tile", tile), ("overlap", overlap)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"Upscaler: {name}: expected an int, got {value!r}")
            if value < 0:
                raise ValueError(f"Upscaler: {name}: expected at least 0, got {value}")
        if tile and tile <= 2 * overlap:
            raise ValueError(
                f"Upscaler: tile: expected 0 or more than twice the overlap of {overlap}, "
                f"got {tile}"
            )
        self.device = choose_device() if device is None else torch.device(device)
        if dtype is None:
            dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        if dtype not in DTYPES:
            raise ValueError(f"Upscaler: dtype: expected one of {DTYPES}, got {dtype}")
        self.model = model.to(device=self.device, dtype=torch.float32)
        self.tile = tile
        self.overlap = overlap
        self.dtype = dtype
        self._warned = False

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        **kwargs: Any,
    ) -> Upscaler:
        """Load weights and make an upscaler of them.

        Args:
            path: one ``.safetensors`` file, the pair of ``.pth`` files of G and P, or None for the
                weights shipped with the package.
            **kwargs: as for `Upscaler`.

        Raises:
            CheckpointError: the weights are missing or broken.
            TypeError, ValueError: as for `Upscaler`.
        """
        if path is None:
            if not DEFAULT_WEIGHTS.is_file():
                raise CheckpointError(
                    "this build comes without weights (weights/small.safetensors); name your own"
                )
            path = DEFAULT_WEIGHTS
        paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
        return cls(load_dasr(*paths), **kwargs)

    @property
    def scale(self) -> int:
        """The magnification."""
        return self.model.upscale

    @property
    def receptive_field_radius(self) -> int:
        """Overlap, in LR pixels, from which on tiles change nothing."""
        return self.model.receptive_field_radius

    @overload
    def __call__(
        self,
        image: Image,
        *,
        degradation: Tensor | Edit | None = ...,
        progress: Progress | None = ...,
    ) -> Image: ...
    @overload
    def __call__(
        self,
        image: np.ndarray,
        *,
        degradation: Tensor | Edit | None = ...,
        progress: Progress | None = ...,
    ) -> np.ndarray: ...
    @overload
    def __call__(
        self,
        image: Tensor,
        *,
        degradation: Tensor | Edit | None = ...,
        progress: Progress | None = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        image: Any,
        *,
        degradation: Tensor | Edit | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """Magnify an image.

        Args:
            image: a picture of Pillow, of any mode but F, an array [H, W, C], uint8, of 1
                (grey), 2 (grey, opacity), 3 (RGB) or 4 (RGBA) channels, or a floating-point tensor
                [B, 3, H, W] of values 0..1.
            degradation: v [B, 33] instead of the predicted one, or a function that turns the
                predicted v into the one to use.
            progress: called with the number of tiles done and their total, after each tile.

        Returns:
            The same kind of thing, magnified: a picture of mode L, LA, RGB, RGBA or I;16 with the
            metadata of ``image``, its opacity magnified by Lanczos's method; an array of as many
            channels; a tensor of the same type and device, clamped to 0..1.

        Raises:
            TypeError: ``image`` is of another kind.
            ValueError: its shape, mode or values are not as described.
            NonFiniteError: the network returns infinities or NaN even in float32.
        """
        if isinstance(image, Tensor):
            return self._tensor(image, degradation, progress)
        from PIL import Image

        from .pictures import Picture, enlarge_alpha, fill_transparent

        if isinstance(image, np.ndarray):
            return np.asarray(
                self(_picture(image), degradation=degradation, progress=progress)
            ).reshape(image.shape[0] * self.scale, image.shape[1] * self.scale, image.shape[2])
        if isinstance(image, Picture):
            color, alpha = image.color, image.alpha
            if alpha is not None:
                color = fill_transparent(color, alpha)
                size = (image.size[0] * self.scale, image.size[1] * self.scale)
                alpha = enlarge_alpha(alpha, size)
            color = self._color(color, degradation, progress)
            return dataclasses.replace(image, color=color, alpha=alpha)
        if not isinstance(image, Image.Image):
            raise TypeError(
                "Upscaler: image: expected a PIL image, a NumPy array or a Tensor, "
                f"got {type(image).__name__}"
            )
        picture = Picture.from_pil(image)
        return self(picture, degradation=degradation, progress=progress).to_pil()

    def predict(self, lr: Tensor) -> Prediction:
        """Predict degradation and mixing weights in bounded memory.

        Args:
            lr: [B, 3, H, W], 0..1, on any device.

        Returns:
            v [B, 33] and mixing weights [B, K], float32, on the device of the model.

        Raises:
            TypeError, ValueError: ``lr`` is not as described.
        """
        with torch.no_grad():
            lr = lr.to(self.device, torch.float32)
            return self.model.predict(lr, None if self.tile == 0 else 4 * self.tile**2)

    def _tensor(
        self, image: Tensor, degradation: Tensor | Edit | None, progress: Progress | None
    ) -> Tensor:
        if not image.is_floating_point():
            raise TypeError(f"Upscaler: image: expected a floating-point tensor, got {image.dtype}")
        if image.dim() != 4 or image.shape[1] != 3 or 0 in image.shape:
            raise ValueError(
                f"Upscaler: image: expected [B, 3, H, W], none of them 0, got {list(image.shape)}"
            )
        low, high = image.aminmax()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"Upscaler: image: expected values in 0..1, got {low:.4g}..{high:.4g}")
        batch, _, height, width = image.shape
        output = image.new_empty(batch, 3, height * self.scale, width * self.scale)
        for first, band in self._bands(image, degradation, progress):
            output[:, :, first : first + band.shape[2]] = band.clamp(0, 1)
        return output

    def _color(
        self, color: np.ndarray, degradation: Tensor | Edit | None, progress: Progress | None
    ) -> np.ndarray:
        """Magnify uint8 [H, W, 3], uint8 [H, W] or uint16 [H, W]."""
        grey, peak = color.ndim == 2, float(np.iinfo(color.dtype).max)
        lr = torch.from_numpy(color.astype(np.float32) / np.float32(peak))
        lr = lr.expand(3, -1, -1) if grey else lr.permute(2, 0, 1)
        height, width = color.shape[:2]
        shape = (height * self.scale, width * self.scale, *color.shape[2:])
        output = np.empty(shape, color.dtype)
        for first, band in self._bands(lr.unsqueeze(0), degradation, progress):
            rows = band[0].clamp(0, 1)
            rows = rows.mean(0) if grey else rows.permute(1, 2, 0)
            rows = rows.mul(peak).round_()
            output[first : first + len(rows)] = rows.numpy().astype(color.dtype)
        return output

    @torch.no_grad()
    def _bands(
        self, image: Tensor, degradation: Tensor | Edit | None, progress: Progress | None
    ) -> Any:
        lr = image.to(self.device, torch.float32, memory_format=torch.channels_last)
        weights = self._weights(lr, degradation)
        radius = self.receptive_field_radius
        overlap = min(self.overlap, radius)  # more would be computed in vain
        rows = cut(lr.shape[2], self.tile, overlap, radius)
        columns = cut(lr.shape[3], self.tile, overlap, radius)
        total, done, dtype = len(rows) * len(columns), 0, self.dtype

        def network(tile: Tensor) -> Tensor:
            nonlocal done, dtype
            result = self._run(tile, weights, dtype)
            if dtype != torch.float32 and not torch.isfinite(result).all():
                self._warn_once(dtype)
                dtype = torch.float32  # for the rest of the image as well
                result = self._run(tile, weights, dtype)
            if not torch.isfinite(result).all():
                raise NonFiniteError(
                    "the network returns infinities or NaN: its weights are broken"
                )
            done += 1
            if progress is not None:
                progress(done, total)
            return result.to(image.device)

        yield from upscale_bands(lr, network, rows, columns, self.scale)

    def _weights(self, lr: Tensor, degradation: Tensor | Edit | None) -> Tensor:
        if isinstance(degradation, Tensor):
            v = degradation
        else:
            prediction = self.predict(lr)
            if degradation is None:
                return prediction.weights
            v = degradation(prediction.v)
        check_rows("Upscaler", "degradation", v, lr.shape[0], self.model.net_p.config["num_params"])
        return self.model.net_p.mix(v.to(self.device, torch.float32))

    def _run(self, tile: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
        tile = tile.to(dtype=dtype, memory_format=torch.channels_last)
        return self.model(tile, weights=weights).float()

    def _warn_once(self, dtype: torch.dtype) -> None:
        if not self._warned:
            self._warned = True
            name = str(dtype).removeprefix("torch.")
            warnings.warn(
                f"{name} overflows on this image: computed in float32 instead", stacklevel=2
            )


def choose_device() -> torch.device:
    """Return CUDA, Apple's MPS or the CPU, the first there is."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _picture(array: np.ndarray) -> Image:
    from PIL import Image

    if array.dtype != np.uint8:
        raise TypeError(f"Upscaler: image: expected a uint8 array, got {array.dtype}")
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or 0 in array.shape:
        raise ValueError(
            "Upscaler: image: expected [H, W, C] with 1 to 4 channels, none of them 0, "
            f"got {list(array.shape)}"
        )
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
