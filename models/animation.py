"""Magnifying animated pictures, all frames as one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .pictures import (
    ANIMATION_FORMATS,
    Animation,
    Picture,
    PictureError,
    check_output_size,
    open_animation,
    write_animation,
)

if TYPE_CHECKING:
    from .upscale import Edit, Progress, Upscaler

PREDICTED_FRAMES = 8
"""Frames, spread over the animation, whose predicted degradations are averaged."""


def upscale_animation(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    upscaler: Upscaler,
    *,
    degradation: Tensor | Edit | None = None,
    replace: bool = True,
    quality: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Magnify an animated GIF, WebP or PNG frame by frame.

    All frames are magnified for the same degradation, so that nothing flickers: the mean of those
    predicted for some of them.

    Args:
        source: the animation.
        target: its suffix chooses the format: .gif, .webp, .png or .apng.
        upscaler: what magnifies.
        degradation: as for `Upscaler`.
        replace: whether an existing file is replaced.
        quality: of WebP, see `write_animation`.
        progress: called with the number of tiles done and their total.

    Returns:
        The number of pixels of all frames of the result.

    Raises:
        PictureError: ``source`` is no animation, or broken, or the format of ``target`` does not
            hold the result.
        FileExistsError: the file exists and ``replace`` is False.
        OSError: ``target`` cannot be written.
    """
    animation = open_animation(source)
    if animation is None:
        raise PictureError("not an animation")
    format = ANIMATION_FORMATS.get(Path(target).suffix.lower())
    if format is not None:  # of others `write_animation` has to say more
        check_output_size(upscaler.output_size(*animation.size), format)
    if not isinstance(degradation, Tensor):
        predicted = _mean_degradation(animation, upscaler)
        degradation = predicted if degradation is None else degradation(predicted)
    pixels = 0

    def frames() -> Iterator[Picture]:
        nonlocal pixels
        for number, frame in enumerate(animation):

            def report(done: int, total: int, number: int = number) -> None:
                if progress is not None:
                    progress(number * total + done, animation.num_frames * total)

            result = upscaler(frame, degradation=degradation, progress=report)
            pixels += result.size[0] * result.size[1]
            yield result

    write_animation(
        frames(),
        target,
        durations=animation.durations,
        loop=animation.loop,
        replace=replace,
        quality=quality,
    )
    return pixels


def _mean_degradation(animation: Animation, upscaler: Upscaler) -> Tensor:
    count = min(PREDICTED_FRAMES, animation.num_frames)
    wanted = {i * (animation.num_frames - 1) // max(count - 1, 1) for i in range(count)}
    vectors = []
    for number, frame in enumerate(animation):
        if number in wanted:
            vectors.append(upscaler.predict_picture(frame).v)
    return torch.stack(vectors).mean(0)
