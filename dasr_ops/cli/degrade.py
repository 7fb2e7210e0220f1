"""``dasr degrade``: fixed test sets of degraded pictures from a folder of good ones."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro

from . import EXIT_FAILURE, UsageError
from ._about import about
from .plan import plan, resolved

if TYPE_CHECKING:
    import numpy as np

LevelName = Literal["clean", "clean_area", "weak", "standard", "severe"]

_SETTINGS = "degrade.json"
"""File in the output folder that tells what it was made with."""


@dataclass(frozen=True)
class Degrade:
    """Make test sets: degrade the pictures of a folder as in training, by fixed seeds.

    OUTPUT/gt/NAME.png is the ground truth, cut to a multiple of the scale, OUTPUT/LEVEL/lr/NAME.png
    its degraded version, with NAME.json beside it: the parameters and the degradation vector. The
    folder tree is mirrored. A further draw has a folder of its own, OUTPUT/LEVEL-2 and so on.
    What a picture gets depends on the seed, its relative path, the level and the draw alone.

    A picture that cannot be read or written is reported in one line, and the others are processed.
    Files that are there already are kept.

    Exit code: 0 if every picture was processed, 1 if any failed, 2 if the command line is wrong and
    nothing was done, 130 after Ctrl-C.
    """

    folder: tyro.conf.Positional[Path]
    """Folder of pictures, searched recursively."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder for the results."""

    levels: Annotated[
        tuple[LevelName, ...],
        about("Strengths of degradation. clean: nothing but antialiased bicubic shrinking."),
    ] = ("clean", "weak", "standard", "severe")
    scale: Annotated[int, about("Ratio of the sizes of ground truth and result.")] = 4
    seed: Annotated[int, about("Another seed makes another test set.")] = 0
    scheme: Annotated[
        Literal["unified", "official"],
        about("Meaning of the degradation vector; official: that of the authors' weights."),
    ] = "unified"
    draws: Annotated[
        int, about("Results of each picture at each level; the clean levels have one.")
    ] = 1
    sharpen: Annotated[
        bool,
        about("Degrade pictures sharpened by unsharp masking, as training does; gt/ is not."),
    ] = False
    overwrite: Annotated[
        bool,
        about(
            "Make results again that exist. Where the ground truth of a picture changes, its "
            "results of all other levels are removed."
        ),
    ] = False
    quiet: Annotated[bool, about("Print errors only.")] = False


class Task(NamedTuple):
    """One degraded version of a picture."""

    level: str
    draw: int
    lr: Path

    @property
    def json(self) -> Path:
        """Written last: where it is, the task is done."""
        return self.lr.with_suffix(".json")

    def done(self, options: Degrade) -> bool:
        """Whether both files exist and were made with these settings."""
        if not self.lr.is_file():
            return False
        try:
            record = json.loads(self.json.read_text(encoding="utf-8"))
            return _settings(options).items() <= record.items()
        except (OSError, ValueError, AttributeError):
            return False


class Job(NamedTuple):
    """One picture: where it is, its path below the folder, and what is made of it."""

    source: Path
    name: str
    gt: Path
    tasks: tuple[Task, ...]

    def done(self, options: Degrade) -> bool:
        """Whether nothing is missing."""
        return self.gt.is_file() and all(task.done(options) for task in self.tasks)


class PictureError(Exception):
    """A picture that cannot be degraded; the message is one line."""


def main(argv: Sequence[str]) -> int:
    """Run ``dasr degrade`` with the arguments ``argv`` and return its exit code."""
    options = tyro.cli(Degrade, args=list(argv), prog="dasr degrade")
    jobs = _jobs(options)
    _check_settings(options)
    todo = [job for job in jobs if options.overwrite or not job.done(options)]
    if len(todo) < len(jobs) and not options.quiet:
        skipped = len(jobs) - len(todo)
        print(f"skipped, since they exist (see --overwrite): {skipped}", file=sys.stderr)
    if not todo:
        return 0
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        _write_json(_settings(options), options.output / _SETTINGS)
    except OSError as error:
        print(f"error: {_reason(error)}", file=sys.stderr)
        return EXIT_FAILURE
    failed = _run(todo, options)
    if not options.quiet:
        print(f"done: {len(todo) - failed}, failed: {failed}", file=sys.stderr)
    return EXIT_FAILURE if failed else 0


def picture_seed(seed: int, name: str, level: str, draw: int) -> int:
    """Return the seed, 0 .. 2^63 - 1, of one degraded picture.

    Args:
        seed: of the whole test set.
        name: path below the folder, with "/" between its parts.
        level: name of the level.
        draw: 0 for the first.
    """
    text = json.dumps([seed, name, level, draw])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _jobs(options: Degrade) -> list[Job]:
    for name, least in (("scale", 1), ("seed", 0), ("draws", 1)):
        if getattr(options, name) < least:
            raise UsageError(f"--{name}: expected {least} or more, got {getattr(options, name)}")
    if not options.levels:
        raise UsageError("--levels: expected at least one")
    folder, output = options.folder, options.output
    if not folder.is_dir():
        raise UsageError(f"{folder}: expected a folder of pictures")
    here, there = resolved(folder), resolved(output)
    if here == there or there in here.parents:
        raise UsageError(f"--output {output}: the pictures lie in it; choose another folder")
    placed, failures = plan([folder], output, format="png", stills=True)
    if failures:
        raise UsageError(f"{failures[0][0]}: {failures[0][1]}")
    return [
        Job(
            job.source,
            job.source.relative_to(folder).as_posix(),
            output / "gt" / job.target.relative_to(output),
            tuple(_tasks(options, job.target.relative_to(output))),
        )
        for job in placed
    ]


def _tasks(options: Degrade, name: Path) -> Iterator[Task]:
    for level in dict.fromkeys(options.levels):
        for draw in range(1 if level.startswith("clean") else options.draws):
            folder = f"{level}-{draw + 1}" if draw else level
            yield Task(level, draw, options.output / folder / "lr" / name)


def _settings(options: Degrade) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("scale", "seed", "scheme", "sharpen")}


def _check_settings(options: Degrade) -> None:
    path = options.output / _SETTINGS
    if options.overwrite or not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {_reason(error)}; see --overwrite") from None
    if found != _settings(options):
        raise UsageError(
            f"--output {options.output}: made with other settings ({json.dumps(found)}); choose "
            "another folder or --overwrite"
        )


def _run(jobs: Sequence[Job], options: Degrade) -> int:
    """Work through ``jobs`` and return how many failed."""
    from tqdm import tqdm

    failed = 0
    bar = tqdm(jobs, unit="picture", disable=True if options.quiet else None, leave=False)
    with bar:
        for job in bar:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                reason = _process(job, options)
            if not options.quiet:
                for text in dict.fromkeys(str(entry.message) for entry in caught):
                    bar.write(f"warning: {job.source}: {text}", file=sys.stderr)
            if reason is not None:
                failed += 1
                bar.write(f"error: {job.source}: {reason}", file=sys.stderr)
    return failed


def _process(job: Job, options: Degrade) -> str | None:
    """Do what is missing of one job; return why it failed, or None."""
    try:
        _degrade(job, options)
    except MemoryError:
        return "not enough memory"
    except (PictureError, OSError) as error:
        return _reason(error)
    except Exception as error:  # one strange picture must not end the work on a folder of them
        return f"{type(error).__name__}: {_reason(error)}"
    return None


def _degrade(job: Job, options: Degrade) -> None:
    import torch

    from dasr_ops.train.data import read_rgb
    from dasr_ops.train.degradations import usm_sharpen

    pixels = read_rgb(job.source)
    height, width = (side // options.scale * options.scale for side in pixels.shape[:2])
    if not height or not width:
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise PictureError(f"{size} is too small for a scale of {options.scale}")
    pixels = pixels[:height, :width]
    _write_ground_truth(pixels, job, options)
    tasks = [task for task in job.tasks if options.overwrite or not task.done(options)]
    image = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255
    if options.sharpen:
        image = (usm_sharpen(image) * 255).round() / 255
    for task in tasks:
        _degrade_once(image, job, task, options)


def _write_ground_truth(pixels: np.ndarray, job: Job, options: Degrade) -> None:
    """Write it before its degraded versions; those that exist keep what belongs to them."""
    import numpy as np

    from dasr_ops.train.data import read_rgb

    try:
        former = read_rgb(job.gt) if job.gt.exists() else None
    except OSError:  # broken
        former = np.empty(0)
    if former is not None and np.array_equal(former, pixels):
        return
    if former is not None:
        for task in _results(job, options):
            if not options.overwrite and task.done(options):
                raise PictureError(
                    f"{job.gt} is another picture, and {task.lr} belongs to it; choose another "
                    "folder, or --overwrite, which removes what was made of that"
                )
            if options.overwrite:
                task.json.unlink(missing_ok=True)
                task.lr.unlink()
    _write_picture(pixels, job.gt)


def _results(job: Job, options: Degrade) -> list[Task]:
    """Return the degraded versions of a picture that exist, of whatever level."""
    name = job.gt.relative_to(options.output / "gt")
    found = (Task(place.name, 0, place / "lr" / name) for place in options.output.iterdir())
    return sorted(task for task in found if task.lr.is_file())


def _degrade_once(image: Any, job: Job, task: Task, options: Degrade) -> None:
    from dasr_ops.train.degradations import apply, describe, labels, sample_seeds

    seed = picture_seed(options.seed, job.name, task.level, task.draw)
    params = sample_seeds([seed], task.level)
    low = (apply(params, image, options.scale)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    record = {
        "source": job.name,
        "level": task.level,
        "draw": task.draw,
        **_settings(options),
        "parameters": describe(params),
        "v": labels(params, options.scheme)[0].tolist(),
    }
    task.json.unlink(missing_ok=True)  # until the end, no old label stands beside a new picture
    _write_picture(low, task.lr)
    _write_json(record, task.json)


def _write_picture(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image

    from dasr_ops.models.files import atomic_path

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def _write_json(values: dict[str, Any], path: Path) -> None:
    from dasr_ops.models.files import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
