"""Writing animated GIF (GIF89a) without flicker, in bounded memory."""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from .picture import Picture

_COLORS = 255
_CLEAR = 255  # index of what is not seen
_VISIBLE = 128  # opacity from which on a pixel is seen
_BINS = 1 << 15  # 5 bits per channel
_SAMPLE = 1 << 18
_KEEP, _RESTORE_BACKGROUND = 1, 2
_DITHER = 12  # grey levels between the lowest and the highest threshold


class _Rectangle(NamedTuple):
    left: int
    top: int
    right: int
    bottom: int


def write_gif(path: Path, frames: Iterator[Picture], durations: list[float], loop: int) -> None:
    """Write frames of 8 bits; see `write_animation`."""
    with tempfile.TemporaryFile(dir=path.parent) as spool:
        counter = _ColorCounter()
        lengths = []
        size = (1, 1)
        for frame in frames:
            size = frame.size
            pixels = _rgba(frame)
            counter.add(pixels)
            data = zlib.compress(pixels, 1)
            spool.write(data)
            lengths.append(len(data))
        spool.seek(0)
        palette = counter.palette()
        shape = (size[1], size[0], 4)
        indexed = (
            palette.indices(
                np.frombuffer(zlib.decompress(spool.read(length)), np.uint8).reshape(shape)
            )
            for length in lengths
        )
        with path.open("wb") as file:
            _write_header(file, size, palette.colors, loop)
            _write_frames(file, indexed, centiseconds(durations))
            file.write(b";")


def centiseconds(durations: list[float]) -> list[int]:
    """Round milliseconds to hundredths of a second so that errors do not add up.

    What is 0 stays 0; what is not gets at least 2, since browsers slow down what is shorter, except
    that 10 ms stay what they are.
    """
    result, target, written = [], 0.0, 0
    for duration in durations:
        target += duration
        value = round(target / 10) - written
        if duration == 0:
            value = 0
        elif duration <= 10:
            value = 1
        else:
            value = max(value, 2)
        result.append(min(value, 0xFFFF))
        written += result[-1]
    return result


class _ColorCounter:
    """Counts the visible colours of many frames."""

    def __init__(self) -> None:
        self._seen = np.zeros(1 << 24, bool)
        self._counts = np.zeros(_BINS, np.int64)
        self._sums = np.zeros((3, _BINS))

    def add(self, rgba: np.ndarray) -> None:
        visible = rgba[rgba[..., 3] >= _VISIBLE][:, :3]
        if not len(visible):
            return
        wide = visible.astype(np.uint32)
        self._seen[wide[:, 0] << 16 | wide[:, 1] << 8 | wide[:, 2]] = True
        bins = (wide[:, 0] >> 3) << 10 | (wide[:, 1] >> 3) << 5 | wide[:, 2] >> 3
        self._counts += np.bincount(bins, minlength=_BINS)
        for channel in range(3):
            self._sums[channel] += np.bincount(bins, wide[:, channel], minlength=_BINS)

    def palette(self) -> _Palette:
        """Return all colours if they are few, else a median cut of them, refined by k-means."""
        if np.count_nonzero(self._seen) <= _COLORS:
            codes = np.flatnonzero(self._seen)
            return _Palette(np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1), True)
        used = np.flatnonzero(self._counts)
        means = np.rint(self._sums[:, used] / self._counts[used]).astype(np.uint8).T
        share = self._counts[used] / self._counts.sum()
        sample = np.repeat(means, np.maximum(1, np.rint(share * _SAMPLE)).astype(int), axis=0)
        image = Image.fromarray(np.ascontiguousarray(sample[None]))
        reduced = image.quantize(_COLORS, Image.Quantize.MEDIANCUT, kmeans=2)
        colors = np.array(reduced.getpalette()[: 3 * _COLORS]).reshape(-1, 3)
        return _Palette(colors, False)


class _Palette:
    """Colours, and how pixels become indices of them."""

    def __init__(self, colors: np.ndarray, exact: bool) -> None:
        self.colors = colors.astype(np.uint8)
        self._exact = exact
        self._image = Image.new("P", (1, 1))
        # Unused places repeat a colour, so that none of Pillow's own is ever the nearest.
        filled = np.zeros((256, 3), np.uint8)
        if len(self.colors):
            filled[:] = self.colors[0]
            filled[: len(self.colors)] = self.colors
        self._image.putpalette(filled.tobytes())

    def indices(self, rgba: np.ndarray) -> np.ndarray:
        """Return uint8 [H, W], `_CLEAR` for what is not seen.

        Unless all colours are in the palette, a fixed pattern of thresholds (Bayer's) is added
        first: unlike diffused errors it stays where it is when something moves elsewhere.
        """
        rgb = rgba[..., :3]
        if not self._exact:
            height, width = rgb.shape[:2]
            pattern = np.tile(_bayer(), (height // 8 + 1, width // 8 + 1))[:height, :width, None]
            rgb = np.clip(rgb.astype(np.int16) + pattern, 0, 255).astype(np.uint8)
        image = Image.fromarray(np.ascontiguousarray(rgb))
        result = np.array(image.quantize(palette=self._image, dither=Image.Dither.NONE))
        result[result >= max(len(self.colors), 1)] = 0
        result[rgba[..., 3] < _VISIBLE] = _CLEAR
        return result


def _bayer() -> np.ndarray:
    """Return 8x8 thresholds, int16, of mean about 0."""
    matrix = np.zeros((1, 1), np.int64)
    for _ in range(3):
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    return np.rint((matrix - 31.5) * _DITHER / 64).astype(np.int16)


def _rgba(picture: Picture) -> np.ndarray:
    height, width = picture.color.shape[:2]
    result = np.empty((height, width, 4), np.uint8)
    result[..., :3] = picture.color if picture.color.ndim == 3 else picture.color[..., None]
    result[..., 3] = 255 if picture.alpha is None else picture.alpha
    return result


def _write_header(file: BinaryIO, size: tuple[int, int], colors: np.ndarray, loop: int) -> None:
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    file.write(b"GIF89a" + struct.pack("<HHBBB", *size, 0xF7, _CLEAR, 0) + table.tobytes())
    if loop != 1:  # the extension holds the number of repetitions, 0 for ever
        repetitions = max(loop - 1, 0)
        file.write(b"!\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", repetitions) + b"\0")


def _write_frames(file: BinaryIO, frames: Iterator[np.ndarray], delays: list[int]) -> None:
    """Write what changes from frame to frame.

    A frame is cleared before the next one if that needs pixels to disappear, since nothing drawn
    can make them.
    """
    current = next(frames)
    canvas = np.full_like(current, _CLEAR)
    for index, delay in enumerate(delays):
        following = next(frames) if index + 1 < len(delays) else None
        changed = current != canvas
        vanishing = None if following is None else (current != _CLEAR) & (following == _CLEAR)
        clears = vanishing is not None and vanishing.any()
        area = _bounds(changed | vanishing if clears else changed)
        part = slice(area.top, area.bottom), slice(area.left, area.right)
        pixels = np.where(changed[part], current[part], np.uint8(_CLEAR))
        disposal = _RESTORE_BACKGROUND if clears else _KEEP
        file.write(b"!\xf9\x04" + struct.pack("<BHBB", disposal << 2 | 1, delay, _CLEAR, 0))
        size = area.right - area.left, area.bottom - area.top
        file.write(b"," + struct.pack("<HHHHB", area.left, area.top, *size, 0))
        file.write(_encoded(pixels))
        canvas = current
        if clears:
            canvas = current.copy()
            canvas[part] = _CLEAR
        if following is None:
            return
        current = following


def _bounds(changed: np.ndarray) -> _Rectangle:
    """Return the rectangle around what is True, or one pixel."""
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    if not len(rows):
        return _Rectangle(0, 0, 1, 1)
    return _Rectangle(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _encoded(indices: np.ndarray) -> bytes:
    """Return the compressed image data of a frame, taken out of a GIF that Pillow writes."""
    image = Image.fromarray(np.ascontiguousarray(indices))
    image.putpalette(bytes(range(256)) * 3)
    buffer = io.BytesIO()
    image.save(buffer, format="GIF", optimize=False, interlace=False)
    data = buffer.getvalue()
    flags = data[10]
    place = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while data[place : place + 1] == b"!":
        place += 2
        while data[place]:
            place += 1 + data[place]
        place += 1
    flags = data[place + 9]
    place += 10 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    return data[place:-1]
