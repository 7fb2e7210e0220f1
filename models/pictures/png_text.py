"""Text entries of PNG (ISO/IEC 15948, section 11.3.4): read, and written to PNG again."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import warn
from .png import chunks

_KINDS = (b"tEXt", b"zTXt", b"iTXt")
_LONGEST = 1 << 20
_LONGEST_KEY = 79
_PROFILE = "Raw profile type "
# Kept elsewhere (XMP, EXIF), or written by ImageMagick and thumbnailers about the source file.
_ELSEWHERE = ("XML:com.adobe.xmp", _PROFILE + "exif")
_LAYOUT = ("date:", "png:", "exif:", "tiff:", "jpeg:", "icc:", "Thumb::")
_IPTC = (_PROFILE + "iptc", _PROFILE + "8bim")


def read(path: Path, notes: list[str]) -> dict[str, str]:
    """Return the text entries of a PNG file by keyword; equal keywords are joined by a line end.

    Other metadata in the guise of text is left out, and so is what describes the file itself.
    """
    result: dict[str, str] = {}
    lost: list[str] = []
    for chunk in chunks(path, _LONGEST):
        if chunk.kind not in _KINDS:
            continue
        if len(chunk.data) != chunk.length:
            if chunk.length > _LONGEST:
                notes.append(f"a text entry of {chunk.length} bytes is not kept")
            continue
        start, _, rest = chunk.data.partition(b"\0")
        key = start.decode("latin-1")
        if not key or key in _ELSEWHERE or key.startswith(_LAYOUT):
            continue
        if key in _IPTC:
            notes.append("IPTC data is not kept")
            continue
        try:
            text = _text(chunk.kind, rest)
        except (ValueError, IndexError, zlib.error):
            lost.append(key)
            continue
        if key.startswith(_PROFILE):
            lost.append(key)
        else:
            result[key] = f"{result[key]}\n{text}" if key in result else text
    if lost:
        notes.append(f"{listed(lost)} not kept")
    return result


def _text(kind: bytes, data: bytes) -> str:
    if kind == b"tEXt":
        return data.decode("latin-1")
    if kind == b"zTXt":
        return _inflated(data[1:]).decode("latin-1")
    packed = data[0]
    _, _, text = data[2:].split(b"\0", 2)
    return (_inflated(text) if packed else text).decode("utf-8")


def _inflated(data: bytes) -> bytes:
    decoder = zlib.decompressobj()
    result = decoder.decompress(data, _LONGEST)
    if not decoder.eof:
        raise ValueError("too long, or truncated")
    return result


def listed(keys: list[str] | Mapping[str, str]) -> str:
    """Name text entries, and say ``is`` or ``are``."""
    names = [ascii(key)[1:-1] for key in dict.fromkeys(keys)]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    noun, verb = ("text entries", "are") if len(names) > 1 else ("text entry", "is")
    return f"{noun} {', '.join(names[:10])}{more} {verb}"


def encoded(entries: Mapping[str, str]) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of the chunks that hold text entries; warn of those that cannot be."""
    for key, text in entries.items():
        name = key.encode("latin-1", "replace")
        text = text.replace("\0", "")
        if not 1 <= len(name) <= _LONGEST_KEY or b"\0" in name or name.decode("latin-1") != key:
            warn(f"{listed([key])} not kept")
            continue
        try:
            yield b"tEXt", name + b"\0" + text.encode("latin-1")
        except UnicodeEncodeError:
            yield b"iTXt", name + b"\0" * 5 + text.encode("utf-8", "replace")
