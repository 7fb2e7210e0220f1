"""`write_animation`: GIF, WebP and APNG, frame by frame from an iterator."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace as with_changes
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from .._messages import one_line
from ..files import atomic_path
from .depth import rescale, to_8_bit
from .errors import PictureError, warn
from .formats import (
    ANIMATION_FORMATS,
    LONGEST_DURATION,
    MOST_PLAYS,
    RESOLUTION_IN_EXIF,
    check_output_size,
)
from .gif_writer import write_gif
from .metadata import with_resolution
from .picture import Picture
from .png_text import listed
from .png_writer import SIGNATURE, compressed, write_chunk, write_header
from .writing import check_quality

_QUALITY = 95
_DENOMINATORS = (1000, 100, 10, 1)  # of seconds; numerators of a PNG's delays have 16 bits


def write_animation(
    frames: Iterable[Picture],
    path: str | os.PathLike[str],
    *,
    durations: Sequence[float],
    loop: int,
    replace: bool = True,
    quality: int | None = None,
) -> None:
    """Write an animation, all of it or nothing, without ever holding all frames.

    GIF gets one palette for all frames and ordered dithering, so that what does not move does not
    flicker; for that its frames wait in an unnamed temporary file beside ``path``. Durations are
    rounded to its hundredths of a second without drifting, opacity to visible or not. WebP holds
    its encoded frames in memory; APNG keeps 16 bits.

    Args:
        frames: pictures of one size.
        path: ends in .gif, .webp, .png or .apng.
        durations: milliseconds of each frame.
        loop: how often it plays; 0 for ever. As often as the format can, if that is less; what
            is clamped, also of durations, is said by a `PictureWarning`.
        replace: whether an existing file is replaced.
        quality: of WebP, 1..100, 100 is lossless; None for 95.

    Raises:
        TypeError, ValueError: an argument is not as described.
        PictureError: the format holds no animation or not this size; frames are of several sizes,
            or not as many as durations.
        FileExistsError: the file exists and ``replace`` is False.
        OSError: the file cannot be written.
    """
    check_quality("write_animation", quality)
    path = Path(path)
    format = ANIMATION_FORMATS.get(path.suffix.lower())
    if format is None:
        raise PictureError(
            "an animation needs a name that ends in one of "
            f"{' '.join(ANIMATION_FORMATS)}, got {path}"
        )
    if not isinstance(loop, int) or isinstance(loop, bool) or loop < 0:
        raise ValueError(f"write_animation: loop: expected 0 (for ever) or more, got {loop!r}")
    durations = [float(duration) for duration in durations]
    if not durations or not all(0 <= duration < math.inf for duration in durations):
        raise ValueError(
            "write_animation: durations: expected at least one, none negative or infinite, in "
            f"milliseconds, got {durations[:10]}"
        )
    if not replace and path.exists():
        raise FileExistsError(f"{path} exists")
    if loop > MOST_PLAYS[format]:
        warn(f"{format} plays at most {MOST_PLAYS[format]} times or for ever: not {loop} times")
        loop = MOST_PLAYS[format]
    longest = LONGEST_DURATION[format]
    if max(durations) > longest:
        warn(
            f"a frame of {format} lasts at most {longest / 1000:g} s: "
            f"not {max(durations) / 1000:g} s"
        )
        durations = [min(duration, longest) for duration in durations]
    with atomic_path(path, replace=replace) as temporary:
        checked = _checked(frames, len(durations), format)
        try:
            if format == "GIF":
                write_gif(temporary, checked, durations, loop)
            elif format == "WEBP":
                _write_webp(temporary, checked, durations, loop, quality or _QUALITY)
            else:
                with temporary.open("wb") as file:
                    _write_apng(file, checked, durations, loop)
        except _SourceError as error:
            raise error.__cause__ from None
        except (OSError, MemoryError, PictureError):
            raise
        except Exception as error:  # encoders raise what they like
            raise PictureError(f"cannot be written as {format}: {one_line(error)}") from error


class _SourceError(Exception):
    """Wraps what the iterator of frames raises, apart from what encoders raise."""


def _checked(frames: Iterable[Picture], count: int, format: str) -> Iterator[Picture]:
    """Yield ``count`` frames of one size; lossy formats get 8 bits."""
    size, index, iterator = None, -1, iter(frames)
    while True:
        try:
            frame = next(iterator)
        except StopIteration:
            break
        except Exception as error:
            raise _SourceError from error
        index += 1
        if size is None:
            size = frame.size
            check_output_size(size, format)
            if format != "PNG" and frame.text:
                warn(f"animated {format}: {listed(frame.text)} not kept")
            if format == "GIF" and (frame.exif or frame.icc_profile or frame.xmp or frame.dpi):
                warn("GIF keeps no metadata and no colour profile")
            if format in RESOLUTION_IN_EXIF and frame.dpi:
                try:
                    exif = with_resolution(frame.exif, frame.dpi)
                    frame = with_changes(frame, exif=exif)
                except Exception:  # of broken EXIF data
                    warn(f"animated {format}: the resolution (dpi) is not kept")
        if frame.size != size:
            raise PictureError(f"frame {index} is {frame.size}, not {size} like the first")
        if index >= count:
            raise PictureError(f"more frames than the {count} durations")
        if frame.bits == 16 and format != "PNG":
            if index == 0:
                warn(f"animated {format} does not hold 16 bits: written as 8-bit")
            alpha = None if frame.alpha is None else to_8_bit(frame.alpha)
            frame = with_changes(frame, color=to_8_bit(frame.color), alpha=alpha)
        yield frame
    if index + 1 != count:
        raise PictureError(f"{index + 1} frames for {count} durations")


class _Sequence(Image.Image):
    """Frames as one of Pillow's pictures of many frames, each made when it is sought."""

    def __init__(self, frames: Iterator[Picture], count: int) -> None:
        super().__init__()
        self._frames, self._index = frames, -1
        self.n_frames, self.is_animated = count, True
        self.seek(0)

    def seek(self, frame: int) -> None:
        if frame != self._index + 1:
            return  # back to where it began, when all is written
        self._index = frame
        picture = next(self._frames)
        rgb = picture.color
        if rgb.ndim == 2:
            rgb = np.repeat(rgb[..., None], 3, axis=2)
        image = Image.fromarray(np.ascontiguousarray(rgb))
        if picture.alpha is not None:
            image.putalpha(Image.fromarray(np.ascontiguousarray(picture.alpha)))
        if frame == 0:
            self.first = picture
        self.im, self._mode, self._size = image.im, image.mode, image.size

    def tell(self) -> int:
        return self._index


def _write_webp(
    path: Path, frames: Iterator[Picture], durations: list[float], loop: int, quality: int
) -> None:
    sequence = _Sequence(frames, len(durations))
    metadata = {
        key: getattr(sequence.first, key)
        for key in ("exif", "icc_profile", "xmp")
        if getattr(sequence.first, key)
    }
    starts = np.rint(np.cumsum([0.0, *durations])).astype(int)
    sequence.save(
        path,
        format="WEBP",
        save_all=True,
        duration=np.minimum(np.diff(starts), LONGEST_DURATION["WEBP"]).tolist(),
        loop=loop,
        quality=quality,
        lossless=quality == 100,
        method=4,
        background=(0, 0, 0, 0),
        **metadata,
    )
    next(frames, None)  # raises if there are more


def _write_apng(
    file: BinaryIO, frames: Iterator[Picture], durations: list[float], loop: int
) -> None:
    """Write whole frames that replace each other (PNG, third edition, W3C, section 11.3.5)."""
    number, bits = 0, 8
    for index, frame in enumerate(frames):
        bits = frame.bits if index == 0 else bits
        full = _full(frame, bits)
        if index == 0:
            file.write(SIGNATURE)
            write_header(file, full, struct.pack(">II", len(durations), loop))
        delay = _delay(durations[index])
        control = struct.pack(">IIIIIHHBB", number, *frame.size, 0, 0, *delay, 0, 0)
        write_chunk(file, b"fcTL", control)
        number += 1
        for data in compressed(full):
            if index == 0:
                write_chunk(file, b"IDAT", data)
            else:
                write_chunk(file, b"fdAT", struct.pack(">I", number) + data)
                number += 1
    write_chunk(file, b"IEND")


def _delay(milliseconds: float) -> tuple[int, int]:
    """Return numerator and denominator of a delay in seconds, the finest that fits 16 bits."""
    for denominator in _DENOMINATORS:
        numerator = round(milliseconds * denominator / 1000)
        if numerator <= 0xFFFF:
            break
    return numerator, denominator


def _full(picture: Picture, bits: int) -> Picture:
    """Return a picture as RGBA, since all frames of a PNG are of one kind."""
    dtype = np.uint8 if bits == 8 else np.uint16
    peak = (1 << picture.bits) - 1
    color = rescale(picture.color, peak, dtype)
    if color.ndim == 2:
        color = np.repeat(color[..., None], 3, axis=2)
    if picture.alpha is None:
        alpha = np.full(color.shape[:2], np.iinfo(dtype).max, dtype)
    else:
        alpha = rescale(picture.alpha, peak, dtype)
    profile = picture.icc_profile
    if (profile or b"    RGB ")[16:20] == b"GRAY":
        profile = None
    return with_changes(picture, color=color, alpha=alpha, icc_profile=profile)
