"""``python -m dasr_ops.train.data.lmdb PICTURES OUT.lmdb``: makes an LMDB database for training.

It holds each picture as PNG in BasicSR's layout: one large file instead of many small ones. The
database appears under its name when it is complete; a run that is stopped leaves nothing, one that
is killed a folder .dasr-ops-*.tmp beside it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import tyro
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from dasr_ops.models.files import TEMPORARY_PREFIX

from .databases import import_lmdb
from .meta_info import META_INFO, format_line
from .pictures import read_patiently, reason
from .sources import Source, open_source
from .workers import end_workers, start_worker

_MAP_SIZE = 2**30  # bytes to begin with; doubled when they are full
_TRANSACTION = 2**26  # bytes written at once
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Report(NamedTuple):
    """What was made."""

    written: int
    """Pictures in the database."""
    skipped: dict[Path, str]
    """Path and reason of those that were left out."""


class _Encoded(NamedTuple):
    data: bytes
    height: int
    width: int
    channels: int


@dataclass
class Config:
    """What to put where.

    Attributes:
        pictures: a folder (searched recursively), or a list with one picture to a line.
        output: the database, a name that ends in .lmdb.
        root: where the paths of a list begin; default: its folder.
        level: of PNG's compression, 0..9; little is gained above 1. PNG files of 8 bits are taken
            as they are.
        workers: processes that decode and encode.
    """

    pictures: tyro.conf.Positional[Path]
    output: tyro.conf.Positional[Path]
    root: Path | None = None
    level: int = 1
    workers: int = field(default_factory=lambda: min(8, os.cpu_count() or 1))

    def __post_init__(self) -> None:
        if self.output.suffix != ".lmdb":
            raise ValueError(f"output: expected a name that ends in .lmdb, got {self.output}")
        if not 0 <= self.level <= 9:
            raise ValueError(f"level: expected 0..9, got {self.level}")
        if self.workers < 0:
            raise ValueError(f"workers: expected 0 or more, got {self.workers}")


def make_database(config: Config, *, progress: bool = False) -> Report:
    """Make the database, all of it or nothing; pictures that cannot be read are left out.

    Raises:
        ValueError: no pictures, or none that can be read; a name too long for a key (511 bytes).
        FileExistsError: there is something at `output`.
        OSError: it cannot be written.
        ImportError: the package lmdb is missing.
    """
    lmdb = import_lmdb()
    source = open_source(config.pictures, config.root, "pictures")
    keys = _keys(source.names)
    _refuse(config.output)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = config.output.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}.tmp"
    try:
        temporary.mkdir()
        skipped = _write(lmdb, temporary, source, keys, config, progress)
        _refuse(config.output)
        temporary.rename(config.output)
    except lmdb.Error as error:
        raise OSError(f"{config.output}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Report(len(source) - len(skipped), skipped)


def _refuse(output: Path) -> None:
    if output.exists() or output.is_symlink():
        raise FileExistsError(f"{output} exists")


def _keys(names: Sequence[str]) -> list[str]:
    """Return a key for each name: without ending and, for BasicSR cuts keys there, without dots."""
    keys: dict[str, None] = {}
    for name in names:
        stem = str(PurePosixPath(name).with_suffix("")).strip("/").replace(".", "_")
        # What readers of the list take for a comment, strip, or end the line at.
        stem = re.sub(r"^[#\s]|[\r\n]", "_", stem)
        key, number = stem, 1
        while key in keys:  # the same name with another ending
            number += 1
            key = f"{stem}_{number}"
        if len(key.encode()) > 511:
            raise ValueError(f"pictures: expected names of at most 511 bytes, got {name}")
        keys[key] = None
    return list(keys)


class _Encoder:
    """Pictures as PNG by their index; the reason where one cannot be read."""

    def __init__(self, source: Source, level: int) -> None:
        self.source, self.level = source, level

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> _Encoded | str:
        try:
            opened = self.source.open(index)
            data = opened.read_bytes() if isinstance(opened, Path) else opened.read()
            pixels = read_patiently(lambda: io.BytesIO(data))
        except OSError as error:
            return reason(error)
        height, width, channels = pixels.shape
        if _is_plain_png(data):
            return _Encoded(data, height, width, 1 if data[25] == 0 else 3)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=self.level)
        return _Encoded(buffer.getvalue(), height, width, channels)


def _is_plain_png(data: bytes) -> bool:
    """Return whether every reader sees the pixels that we see: 8 bits, grey or RGB, upright."""
    plain = data.startswith(_PNG_SIGNATURE) and data[24] == 8 and data[25] in (0, 2)
    return plain and not any(chunk in data for chunk in (b"eXIf", b"tRNS", b"acTL", b"Raw profile"))


def _write(
    lmdb: Any,
    folder: Path,
    source: Source,
    keys: Sequence[str],
    config: Config,
    progress: bool,
) -> dict[Path, str]:
    skipped: dict[Path, str] = {}
    lines: list[str] = []
    waiting: list[tuple[bytes, bytes]] = []
    size = 0
    with (
        lmdb.open(str(folder), map_size=_MAP_SIZE, lock=False, sync=False) as environment,
        contextlib.closing(_encode(source, config)) as encoded,
    ):
        for index, picture in enumerate(
            tqdm(encoded, total=len(source), unit="picture", disable=not progress)
        ):
            if isinstance(picture, str):
                skipped[source.path(index)] = picture
                continue
            lines.append(
                format_line(
                    keys[index], picture.height, picture.width, picture.channels, config.level
                )
            )
            waiting.append((keys[index].encode(), picture.data))
            size += len(picture.data)
            if size >= _TRANSACTION:
                _put(lmdb, environment, waiting)
                waiting, size = [], 0
        if not lines:
            path, why = next(iter(skipped.items()))
            raise ValueError(
                f"pictures: none of {len(source)} can be read; the first, {path}: {why}"
            )
        _put(lmdb, environment, waiting)
        environment.sync(True)
    with (folder / META_INFO).open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    return skipped


def _encode(source: Source, config: Config) -> Iterator[_Encoded | str]:
    loader = DataLoader(
        _Encoder(source, config.level),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=config.workers,
        collate_fn=_same,
        worker_init_fn=start_worker,
    )
    items = iter(loader)
    try:
        yield from items
    finally:
        end_workers(items)


def _same(value: object) -> object:
    return value


def _put(lmdb: Any, environment: Any, pairs: Sequence[tuple[bytes, bytes]]) -> None:
    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, value in pairs:
                    transaction.put(key, value)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a database, say what was left out, and return an exit status."""
    try:
        config = tyro.cli(
            Config,
            prog="python -m dasr_ops.train.data.lmdb",
            description=__doc__,
            args=arguments,
        )
        report = make_database(config, progress=sys.stderr.isatty())
    except (ValueError, OSError, ImportError) as error:
        print(f"lmdb: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for path, why in report.skipped.items():
        print(f"skipped {path}: {why}", file=sys.stderr)
    print(f"{config.output}: {report.written} pictures, {len(report.skipped)} skipped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
