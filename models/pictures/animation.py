"""Reading animations: composed frames, their durations, and how often they play."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .._messages import one_line
from . import png_text
from .errors import PictureError, quiet_decoders, warn
from .metadata import note_lost
from .picture import Picture
from .pil import decoding, open_image, to_picture

_ANIMATED = {"GIF", "WEBP", "PNG", "AVIF"}


@dataclass(frozen=True)
class Animation:
    """An animation in a file; each iteration decodes its frames anew, one at a time.

    Frames are what is seen: whole pictures, disposal and blending applied. Those that are opaque
    all over have no ``alpha``.
    """

    path: Path
    size: tuple[int, int]
    """Width and height in pixels."""
    durations: tuple[int, ...]
    """Milliseconds of each frame, as the file says; browsers show 0 to 10 as 100."""
    loop: int
    """How often it plays; 0 for ever."""

    @property
    def num_frames(self) -> int:
        """How many frames it has."""
        return len(self.durations)

    def __iter__(self) -> Iterator[Picture]:
        for picture, _ in _frames(self.path):
            yield picture


def open_animation(path: str | os.PathLike[str]) -> Animation | None:
    """Open an animated GIF, WebP, PNG or AVIF, and decode it once to see that it is whole.

    Returns:
        The animation; None for files of one picture, of several pages (TIFF, MPO), and for those
        that Pillow does not read.

    Raises:
        PictureError: the file is missing, broken, truncated or too large.
    """
    path = Path(path)
    try:
        notes: list[str] = []
        with quiet_decoders():
            image = open_image(path)
        with image:
            if not is_animation(image):
                return None
            loop = _loop(image)
            size = image.size
            note_lost(image, notes)
            if image.format == "PNG":
                png_text.read(path, notes)
        durations = tuple(duration for _, duration in _frames(path, pixels=False))
    except UnidentifiedImageError:
        return None
    except OSError as error:
        raise PictureError(one_line(error)) from None
    except PictureError:
        raise
    except Exception as error:
        raise PictureError(f"broken: {one_line(error)}") from None
    if len(durations) < 2:
        return None  # APNG: one frame and a picture for programs that know no animations
    for text in dict.fromkeys(notes):
        warn(text)
    return Animation(path, size, durations, loop)


def is_animation(image: Image.Image) -> bool:
    """Return whether a file, as far as its head tells, holds an animation."""
    if image.format not in _ANIMATED or not getattr(image, "is_animated", False):
        return False
    # An APNG may begin with a picture for programs that know no animations.
    return not image.info.get("default_image") or image.n_frames > 2


def _loop(image: Image.Image) -> int:
    if image.format == "GIF":
        # The number of repetitions; without the extension it plays once.
        if "loop" not in image.info:
            return 1
        return image.info["loop"] and image.info["loop"] + 1
    return int(image.info.get("loop", 0))


def _frames(path: Path, pixels: bool = True) -> Iterator[tuple[Picture | None, int]]:
    """Decode one frame after the other; without ``pixels`` for the durations only."""
    try:
        with quiet_decoders():
            image = open_image(path)
        with image:
            first = 1 if image.info.get("default_image") else 0
            text = png_text.read(path, []) if image.format == "PNG" and pixels else None
            for index in range(first, image.n_frames):
                # Not around ``yield``: what happens between frames is not ours.
                with quiet_decoders():
                    with decoding(image):
                        image.seek(index)
                        image.load()
                    picture = _opaque(to_picture(image, [])) if pixels else None
                duration = max(0, round(float(image.info.get("duration", 0) or 0)))
                if picture is not None and text:
                    picture = replace(picture, text=text)
                yield picture, duration
    except PictureError:
        raise
    except (OSError, EOFError) as error:
        raise PictureError(one_line(error)) from None
    except MemoryError:
        raise PictureError("not enough memory to read it") from None
    except GeneratorExit:
        raise
    except Exception as error:  # decoders raise what they like on broken files
        raise PictureError(f"broken: {one_line(error)}") from None


def _opaque(picture: Picture) -> Picture:
    alpha = picture.alpha
    if alpha is not None and alpha.min() == (1 << picture.bits) - 1:
        return replace(picture, alpha=None)
    return picture
