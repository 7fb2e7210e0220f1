"""Deflate for residuals of pictures."""

from __future__ import annotations

import zlib

_SAMPLE = 1 << 14
_WORTH = 0.8  # of the size: what looking for repetitions must reach to be worth its time


def deflate(data: bytes, *, raw: bool = False, last: bool = True) -> bytes:
    """Compress the differences that a filter or predictor leaves.

    In those of photographs hardly anything repeats but runs: without looking for more, files are as
    small as zlib's default level makes them, in about a tenth of the time. A sample tells whether
    a picture is of that kind.

    Args:
        data: the differences.
        raw: without zlib's header and checksum.
        last: whether the stream ends; otherwise it ends at a byte boundary, and more may follow.
    """
    middle = max(0, len(data) - _SAMPLE) // 2
    sample = data[middle : middle + _SAMPLE]
    runs = len(_run(sample, 1, zlib.Z_RLE, True, True))
    repetitions = len(_run(sample, 4, zlib.Z_DEFAULT_STRATEGY, True, True))
    if repetitions < _WORTH * runs:
        return _run(data, 4, zlib.Z_DEFAULT_STRATEGY, raw, last)
    return _run(data, 1, zlib.Z_RLE, raw, last)


def _run(data: bytes, level: int, strategy: int, raw: bool, last: bool) -> bytes:
    bits = -zlib.MAX_WBITS if raw else zlib.MAX_WBITS
    stream = zlib.compressobj(level, zlib.DEFLATED, bits, 9, strategy)
    return stream.compress(data) + stream.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)
