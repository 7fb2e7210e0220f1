"""Encoders: which there are, what quality means to each, and which pixel format serves a source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .errors import VideoError, import_av
from .layout import Layout, is_format, layout_of
from .options import VideoOptions

CONTAINERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
}
"""Formats that results are written in, by the suffix of the file name."""


def target_suffix(source: Path) -> str:
    """Return the suffix for a result beside ``source``: its own, or .mkv, which holds most."""
    suffix = source.suffix.lower()
    return suffix if suffix in CONTAINERS else ".mkv"


_ALIASES = {
    "h264": ("libx264", "libopenh264"),
    "avc": ("libx264", "libopenh264"),
    "hevc": ("libx265",),
    "h265": ("libx265",),
    "av1": ("libsvtav1", "libaom-av1"),
    "vp9": ("libvpx-vp9",),
    "vp8": ("libvpx",),
    "prores": ("prores_ks",),
}
_X26X_PRESETS = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast"),
    *("medium", "slow", "slower", "veryslow", "placebo"),
)
_KNOWN_TO_WORK = ("libx264", "libx265", "libsvtav1", "libaom-av1", "libvpx-vp9", "ffv1")


class _Rules(NamedTuple):
    """How one encoder takes quality and speed."""

    options: Callable[[float, str], dict[str, str]]
    """Of crf and preset."""
    crf: float | None = None
    """A good one; None: the encoder knows none."""
    largest_crf: float = 51
    presets: tuple[str, ...] = ()
    preset: str = ""
    lossless: bool = False
    alpha: bool = False


def _numbers(last: int) -> tuple[str, ...]:
    return tuple(map(str, range(last + 1)))


def _x265(crf: float, preset: str) -> dict[str, str]:
    # Its note on how it was called would make headers differ between machines.
    return {"crf": f"{crf:g}", "preset": preset, "x265-params": "log-level=error:info=0"}


def _vpx(crf: float, preset: str) -> dict[str, str]:
    return {"crf": f"{crf:g}", "cpu-used": preset, "b": "0", "row-mt": "1"}


_RULES = {
    "libx264": _Rules(
        lambda crf, preset: {"crf": f"{crf:g}", "preset": preset},
        *(18, 51, _X26X_PRESETS, "medium"),
    ),
    "libx265": _Rules(_x265, 20, 51, _X26X_PRESETS, "medium"),
    "libsvtav1": _Rules(
        lambda crf, preset: {"crf": f"{crf:g}", "preset": preset}, 28, 63, _numbers(13), "8"
    ),
    "libaom-av1": _Rules(_vpx, 28, 63, _numbers(8), "4"),
    "libvpx-vp9": _Rules(_vpx, 28, 63, _numbers(8), "2"),
    "ffv1": _Rules(lambda crf, preset: {"level": "3"}, lossless=True, alpha=True),
    "prores_ks": _Rules(lambda crf, preset: {"vendor": "apl0"}, alpha=True),
    "utvideo": _Rules(lambda crf, preset: {}, lossless=True, alpha=True),
    "png": _Rules(lambda crf, preset: {}, lossless=True, alpha=True),
    "qtrle": _Rules(lambda crf, preset: {}, lossless=True, alpha=True),
}


@dataclass(frozen=True)
class Encoder:
    """An encoder of this build with its options."""

    name: str
    pixel_format: str
    layout: Layout
    """What is computed for it."""
    options: dict[str, str] = field(default_factory=dict)
    threads: int = 0


def encoders() -> list[str]:
    """Return the names of the video encoders of this build of PyAV, the usual ones first."""
    av = import_av()
    names = []
    for name in sorted(av.codecs_available):
        try:
            codec = av.Codec(name, "w")
        except ValueError:
            continue
        if codec.type == "video" and codec.video_formats:
            names.append(codec.name)
    usual = [name for name in _RULES if name in names]
    return [*usual, *(name for name in dict.fromkeys(names) if name not in usual)]


def container_of(path: Path) -> str:
    """Return FFmpeg's name of the format that ``path`` is written in.

    Raises:
        VideoError: the suffix is none of `CONTAINERS`.
    """
    try:
        return CONTAINERS[path.suffix.lower()]
    except KeyError:
        raise VideoError(
            f"{path.name}: a video is written as one of {' '.join(CONTAINERS)}, "
            f"not as {path.suffix or 'a name without suffix'}"
        ) from None


def choose_encoder(options: VideoOptions, container: str, source: Layout) -> Encoder:
    """Return the encoder that ``options`` name.

    Args:
        options: codec, quality, pixel format.
        container: FFmpeg's name of the format of the file.
        source: pixel format of the source.

    Raises:
        VideoError: this build lacks the encoder, or an option is not one of it.
    """
    name = _find(options.codec, container)
    rules = _RULES.get(name)
    chosen = dict(_quality(name, rules, options))
    chosen.update({str(key): str(value) for key, value in options.encoder_options.items()})
    formats = _formats(name)
    if options.pixel_format == "auto":
        pixel_format = best_format(
            formats, source, bool(rules and rules.lossless), bool(rules and rules.alpha)
        )
        if pixel_format is None:
            raise VideoError(f"codec: {name} takes none of the pixel formats that we write")
    else:
        pixel_format = options.pixel_format
        layout_of(pixel_format)
        if formats and pixel_format not in formats:
            raise VideoError(
                f"pixel_format: {name} takes {' '.join(formats)}, not {pixel_format!r}"
            )
    layout = layout_of(pixel_format)
    if name == "prores_ks" and "profile" not in chosen:
        chosen["profile"] = "4444" if layout.shift_x == 0 else "hq"
    return Encoder(name, pixel_format, layout, chosen, options.threads)


def _find(wanted: str, container: str) -> str:
    av = import_av()
    if wanted == "auto":
        wanted = "vp9" if container == "webm" else "h264"
    for name in (*_ALIASES.get(wanted.lower(), ()), wanted):
        try:
            codec = av.Codec(name, "w")
        except ValueError:
            continue
        if codec.type == "video":
            return codec.name
    present = encoders()
    usual = [name for name in present if name in _RULES]
    raise VideoError(
        f"codec: this build of PyAV has no encoder {wanted!r}; it has {' '.join(usual)}"
        + (f" and {len(present) - len(usual)} more" if len(present) > len(usual) else "")
    )


def _quality(name: str, rules: _Rules | None, options: VideoOptions) -> dict[str, str]:
    crf, preset = options.crf, options.preset
    if rules is None:
        if not options.encoder_options:
            raise VideoError(
                f"codec: what good quality means to {name} is not known here: say it by "
                "encoder_options, or take one of " + " ".join(_RULES)
            )
        named = {"crf": None if crf is None else f"{crf:g}", "preset": preset}
        return {key: str(value) for key, value in named.items() if value is not None}
    if rules.crf is None:
        for key, value in (("crf", crf), ("preset", preset)):
            if value is not None:
                raise VideoError(f"{key}: {name} has none, got {value}")
        return rules.options(0, "")
    if crf is not None and crf > rules.largest_crf:
        raise VideoError(f"crf: {name} takes 0 to {rules.largest_crf:g}, got {crf:g}")
    if preset is not None and str(preset) not in rules.presets:
        raise VideoError(f"preset: {name} takes {' '.join(rules.presets)}, got {preset!r}")
    crf = rules.crf if crf is None else crf
    return rules.options(crf, rules.preset if preset is None else str(preset))


def _formats(name: str) -> list[str]:
    av = import_av()
    return [pixels.name for pixels in av.Codec(name, "w").video_formats or ()]


def best_format(formats: list[str], source: Layout, lossless: bool, alpha: bool) -> str | None:
    """Return the pixel format that loses least of ``source``, and among those the smallest.

    Delivery formats of RGB and grey hardly play anywhere: unless the encoder is lossless they
    become 4:2:0, which at four times the size still has twice the colour resolution of the source.

    Args:
        formats: what the encoder takes.
        source: pixel format of the source.
        lossless: whether the encoder is.
        alpha: whether it keeps opacity.
    """
    wanted = source
    if source.model != "yuv" and not lossless:
        wanted = Layout("yuv", source.depth, 1, 1, source.alpha)

    def cost(name: str) -> tuple[Any, ...]:
        layout = layout_of(name)
        return (
            wanted.alpha and alpha and not layout.alpha,
            layout.model == "gray" and wanted.model != "gray",
            max(wanted.depth - layout.depth, 0),
            max(layout.shift_x - wanted.shift_x, 0) + max(layout.shift_y - wanted.shift_y, 0),
            layout.model != wanted.model,
            layout.alpha,
            layout.depth,
            -layout.shift_x - layout.shift_y,
            name != layout.name,
        )

    usable = [
        name
        for name in formats
        if is_format(name)
        and not name.startswith(("yuvj", "pal", "mono", "xyz", "bayer"))
        and "f16" not in name
        and "f32" not in name
        and "msb" not in name
        and name not in ("cuda", "vaapi", "qsv", "vulkan", "videotoolbox_vld", "drm_prime", "d3d11")
        and "555" not in name
        and (alpha or not layout_of(name).alpha)
    ]
    return min(usable, key=cost, default=None)


def configure(context: Any, encoder: Encoder, video: Any) -> None:
    """Prepare an `av.CodecContext`, one's own or that of a stream, for `Encoder` and ``video``.

    Args:
        context: not yet open.
        encoder: the encoder.
        video: a `plan.VideoPlan`.
    """
    av = import_av()
    context.width, context.height = video.size
    context.pix_fmt = encoder.pixel_format
    context.time_base = video.time_base
    context.framerate = video.rate
    if video.aspect:
        context.sample_aspect_ratio = video.aspect
    context.color_range = video.range_tag
    context.colorspace = video.matrix_tag
    context.color_primaries = video.primaries
    context.color_trc = video.transfer
    context.thread_count = encoder.threads
    context.bit_rate_tolerance = 128_000  # as streams have it: equal settings, equal headers
    context.flags |= int(av.codec.context.Flags.global_header)
    context.options = dict(encoder.options)
