"""Which file goes where: settled, and checked, before any work starts."""

from __future__ import annotations

import enum
import glob
import os
import sys
import warnings
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from dasr_ops.models.pictures import ANIMATION_FORMATS, FORMATS, is_animation
from dasr_ops.models.pictures.pil import open_image
from dasr_ops.models.video import CONTAINERS, VIDEO_SUFFIXES, target_suffix

from . import UsageError

WRITTEN_SUFFIXES = tuple(FORMATS)
"""Suffixes of pictures that results can be written to."""

READ_SUFFIXES = frozenset(
    (
        *WRITTEN_SUFFIXES,
        *(".gif", ".jpe", ".jfif", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".pam"),
        *(".tga", ".pcx", ".ico", ".psd", ".dib", ".dds", ".qoi", ".sgi", ".apng", ".mpo"),
        *(".jxl", ".heic", ".heif"),
    )
)
"""Suffixes of pictures that are taken from folders; files named one by one may have any."""

FOLDER_VIDEO_SUFFIXES = VIDEO_SUFFIXES - {".ts"}
"""Suffixes of videos that are taken from folders, where .ts is mostly TypeScript."""


class Kind(enum.Enum):
    """What a file is."""

    PICTURE = "picture"
    ANIMATION = "animation"
    VIDEO = "video"


class Job(NamedTuple):
    """One file to magnify."""

    source: Path
    target: Path
    kind: Kind = Kind.PICTURE


def plan(
    inputs: Sequence[Path],
    output: Path,
    *,
    suffix: str = "",
    format: str | None = None,
    stills: bool = False,
    results: list[Path] | None = None,
) -> tuple[list[Job], list[tuple[Path, str]]]:
    """Choose a target for each file.

    Args:
        inputs: files, folders and patterns. The tree below a folder is mirrored below ``output``.
        output: a folder, or for a single input file the name of the result.
        suffix: put behind the stem of each name.
        format: ``png``, ``jpg`` ..., of pictures; None keeps the suffix of the source where it can
            be written, and takes PNG elsewhere, MKV for videos.
        stills: whether there are pictures only: no videos, and of animations the first frame.
        results: takes the files that are targets of others, such as photo_x4.jpg beside photo.jpg
            for a ``suffix`` of _x4: they are then results of a former run, which is to go on, and
            no inputs. None: they are refused.

    Returns:
        The jobs, and the inputs without any picture or video, each with the reason.

    Raises:
        UsageError: ``output`` does not fit the inputs, two files have one target, or a target is
            one of the inputs.
    """
    if any(separator in suffix for separator in ("/", os.sep)):
        raise UsageError(f"--suffix: expected part of a file name, got {suffix!r}")
    suffixes = READ_SUFFIXES if stills else READ_SUFFIXES | FOLDER_VIDEO_SUFFIXES
    named = _is_file_name(inputs, output)
    if not named:
        if exists(output) and not _is_dir(output):
            raise UsageError(f"-o {output}: expected a folder, but it is a file")
        if _is_written(output) and not exists(output):
            raise UsageError(
                f"-o {output}: a file name fits a single input file only; name a folder"
            )
    elif format is not None and not _same_format(output.suffix, f".{format}"):
        raise UsageError(f"--format {format} contradicts the name {output}")
    elif suffix:
        raise UsageError(f"--suffix {suffix} has no use where the name {output} is given")
    files, failures = find_files(inputs, suffixes, output)
    if not named:
        jobs = _jobs(files, output, suffix, format, stills)
    elif len(files) > 1:
        raise UsageError(f"-o {output}: a file name fits a single input file only; name a folder")
    else:
        jobs = [_named_job(source, output, stills) for source, _ in files]
    return _check(jobs if results is None else _without_results(jobs, results)), failures


def _without_results(jobs: Sequence[Job], left_out: list[Path]) -> list[Job]:
    """Leave out the files that are targets of others.

    Not those that would be their own targets: whether photo.webp beside photo.jpg is its result
    or another picture, nobody can tell.
    """
    sources = {job: _identity(job.source) for job in jobs}
    targets = {job: _identity(job.target) for job in jobs if exists(job.target)}
    results = {target for job, target in targets.items() if target != sources[job]}
    kept = []
    for job in jobs:
        if sources[job] in results and targets.get(job) != sources[job]:
            left_out.append(job.source)
        else:
            kept.append(job)
    return kept


def find_files(
    inputs: Sequence[Path], suffixes: Set[str], left_out: Path | None = None
) -> tuple[list[tuple[Path, Path]], list[tuple[Path, str]]]:
    """Find the files that the inputs of a command name.

    Args:
        inputs: files, folders, and patterns as of shells ("shots/**/*.jpg").
        suffixes: in lower case, of the files that are taken from folders and patterns. Hidden files
            and folders are left out.
        left_out: a folder that is not looked into, where former results lie.

    Returns:
        The files, each with its path relative to what was named (of a pattern, its fixed part), and
        the inputs without any, each with the reason.
    """
    files: list[tuple[Path, Path]] = []
    failures: list[tuple[Path, str]] = []
    what = "pictures or videos" if suffixes >= FOLDER_VIDEO_SUFFIXES else "pictures"
    for input in inputs:
        try:
            found, reason = _files_of(input, suffixes, left_out, failures, what)
        except FileNotFoundError:
            found, reason = [], "no such file or folder"
        except OSError as error:
            found, reason = [], error.strerror or str(error)
        if not found:
            failures.append((input, reason))
        files += found
    return files, failures


def _files_of(
    input: Path,
    suffixes: Set[str],
    left_out: Path | None,
    failures: list[tuple[Path, str]],
    what: str,
) -> tuple[list[tuple[Path, Path]], str]:
    """Return the files of one input, and what is wrong if there are none."""
    if input.is_dir():
        return _walk(input, left_out, suffixes, failures), f"no {what} in this folder"
    if exists(input):
        if not input.is_file():
            return [], "neither a file nor a folder"
        return [(input, Path(input.name))], ""
    if glob.has_magic(str(input)):
        return _matching(input, left_out, suffixes), f"no {what} match"
    input.stat()  # raises what keeps it from being found
    return [], "neither a file nor a folder"


def exists(path: Path) -> bool:
    """Return whether a path leads to something; what cannot be looked at counts as nothing."""
    try:
        return path.exists()
    except OSError:
        return False


def resolved(path: Path) -> Path:
    """Return the path without links; as it is where links lead in circles."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # RuntimeError: before Python 3.13
        return path.absolute()


def _is_dir(path: Path) -> bool:
    """Return whether a path leads to a folder; what cannot be looked at does not."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _matching(pattern: Path, left_out: Path | None, suffixes: Set[str]) -> list[tuple[Path, Path]]:
    fixed = Path()
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed /= part
    former = None if left_out is None else resolved(left_out)
    if former == resolved(fixed):
        former = None
    taken = [
        path
        for path in map(Path, glob.iglob(str(pattern), recursive=True))
        if path.suffix.lower() in suffixes
        and path.is_file()
        and (former is None or former not in resolved(path).parents)
    ]
    return [(path, path.relative_to(fixed)) for path in sorted(taken)]


def _is_written(path: Path) -> bool:
    return path.suffix.lower() in (*WRITTEN_SUFFIXES, *ANIMATION_FORMATS, *CONTAINERS)


def _is_file_name(inputs: Sequence[Path], output: Path) -> bool:
    return (
        len(inputs) == 1 and not _is_dir(inputs[0]) and not _is_dir(output) and _is_written(output)
    )


def _named_job(source: Path, target: Path, stills: bool) -> Job:
    kind, suffix = _kind(source, stills), target.suffix.lower()
    if (kind is Kind.VIDEO) != (suffix in CONTAINERS):
        what = "a video" if kind is Kind.VIDEO else "a picture"
        raise UsageError(f"-o {target}: {source} is {what}, which such a file does not hold")
    if kind is Kind.ANIMATION and suffix not in ANIMATION_FORMATS:
        kind = Kind.PICTURE  # its first frame
    if kind is Kind.PICTURE and suffix not in WRITTEN_SUFFIXES:
        raise UsageError(f"-o {target}: {source} has one frame, and {suffix} is for animations")
    return Job(source, target, kind)


def _kind(path: Path, stills: bool) -> Kind:
    suffix = path.suffix.lower()
    if stills:
        return Kind.PICTURE
    if suffix in VIDEO_SUFFIXES:
        return Kind.VIDEO
    if suffix in ANIMATION_FORMATS and _is_animated(path):
        return Kind.ANIMATION
    return Kind.PICTURE


def _is_animated(path: Path) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about size
            with open_image(path) as image:
                return is_animation(image)
    except Exception:  # said with its reason when it is read
        return False


def _jobs(
    files: Iterable[tuple[Path, Path]],
    output: Path,
    suffix: str,
    format: str | None,
    stills: bool,
) -> list[Job]:
    jobs: dict[Job, None] = {}
    for source, relative in files:
        kind, extension = _choose(source, format, stills)
        name = f"{relative.stem}{suffix}{extension}"
        jobs[Job(source, output / relative.parent / name, kind)] = None
    return list(jobs)


def _choose(source: Path, format: str | None, stills: bool) -> tuple[Kind, str]:
    """Return what ``source`` is taken for, and the suffix of its result."""
    kind, extension = _kind(source, stills), source.suffix
    if kind is Kind.VIDEO:
        return kind, target_suffix(source)
    if format is not None:
        extension = f".{format}"
        if kind is Kind.ANIMATION and extension not in ANIMATION_FORMATS:
            kind = Kind.PICTURE
    if kind is Kind.PICTURE and extension.lower() not in WRITTEN_SUFFIXES:
        extension = ".png"
    return kind, extension


def _walk(
    folder: Path, left_out: Path | None, suffixes: Set[str], failures: list[tuple[Path, str]]
) -> list[tuple[Path, Path]]:
    """Return files below ``folder`` and their relative names, results of former runs left out.

    Links to files are followed, links to folders are not. What cannot be looked into goes to
    ``failures``.
    """
    former = None if left_out is None else resolved(left_out)
    if former == resolved(folder):
        former = None

    def report(error: OSError) -> None:
        failures.append((Path(error.filename), error.strerror or str(error)))

    files = []
    for place, folders, names in os.walk(folder, onerror=report):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and resolved(Path(place) / name) != former
        )
        for name in sorted(names):
            path = Path(place) / name
            if name.startswith(".") or path.suffix.lower() not in suffixes:
                continue
            if path.is_file():
                files.append((path, path.relative_to(folder)))
            elif not exists(path):
                failures.append((path, "a link to nothing"))
    return files


def _check(jobs: Iterable[Job]) -> list[Job]:
    """Return the jobs, each once; refuse those that destroy a result or an input."""
    sources = {_identity(job.source) for job in jobs}
    taken: dict[str, Job] = {}
    for job in jobs:
        first = taken.setdefault(_key(job.target), job)
        if _identity(first.source) != _identity(job.source):
            raise UsageError(
                f"{first.source} and {job.source} would both be written to {job.target}; "
                "name one of them in a run of its own, with another folder for the result"
            )
        if exists(job.target) and _identity(job.target) in sources:
            raise UsageError(
                f"{job.source} would be written to {job.target}, which is an input; "
                "choose another folder or --suffix"
            )
    return list(taken.values())


def _identity(path: Path) -> tuple[int, int] | str:
    try:
        status = path.stat()
    except OSError:  # gone since it was found
        return _key(path)
    return status.st_dev, status.st_ino


def _key(path: Path) -> str:
    name = os.path.normcase(resolved(path))
    return name.casefold() if sys.platform in ("darwin", "win32") else name


def _same_format(first: str, second: str) -> bool:
    aliases = {".jpeg": ".jpg", ".tiff": ".tif"}
    first, second = first.lower(), second.lower()
    return aliases.get(first, first) == aliases.get(second, second)
