"""Which streams a result has, and how each is set up: the enlarged one and the copied ones."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .codecs import configure
from .errors import VideoError, check_disk, import_av, messages, reason
from .plan import VideoPlan
from .probe import Source, is_cover, open_input
from .reader import Warn

_STALE_TAGS = ("encoder", "rotate", "bps", "duration", "number_of_", "_statistics_", "alpha_mode")
_CONTAINER_TAGS = ("major_brand", "minor_version", "compatible_brands", "encoder")


@contextmanager
def open_output(path: Path, container: str, tags: dict[str, str]) -> Iterator[Any]:
    """Open a file for writing, as `av.container.OutputContainer`, with the tags ``tags``."""
    av = import_av()
    options = {}
    if container in ("mp4", "mov"):
        options["movflags"] = "+faststart"
        if any(name.startswith("com.") for name in tags):  # QuickTime's own, such as the place
            options["movflags"] += "+use_metadata_tags"
    else:
        options["default_mode"] = "passthrough"
    output = av.open(f"file:{path}", "w", format=container, container_options=options)
    output.metadata.update(tags)
    try:
        yield output
    except BaseException:
        with suppress(Exception):
            output.close()
        raise
    output.close()


def container_tags(container: Any) -> dict[str, str]:
    """Return the tags of a file that belong to what it shows."""
    return {
        key: value
        for key, value in container.metadata.items()
        if key.lower() not in _CONTAINER_TAGS
    }


def add_video(output: Any, source: Any, plan: VideoPlan) -> Any:
    """Add the enlarged stream.

    Its encoder is opened for its headers only; packets come from segments.

    Args:
        output: where to.
        source: the stream that is enlarged; its tags and flags are taken over.
        plan: the rest.
    """
    stream = output.add_stream(plan.encoder.name, rate=plan.rate)
    configure(stream.codec_context, plan.encoder, plan)
    stream.time_base = plan.time_base
    if plan.encoder.name == "libx265" and output.format.name in ("mp4", "mov"):
        stream.codec_context.codec_tag = "hvc1"  # Apple's players want it
    stream.disposition = source.disposition.value
    stream.metadata.update(
        {
            key: value
            for key, value in source.metadata.items()
            if not key.lower().startswith(_STALE_TAGS)
        }
    )
    return stream


def add_copy(output: Any, stream: Any, container: str, cover: bytes | None = None) -> Any | None:
    """Add a stream that is copied.

    Returns:
        The stream that its packets go to; None if everything was said by adding it.
    """
    if stream.type == "attachment":
        name = stream.metadata.get("filename", f"attachment{stream.index}")
        kind = stream.metadata.get("mimetype") or mimetypes.guess_type(name)[0]
        added = output.add_attachment(name, kind or "application/octet-stream", stream.data)
        _copy_tags(added, stream)
        return None
    if cover is not None and container == "matroska":  # where covers are attachments
        kind = "image/png" if stream.codec_context.name == "png" else "image/jpeg"
        name = "cover.png" if kind == "image/png" else "cover.jpg"
        name = stream.metadata.get("filename", name)
        added = output.add_attachment(name, stream.metadata.get("mimetype", kind), cover)
        return None
    added = output.add_stream_from_template(stream, opaque=True)
    added.disposition = stream.disposition.value
    _copy_tags(added, stream)
    return added


def _copy_tags(added: Any, stream: Any) -> None:
    for key, value in stream.metadata.items():
        if key.lower() != "encoder" or stream.type != "video":
            added.metadata.setdefault(key, value)


def read_covers(path: Path) -> dict[int, bytes]:
    """Return the cover pictures of a file by the index of their stream."""
    import av

    covers: dict[int, bytes] = {}
    with open_input(path) as container:
        wanted = [stream for stream in container.streams.video if is_cover(stream)]
        if not wanted:
            return covers
        try:
            for packet in container.demux(wanted):
                if packet.size:
                    covers.setdefault(packet.stream_index, bytes(packet))
                if len(covers) == len(wanted):
                    break
        except (av.error.FFmpegError, OSError) as error:
            check_disk(error, path)
    return covers


def fitting_streams(
    source: Source, plan: VideoPlan, container: str, scratch: Path, warn: Warn
) -> list[int]:
    """Return the indices of the streams that can be copied, and say which cannot.

    Each stream is tried: a file with it alone is begun, and then one with all of them.

    Args:
        source: the source.
        plan: the enlarged stream.
        container: FFmpeg's name of the format.
        scratch: a file to begin and remove.
        warn: called with what is left out.

    Raises:
        VideoError: the enlarged stream or an audio track does not fit.
    """
    fitting: list[int] = []
    covers = read_covers(source.path)
    with open_input(source.path) as input_:
        video = input_.streams[source.index]
        failure = _try(scratch, container, covers, [], video, plan)
        if failure is not None:
            raise VideoError(
                f"codec: a {container} file cannot hold what {plan.encoder.name} makes: {failure}"
            )
        for stream in input_.streams:
            if stream.index == source.index:
                continue
            what = _describe(stream)
            if stream.type == "data" and _is_remade(input_, stream):
                continue
            if is_cover(stream) and stream.index not in covers:
                continue
            if stream.codec_context is None and stream.type in ("audio", "subtitle", "video"):
                warn(f"{what} is of a codec that this PyAV does not know and is left out")
                continue
            failure = _try(scratch, container, covers, [stream])
            if failure is None:
                fitting.append(stream.index)
                if stream.type == "video" and not is_cover(stream):
                    warn(f"{what} is a second video: it is copied, not enlarged")
            elif stream.type == "audio":
                raise VideoError(
                    f"{what} does not fit into a {container} file ({failure}); one named .mkv "
                    "holds it"
                )
            else:
                warn(f"{what} does not fit into a {container} file and is left out ({failure})")
        streams = [input_.streams[index] for index in fitting]
        failure = _try(scratch, container, covers, streams, video, plan)
        if failure is not None:
            raise VideoError(f"a {container} file cannot hold these streams together: {failure}")
    return fitting


def _try(
    scratch: Path,
    container: str,
    covers: dict[int, bytes],
    streams: list[Any],
    video: Any = None,
    plan: VideoPlan | None = None,
) -> str | None:
    """Begin a file and return why that fails, or None."""
    av = import_av()
    said: list[str] = []
    try:
        with messages() as said:
            output = av.open(f"file:{scratch}", "w", format=container)
            try:
                if plan is not None:
                    add_video(output, video, plan)
                for stream in streams:
                    add_copy(output, stream, container, covers.get(stream.index))
                output.start_encoding()
            finally:
                with suppress(Exception):
                    output.close()
    except (av.error.FFmpegError, ValueError, NotImplementedError) as error:
        return "; ".join(said)[:200] or reason(error)
    finally:
        scratch.unlink(missing_ok=True)
    return None


def _is_remade(container: Any, stream: Any) -> bool:
    """Return whether data of QuickTime files are chapters or a time code.

    Muxers write these by themselves, of the chapters and the tags.
    """
    if "mov" not in container.format.name:
        return False
    return "timecode" in stream.metadata or bool(container.chapters())


def _describe(stream: Any) -> str:
    context = stream.codec_context
    codec = "" if context is None else f" {context.name}"
    language = f", {stream.language}" if stream.language else ""
    kind = "cover" if stream.type == "video" and is_cover(stream) else stream.type
    return f"stream {stream.index} ({kind}{codec}{language})"
