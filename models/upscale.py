"""`Upscaler`: super-resolution of pictures, arrays and tensors of any size in bounded memory."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from dasr_ops.conv import Mixed

from ._checks import check_rows
from ._layers import array_of, lr_of, picture_of
from .checkpoint import load_dasr
from .dasr import DASR
from .memory import choose_tile
from .predictor import Prediction
from .resample import resample_bands
from .shipped import find_weights
from .tiling import clamped, cut, run_in_parts, upscale_bands

if TYPE_CHECKING:
    from PIL.Image import Image

    from .pictures import Picture

DEFAULT_OVERLAP = 16
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_SCALE = 32.0

PREDICT_PIXELS = 1 << 19
"""LR pixels that P sees at a time: its features of 64 channels take 128 MiB."""

Progress = Callable[[int, int], None]
Edit = Callable[[Tensor], Tensor]


class NonFiniteError(RuntimeError):
    """The network returned infinities or NaN in float32."""


class PrecisionWarning(UserWarning):
    """The network overflowed in 16 bits, and was run again in float32."""


class _Call(NamedTuple):
    degradation: Tensor | Edit | None
    progress: Progress | None
    tiles: tuple[int, int] | None


class Upscaler:
    """Magnifies pictures, arrays and tensors with a DASR model.

    The degradation is predicted once for each image, from all of it, and shared by all tiles.
    Tiles see ``overlap`` LR pixels of context on each side. With `receptive_field_radius` pixels or
    more (35 for the official network) the result equals that of the whole image to float rounding;
    with less, neighbouring tiles fade into each other, so that no seam shows. A tile for which
    there is not enough memory is computed in parts, which changes nothing but the time.

    Args:
        model: the networks; they are moved to ``device`` and converted to float32, in which the
            experts are mixed and the degradation is predicted.
        scale: magnification of the results, more than 0 and up to 32; None for that of the network.
            Any other is reached by Lanczos's method behind the network.
        tile: side of the largest square of LR pixels that the network sees at a time, context
            included; 0 for the whole image; "auto" for a rectangle that fits a quarter of the free
            memory, 448 MiB at most on a CPU.
        overlap: context of a tile on each side, in LR pixels, less than half of ``tile``; no more
            than `receptive_field_radius` is used. Ignored where ``tile`` is 0.
        device: where to compute; None for CUDA, Apple's MPS or the CPU, the first there is.
        dtype: float32, float16 or bfloat16, of the features of G; None for float16 on CUDA and
            float32 elsewhere and for pictures of 16 bits. What is not finite in 16 bits is computed
            again in float32.

    Attributes:
        model: the networks.
        scale: the magnification of the results.
        tile, overlap, device, dtype: as above.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range, or the model is not one of RGB pictures.
    """

    def __init__(
        self,
        model: DASR,
        scale: float | None = None,
        tile: int | Literal["auto"] = "auto",
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
        _check_tiles(tile, overlap)
        self.device = choose_device() if device is None else torch.device(device)
        self._chooses_dtype = dtype is None
        if dtype is None:
            dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        if dtype not in DTYPES:
            raise ValueError(f"Upscaler: dtype: expected one of {DTYPES}, got {dtype}")
        self.scale = model.upscale if scale is None else _check_scale(scale)
        self.model = model.to(device=self.device, dtype=torch.float32)
        self.tile: int | Literal["auto"] = tile if tile == "auto" else int(tile)
        self.overlap = int(overlap)
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
            path: one ``.safetensors`` file, the pair of ``.pth`` files of G and P, the name of
                weights shipped with the package (see `shipped.NAMES`), or None for its default.
            **kwargs: as for `Upscaler`.

        Raises:
            CheckpointError: the weights are missing or broken.
            TypeError, ValueError: as for `Upscaler`.
        """
        single = path is None or isinstance(path, (str, os.PathLike))
        paths = [find_weights(one) for one in ([path] if single else path)]
        return cls(load_dasr(*paths), **kwargs)

    @property
    def receptive_field_radius(self) -> int:
        """Overlap, in LR pixels, from which on tiles change nothing."""
        return self.model.receptive_field_radius

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of the result for an image of ``width`` times ``height``.

        Each is the nearest whole number, at least 1.
        """
        return max(round(width * self.scale), 1), max(round(height * self.scale), 1)

    @overload
    def __call__(
        self,
        image: Image,
        *,
        degradation: Tensor | Edit | None = ...,
        progress: Progress | None = ...,
        tiles: tuple[int, int] | None = ...,
    ) -> Image: ...
    @overload
    def __call__(
        self,
        image: Picture,
        *,
        degradation: Tensor | Edit | None = ...,
        progress: Progress | None = ...,
        tiles: tuple[int, int] | None = ...,
    ) -> Picture: ...
    @overload
    def __call__(
        self,
        image: np.ndarray,
        *,
        degradation: Tensor | Edit | None = ...,
        progress: Progress | None = ...,
        tiles: tuple[int, int] | None = ...,
    ) -> np.ndarray: ...
    @overload
    def __call__(
        self,
        image: Tensor,
        *,
        degradation: Tensor | Edit | None = ...,
        progress: Progress | None = ...,
        tiles: tuple[int, int] | None = ...,
    ) -> Tensor: ...
    def __call__(
        self,
        image: Any,
        *,
        degradation: Tensor | Edit | None = None,
        progress: Progress | None = None,
        tiles: tuple[int, int] | None = None,
    ) -> Any:
        """Magnify an image.

        Args:
            image: a picture of Pillow, of any mode but F, or a `Picture`; an array [H, W] or
                [H, W, C], uint8 or uint16, of 1 (grey), 2 (grey, opacity), 3 (RGB) or 4 (RGBA)
                channels; or a floating-point tensor [B, 3, H, W] of values 0..1.
            degradation: v [B, 33] instead of the predicted one, or a function that turns the
                predicted v into the one to use, such as `Controls`.
            progress: called with the number of tiles done and their total, after each tile. What it
                raises ends the work.
            tiles: rows and columns that the network sees at a time, as `choose_tiles` returns them;
                None to choose now.

        Returns:
            The same kind of thing, of `output_size`: a picture of mode L, LA, RGB, RGBA or I;16
            with the metadata of ``image``, its opacity magnified by Lanczos's method; an array of
            as many channels and the same type; a tensor of the same type and device, clamped to
            0..1.

        Raises:
            TypeError: ``image`` or ``degradation`` is of another kind.
            ValueError: the shape, mode or values of ``image``, ``degradation`` or ``tiles`` are not
                as described.
            NonFiniteError: the network returns infinities or NaN even in float32.
        """
        call = _Call(degradation, progress, tiles)
        if isinstance(image, Tensor):
            return self._tensor(image, call)
        from .pictures import Picture

        if isinstance(image, Picture):
            return self._picture(image, call)
        if isinstance(image, np.ndarray):
            picture = self._picture(picture_of(image), call)
            return array_of(picture, image)
        from PIL import Image

        if not isinstance(image, Image.Image):
            raise TypeError(
                "Upscaler: image: expected a PIL image, a NumPy array or a Tensor, "
                f"got {type(image).__name__}"
            )
        return self._picture(Picture.from_pil(image), call).to_pil()

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
            return self.model.predict(lr, None if self.tile == 0 else PREDICT_PIXELS)

    def predict_picture(self, picture: Picture) -> Prediction:
        """Predict degradation and mixing weights of a `Picture`, B = 1, as `predict` does."""
        from .pictures import fill_transparent

        color, alpha = picture.color, picture.alpha
        return self.predict(lr_of(color if alpha is None else fill_transparent(color, alpha)))

    def _tensor(self, image: Tensor, call: _Call) -> Tensor:
        if not image.is_floating_point():
            raise TypeError(f"Upscaler: image: expected a floating-point tensor, got {image.dtype}")
        if image.dim() != 4 or image.shape[1] != 3 or 0 in image.shape:
            raise ValueError(
                f"Upscaler: image: expected [B, 3, H, W], none of them 0, got {list(image.shape)}"
            )
        low, high = image.aminmax()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"Upscaler: image: expected values in 0..1, got {low:.4g}..{high:.4g}")
        width, height = self.output_size(image.shape[3], image.shape[2])
        output = image.new_empty(image.shape[0], 3, height, width)
        for first, band in self._bands(image, call, self.dtype):
            output[:, :, first : first + band.shape[2]] = band
        return output

    def _picture(self, picture: Picture, call: _Call) -> Picture:
        from .pictures import enlarge_alpha, fill_transparent

        color, alpha = picture.color, picture.alpha
        if alpha is not None:
            color = fill_transparent(color, alpha)
        size = self.output_size(*picture.size)
        color = self._color(color, call)
        alpha = None if alpha is None else enlarge_alpha(alpha, size)
        return dataclasses.replace(picture, color=color, alpha=alpha)

    def _color(self, color: np.ndarray, call: _Call) -> np.ndarray:
        """Magnify uint8 or uint16 [H, W, 3] or [H, W]."""
        grey, peak = color.ndim == 2, float(np.iinfo(color.dtype).max)
        width, height = self.output_size(color.shape[1], color.shape[0])
        output = np.empty((height, width, *color.shape[2:]), color.dtype)
        # The 11 bits of float16 are too few for 16.
        exact = self._chooses_dtype and color.dtype == np.uint16
        dtype = torch.float32 if exact else self.dtype
        for first, band in self._bands(lr_of(color), call, dtype):
            rows = band[0].mean(0) if grey else band[0].permute(1, 2, 0)
            rows = rows.mul_(peak).round_()
            output[first : first + len(rows)] = rows.numpy()
            del rows, band  # before the next band is made
        return output

    @torch.no_grad()
    def _bands(
        self, image: Tensor, call: _Call, dtype: torch.dtype
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield first row and rows of the result, float32 in 0..1 on the device of ``image``."""
        lr = image.to(self.device, torch.float32, memory_format=torch.channels_last)
        weights = self._weights(lr, call.degradation)
        radius = self.receptive_field_radius
        overlap = min(self.overlap, radius)  # more would be computed in vain
        height, width = lr.shape[2:]
        if call.tiles is None:
            largest = self.choose_tiles(height, width, lr.shape[0])
        else:
            largest = _check_rows_and_columns(call.tiles, 2 * overlap)
        rows = cut(height, largest[0], overlap, radius)
        columns = cut(width, largest[1], overlap, radius)
        total, done = len(rows) * len(columns), 0
        mixed = self.model.net_g.mix(weights, dtype)

        def network(tile: Tensor) -> Tensor:
            nonlocal done, dtype, mixed
            result = self._run(tile, weights, mixed, dtype)
            if dtype != torch.float32 and not torch.isfinite(result).all():
                self._warn_once(dtype)
                dtype = torch.float32  # for the rest of the image as well
                mixed = self.model.net_g.mix(weights, dtype)
                result = self._run(tile, weights, mixed, dtype)
            if not torch.isfinite(result).all():
                raise NonFiniteError(
                    "the network returns infinities or NaN: its weights are broken"
                )
            done += 1
            if call.progress is not None:
                call.progress(done, total)
            return result.to(image.device)

        factor = self.model.upscale
        bands = clamped(upscale_bands(lr, network, rows, columns, factor))
        enlarged, target = (height * factor, width * factor), self.output_size(width, height)[::-1]
        if target != enlarged:
            bands = clamped(resample_bands(bands, enlarged, target))
        yield from bands

    def choose_tiles(self, height: int, width: int, batch: int = 1) -> tuple[int, int]:
        """Return how many LR rows and columns the network sees at a time, 0 for all.

        With ``tile`` "auto" this depends on the memory that is free now; give it to the calls of
        which the results must not differ by rounding, such as the frames of a video.
        """
        if self.tile != "auto":
            return self.tile, self.tile
        rows, columns = choose_tile(
            height,
            width,
            channels=self.model.net_g.config["num_feat"],
            scale=self.model.upscale,
            element_size=self.dtype.itemsize,
            device=self.device,
            batch=batch,
            # Results of pictures and arrays are kept by the CPU, in no more than 16 bits.
            reserved=6 * batch * math.prod(self.output_size(width, height))
            if self.device.type == "cpu"
            else 0,
        )
        least = 4 * min(self.overlap, self.receptive_field_radius)
        return max(rows, least), max(columns, least)

    def _weights(self, lr: Tensor, degradation: Tensor | Edit | None) -> Tensor:
        if isinstance(degradation, Tensor):
            v = degradation
        else:
            scheme = getattr(degradation, "scheme", self.model.label_scheme)  # of `Controls`
            if scheme != self.model.label_scheme:
                raise ValueError(
                    f"Upscaler: degradation: expected scheme {self.model.label_scheme}, that of "
                    f"the weights, got {scheme}"
                )
            if degradation is not None and not callable(degradation):
                raise TypeError(
                    "Upscaler: degradation: expected a Tensor or a function, got "
                    f"{type(degradation).__name__}"
                )
            prediction = self.predict(lr)
            if degradation is None:
                return prediction.weights
            if not torch.isfinite(prediction.v).all():
                raise NonFiniteError(
                    "the network predicts infinities or NaN: its weights are broken"
                )
            v = degradation(prediction.v)
        check_rows("Upscaler", "degradation", v, lr.shape[0], self.model.net_p.config["num_params"])
        if not torch.isfinite(v).all():
            raise ValueError(
                "Upscaler: degradation: expected finite numbers, got infinities or NaN"
            )
        return self.model.net_p.mix(v.to(self.device, torch.float32))

    def _run(
        self, tile: Tensor, weights: Tensor, mixed: Sequence[Mixed], dtype: torch.dtype
    ) -> Tensor:
        def network(part: Tensor) -> Tensor:
            part = part.to(dtype=dtype, memory_format=torch.channels_last)
            return self.model.net_g(part, weights, mixed).float()

        return run_in_parts(tile, network, self.model.upscale, self.receptive_field_radius)

    def _warn_once(self, dtype: torch.dtype) -> None:
        if not self._warned:
            self._warned = True
            name = str(dtype).removeprefix("torch.")
            warnings.warn(
                f"{name} overflows on this image: computed in float32 instead",
                PrecisionWarning,
                stacklevel=2,
            )


def choose_device() -> torch.device:
    """Return CUDA, Apple's MPS or the CPU, the first there is."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _check_tiles(tile: Any, overlap: Any) -> None:
    if isinstance(tile, str) and tile != "auto":
        raise ValueError(f'Upscaler: tile: expected an int or "auto", got {tile!r}')
    for name, value in (("tile", tile), ("overlap", overlap)):
        if isinstance(value, str) and name == "tile":
            continue
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"Upscaler: {name}: expected an int, got {value!r}")
        if value < 0:
            raise ValueError(f"Upscaler: {name}: expected at least 0, got {value}")
    if tile != "auto" and tile and tile <= 2 * overlap:
        raise ValueError(
            f"Upscaler: tile: expected 0 or more than twice the overlap of {overlap}, got {tile}"
        )


def _check_scale(scale: Any) -> float:
    if not isinstance(scale, Real) or isinstance(scale, bool):
        raise TypeError(f"Upscaler: scale: expected a number, got {scale!r}")
    if not (0 < scale <= LARGEST_SCALE and math.isfinite(scale)):
        raise ValueError(
            f"Upscaler: scale: expected more than 0 and at most {LARGEST_SCALE:g}, got {scale}"
        )
    return int(scale) if isinstance(scale, Integral) else float(scale)


def _check_rows_and_columns(tiles: Any, context: int) -> tuple[int, int]:
    sides = tuple(tiles) if isinstance(tiles, Sequence) else ()
    valid = all(isinstance(n, Integral) and (n == 0 or n > context) for n in sides)
    if len(sides) != 2 or not valid:
        raise ValueError(
            f"Upscaler: tiles: expected rows and columns, 0 or more than {context}, got {tiles!r}"
        )
    return sides
