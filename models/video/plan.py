"""What will be written, decided before the work starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from .codecs import Encoder, choose_encoder, configure
from .color import UNSPECIFIED, Colors
from .errors import VideoError, import_av, messages, reason
from .options import VideoOptions
from .probe import Source

_LIMITED_ONLY = ("prores_ks", "prores", "prores_aw", "dnxhd")
"""Encoders of formats that cannot say that samples use their full range."""

_FASTEST = 240
"""Frames per second that all encoders accept."""


@dataclass(frozen=True)
class VideoPlan:
    """The enlarged video stream."""

    encoder: Encoder
    size: tuple[int, int]
    """Width and height."""
    cropped: tuple[int, int]
    """Columns and rows left out at the right and at the bottom, to fit the chroma."""
    time_base: Fraction
    rate: Fraction
    aspect: Fraction | None
    colors: Colors
    matrix_tag: int
    range_tag: int
    primaries: int
    transfer: int


def make_plan(
    source: Source, full_size: tuple[int, int], options: VideoOptions, container: str
) -> VideoPlan:
    """Decide on the encoder and all that it is told.

    Args:
        source: the video stream.
        full_size: (width, height) of the enlarged frames.
        options: the wishes.
        container: FFmpeg's name of the format of the target.

    Raises:
        VideoError: the encoder is missing, or refuses.
    """
    encoder = choose_encoder(options, container, source.layout)
    layout = encoder.layout
    # x264 and x265 want whole chroma samples; of an odd size the last column or row goes.
    width, height = (
        side - side % (1 << shift)
        for side, shift in zip(full_size, (layout.shift_x, layout.shift_y), strict=True)
    )
    if min(width, height) < 1:
        raise VideoError(f"{full_size[0]}x{full_size[1]} is too small for {encoder.pixel_format}")
    range_tag = source.range_tag
    matrix_tag = source.matrix_tag
    full = source.colors.full
    if layout.model == "rgb":
        matrix_tag, range_tag, full = 0, 2, True
    elif source.layout.model != layout.model or (full and encoder.name in _LIMITED_ONLY):
        range_tag, full = 1, False  # made anew
    plan = VideoPlan(
        encoder=encoder,
        size=(width, height),
        cropped=(full_size[0] - width, full_size[1] - height),
        time_base=source.time_base,
        rate=_planned_rate(source),
        aspect=source.aspect or None,
        # Enlarged, a small video would be taken for HD: its matrix is always named.
        colors=Colors(source.colors.matrix, full),
        matrix_tag=matrix_tag,
        range_tag=range_tag,
        primaries=source.primaries or UNSPECIFIED,
        transfer=source.transfer or UNSPECIFIED,
    )
    open_encoder(plan)  # better now than after an hour
    return plan


def _planned_rate(source: Source) -> Fraction:
    """Return a rate that encoders accept; time stamps are exact whatever it is.

    Of files with time stamps in milliseconds FFmpeg may guess 1000 frames per second.
    """
    rate = source.rate or Fraction(25)
    if rate <= _FASTEST:
        return rate
    if source.declared_frames and source.duration:
        rate = Fraction(source.declared_frames / source.duration).limit_denominator(1001)
    return rate if 1 <= rate <= _FASTEST else Fraction(60)


def open_encoder(plan: VideoPlan) -> Any:
    """Return a fresh open encoder, an `av.CodecContext`.

    Raises:
        VideoError: it refuses its settings.
    """
    av = import_av()
    encoder = plan.encoder
    context = av.CodecContext.create(encoder.name, "w")
    said: list[str] = []
    if encoder.name == "libsvtav1":
        os.environ.setdefault("SVT_LOG", "1")  # errors only
    try:
        with messages() as said:
            configure(context, encoder, plan)
            context.open()
    except (av.error.FFmpegError, ValueError, OverflowError) as error:
        wishes = ", ".join(f"{key} {value}" for key, value in encoder.options.items())
        raise VideoError(
            f"{encoder.name} refuses {plan.size[0]}x{plan.size[1]} {encoder.pixel_format}"
            f"{' with ' + wishes if wishes else ''}: {'; '.join(said)[:200] or reason(error)}"
        ) from None
    unknown = [name for name in context.options if name in encoder.options]
    if unknown:
        raise VideoError(f"encoder_options: {encoder.name} knows no {', '.join(unknown)}")
    return context
