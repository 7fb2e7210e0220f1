"""Which picture goes where: settled, and checked, before any work starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from . import UsageError

WRITTEN_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".avif")
"""Suffixes of files that results can be written to."""

READ_SUFFIXES = frozenset(
    (
        *WRITTEN_SUFFIXES,
        *(".gif", ".jpe", ".jfif", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
        *(".tga", ".pcx", ".ico", ".psd", ".dib", ".dds", ".qoi", ".sgi", ".apng", ".mpo"),
    )
)
"""Suffixes of files that are taken from folders; files named one by one may have any."""


class Job(NamedTuple):
    """One picture to magnify."""

    source: Path
    target: Path


def plan(
    inputs: Sequence[Path], output: Path, *, suffix: str = "", format: str | None = None
) -> tuple[list[Job], list[tuple[Path, str]]]:
    """Choose a target for each picture.

    Args:
        inputs: files and folders. The tree below a folder is mirrored below ``output``.
        output: a folder, or for a single input file the name of the result.
        suffix: put behind the stem of each name.
        format: ``png``, ``jpg`` ...; None keeps the suffix of the source where it can be written,
            and takes PNG elsewhere.

    Returns:
        The jobs, and the inputs without any picture, each with the reason.

    Raises:
        UsageError: ``output`` does not fit the inputs, two pictures have one target, or a target is
            one of the inputs.
    """
    if any(separator in suffix for separator in ("/", os.sep)):
        raise UsageError(f"--suffix: expected part of a file name, got {suffix!r}")
    if _is_file_name(inputs, output):
        if format is not None and not _same_format(output.suffix, f".{format}"):
            raise UsageError(f"--format {format} contradicts the name {output}")
        if suffix:
            raise UsageError(f"--suffix {suffix} has no use where the name {output} is given")
        if not inputs[0].exists():
            return [], [(inputs[0], "no such file or folder")]
        jobs, failures = [Job(inputs[0], output)], []
    else:
        if output.exists() and not output.is_dir():
            raise UsageError(f"-o {output}: expected a folder, but it is a file")
        if output.suffix.lower() in WRITTEN_SUFFIXES and not output.exists():
            raise UsageError(
                f"-o {output}: a file name fits a single input file only; name a folder"
            )
        jobs, failures = _jobs(inputs, output, suffix, format)
    _check(jobs)
    return jobs, failures


def _is_file_name(inputs: Sequence[Path], output: Path) -> bool:
    return (
        len(inputs) == 1
        and not inputs[0].is_dir()
        and not output.is_dir()
        and output.suffix.lower() in WRITTEN_SUFFIXES
    )


def _jobs(
    inputs: Sequence[Path], output: Path, suffix: str, format: str | None
) -> tuple[list[Job], list[tuple[Path, str]]]:
    jobs: dict[Job, None] = {}
    failures = []
    for input in inputs:
        if input.is_dir():
            sources = list(_walk(input, output))
            if not sources:
                failures.append((input, "no pictures in this folder"))
        elif input.exists():
            sources = [(input, Path(input.name))]
        else:
            failures.append((input, "no such file or folder"))
            continue
        for source, relative in sources:
            extension = f".{format}" if format is not None else relative.suffix
            if extension.lower() not in WRITTEN_SUFFIXES:
                extension = ".png"
            name = f"{relative.stem}{suffix}{extension}"
            jobs[Job(source, output / relative.parent / name)] = None
    return list(jobs), failures


def _walk(folder: Path, output: Path) -> Iterator[tuple[Path, Path]]:
    """Yield pictures below ``folder`` and their relative names, results of former runs left out."""
    skipped = output.resolve()
    if skipped == folder.resolve():
        skipped = None
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and (Path(place) / name).resolve() != skipped
        )
        for name in sorted(files):
            path = Path(place) / name
            if not name.startswith(".") and path.suffix.lower() in READ_SUFFIXES:
                yield path, path.relative_to(folder)


def _check(jobs: Iterable[Job]) -> None:
    sources = {_identity(job.source): job.source for job in jobs}
    taken: dict[str, Path] = {}
    for job in jobs:
        key = _key(job.target)
        if key in taken and _identity(taken[key]) != _identity(job.source):
            raise UsageError(
                f"{taken[key]} and {job.source} would both be written to {job.target}; "
                "use --suffix, --format or several runs"
            )
        taken[key] = job.source
        if job.target.exists() and _identity(job.target) in sources:
            raise UsageError(
                f"{job.source} would be written to {job.target}, which is an input; "
                "choose another folder or --suffix"
            )


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _key(path: Path) -> str:
    name = os.path.normcase(path.resolve())
    return name.casefold() if sys.platform in ("darwin", "win32") else name


def _same_format(first: str, second: str) -> bool:
    aliases = {".jpeg": ".jpg", ".tiff": ".tif"}
    first, second = first.lower(), second.lower()
    return aliases.get(first, first) == aliases.get(second, second)
