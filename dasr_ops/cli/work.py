"""The work of ``dasr upscale``: reading ahead, magnifying, writing behind, on all devices."""

from __future__ import annotations

import queue
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dasr_ops.models import pictures
from dasr_ops.models._messages import one_line
from dasr_ops.models.animation import upscale_animation
from dasr_ops.models.memory import free_bytes
from dasr_ops.models.tiling import is_out_of_memory
from dasr_ops.models.upscale import NonFiniteError, PrecisionWarning
from dasr_ops.models.video.errors import VideoError, VideoWarning

from .plan import Job, Kind, exists

if TYPE_CHECKING:
    from torch import Tensor

    from dasr_ops.models.pictures import Picture
    from dasr_ops.models.upscale import Edit, Upscaler
    from dasr_ops.models.video import VideoOptions

WRITE_BEHIND_BYTES = 256 << 20
"""A larger result is written before the next picture is begun, so that two never meet in memory."""


_SHOWN = (pictures.PictureWarning, PrecisionWarning, VideoWarning)


class Stopped(Exception):
    """The user wants to stop."""


@dataclass(frozen=True)
class Settings:
    """What all jobs share.

    Attributes:
        degradation: v [1, 33] instead of the predicted one, or a function v -> v, or None.
        video: how videos are encoded; None where there is none.
        quality: 1 to 100, of JPEG, WebP and AVIF; None for the defaults.
        overwrite: whether results that exist are replaced.
        skip_existing: whether a result that another program makes meanwhile is no failure.
        quiet: whether nothing but errors is printed.
    """

    degradation: Tensor | Edit | None = None
    video: VideoOptions | None = None
    quality: int | None = None
    overwrite: bool = False
    skip_existing: bool = False
    quiet: bool = False


class Report:
    """Progress line, messages and the count of what is done; called from several threads."""

    def __init__(self, total: int, quiet: bool) -> None:
        from tqdm import tqdm

        self.failed = self.done = 0
        self.pixels = 0
        self._quiet = quiet
        self._began = time.perf_counter()
        self._lock = threading.RLock()
        self._here = threading.local()
        self._seen: set[tuple[Path, str]] = set()
        self._parts: dict[Path, float] = {}  # by target
        self._bar = tqdm(
            total=total,
            disable=True if quiet else None,  # None: where standard error is not a terminal
            leave=False,
            bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        )

    @contextmanager
    def warnings_as_messages(self) -> Iterator[None]:
        """Print warnings with the name of the file that the warning thread works on.

        Filters belong to the process: they are set once, and no other thread may touch them.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # those of decoders, about odd files
            for category in _SHOWN:
                warnings.simplefilter("always", category)

            def show(message: Any, category: Any, *_: Any, **__: Any) -> None:
                self._warning(getattr(self._here, "source", None), str(message))

            warnings.showwarning = show
            yield

    def _warning(self, source: Path | None, text: str) -> None:
        if not self._quiet:
            self._say(source, f"warning: {'' if source is None else f'{source}: '}{text}")

    @contextmanager
    def about(self, job: Job) -> Iterator[None]:
        """Let warnings of this thread be about ``job``."""
        self._here.source = job.source
        try:
            with pictures.said_to(lambda text: self._warning(job.source, text)):
                yield
        finally:
            self._here.source = None

    def begin(self, job: Job, number: int) -> None:
        """Show what is worked on."""
        with self._lock:
            self._bar.set_description_str(f"{number}/{self._bar.total} {job.source.name} ")

    @property
    def shown(self) -> float:
        """How many jobs are done, parts included."""
        return sum(self._parts.values())

    def part(self, job: Job, share: float) -> None:
        """Show how much of a job is done, 0..1."""
        with self._lock:
            self._bar.update(share - self._parts.get(job.target, 0.0))
            self._parts[job.target] = share

    def success(self, job: Job, pixels: int) -> None:
        """Count a job that is done, and the pixels of its result."""
        with self._lock:
            self.done += 1
            self.pixels += pixels
            self.part(job, 1.0)
            self._bar.set_postfix_str(f"{self.rate():.2f} MP/s")

    def failure(self, job: Job, reason: str) -> None:
        """Count and print a job that failed."""
        with self._lock:
            self.failed += 1
            self.part(job, 1.0)
            self._bar.write(f"error: {job.source}: {reason}", file=sys.stderr)

    def skipped(self, job: Job) -> None:
        """Count a job whose result was made by others meanwhile."""
        with self._lock:
            self.part(job, 1.0)
        self._warning(job.source, f"skipped, since {job.target} exists by now")

    def rate(self) -> float:
        """Return megapixels of results per second."""
        return self.pixels / 1e6 / max(time.perf_counter() - self._began, 1e-9)

    def close(self) -> None:
        """Remove the progress line and print the sums."""
        self._bar.close()
        if not self._quiet:
            seconds = time.perf_counter() - self._began
            print(
                f"done: {self.done}, failed: {self.failed}; {self.pixels / 1e6:.1f} megapixels in "
                f"{seconds:.1f} s",
                file=sys.stderr,
            )

    def _say(self, source: Path | None, text: str) -> None:
        with self._lock:
            if source is not None:
                if (source, text) in self._seen:
                    return
                self._seen.add((source, text))
            self._bar.write(text, file=sys.stderr)


def work(jobs: Sequence[Job], upscalers: Sequence[Upscaler], settings: Settings) -> int:
    """Do all jobs, each device its share, and return how many failed.

    Ctrl-C and SIGTERM end the work behind the current tile; what is being written is finished.
    """
    report = Report(len(jobs), settings.quiet)
    waiting: queue.SimpleQueue[tuple[int, Job]] = queue.SimpleQueue()
    for number, job in enumerate(jobs, 1):
        waiting.put((number, job))
    stop = threading.Event()
    workers = [_Worker(upscaler, settings, report, waiting, stop) for upscaler in upscalers]
    pool = ThreadPoolExecutor(len(workers), thread_name_prefix="dasr-device")
    try:
        with report.warnings_as_messages():
            futures = [pool.submit(worker.run) for worker in workers]
            try:
                waiting_for = set(futures)
                while waiting_for:
                    # Windows does not interrupt a wait without end.
                    done, waiting_for = wait(waiting_for, 0.2, FIRST_EXCEPTION)
                    for future in done:
                        future.result()
            finally:
                stop.set()
                _wait_through_signals(futures)
                pool.shutdown()
    finally:
        report.close()
    return report.failed


def _wait_through_signals(futures: Sequence[Future[None]]) -> None:
    # A signal within Thread.join would let the interpreter end while threads run.
    while not all(future.done() for future in futures):
        try:
            wait(futures, 0.2)
        except (KeyboardInterrupt, SystemExit):
            continue


class _Worker:
    """Takes jobs for one device until there are none."""

    def __init__(
        self,
        upscaler: Upscaler,
        settings: Settings,
        report: Report,
        waiting: queue.SimpleQueue[tuple[int, Job]],
        stop: threading.Event,
    ) -> None:
        self._upscaler = upscaler
        self._settings = settings
        self._report = report
        self._waiting = waiting
        self._stop = stop

    def run(self) -> None:
        with (
            ThreadPoolExecutor(1, thread_name_prefix="dasr-read") as reader,
            ThreadPoolExecutor(1, thread_name_prefix="dasr-write") as writer,
        ):
            ahead = self._next(reader)
            written: Future[None] | None = None
            while ahead is not None and not self._stop.is_set():
                number, job, picture = ahead
                ahead = self._next(reader)
                self._report.begin(job, number)
                with self._report.about(job):
                    result = self._attempt(job, self._magnify, job, picture)
                if written is not None:
                    written.result()
                    written = None
                if result is not None:
                    written = writer.submit(self._write, job, result)
                    if result.color.nbytes > WRITE_BEHIND_BYTES:
                        written.result()
                del result, picture

    def _next(self, reader: ThreadPoolExecutor) -> tuple[int, Job, Future[Picture] | None] | None:
        try:
            number, job = self._waiting.get_nowait()
        except queue.Empty:
            return None
        if job.kind is not Kind.PICTURE:
            return number, job, None
        return number, job, reader.submit(self._read, job)

    def _read(self, job: Job) -> Picture:
        with self._report.about(job):
            return pictures.read_picture(job.source)

    def _magnify(self, job: Job, picture: Future[Picture] | None) -> Picture | None:
        """Return the result; None where it is written already."""
        if self._settings.skip_existing and exists(job.target):  # rather than work in vain
            raise FileExistsError(f"{job.target} exists")
        if job.kind is Kind.VIDEO:
            self._video(job)
            return None
        if job.kind is Kind.ANIMATION:
            job.target.parent.mkdir(parents=True, exist_ok=True)
            pixels = upscale_animation(
                job.source,
                job.target,
                self._upscaler,
                degradation=self._settings.degradation,
                replace=self._settings.overwrite,
                quality=self._settings.quality,
                progress=self._progress(job),
            )
            self._report.success(job, pixels)
            return None
        assert picture is not None
        source = picture.result()
        size = self._upscaler.output_size(*source.size)
        pictures.check_output_size(size, pictures.FORMATS[job.target.suffix.lower()])
        _check_memory(source, size)
        job.target.parent.mkdir(parents=True, exist_ok=True)
        return self._upscaler(
            source, degradation=self._settings.degradation, progress=self._progress(job)
        )

    def _video(self, job: Job) -> None:
        from dasr_ops.models.video import upscale_video

        assert self._settings.video is not None
        job.target.parent.mkdir(parents=True, exist_ok=True)
        progress = self._progress(job)
        summary = upscale_video(
            job.source,
            job.target,
            self._upscaler,
            degradation=self._settings.degradation,
            options=self._settings.video,
            replace=self._settings.overwrite,
            progress=lambda done, total: progress(done, total or 0),
        )
        width, height = summary.size
        self._report.success(job, (summary.frames - summary.resumed) * width * height)

    def _write(self, job: Job, result: Picture) -> None:
        def write() -> None:
            pictures.write_picture(
                result,
                job.target,
                replace=self._settings.overwrite,
                quality=self._settings.quality,
            )
            self._report.success(job, result.size[0] * result.size[1])

        with self._report.about(job):
            self._attempt(job, write)

    def _progress(self, job: Job) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            if self._stop.is_set():
                raise Stopped
            self._report.part(job, min(done / total, 1.0) if total else 0.0)

        return report

    def _attempt(self, job: Job, action: Callable[..., Any], *arguments: Any) -> Any:
        """Return what ``action`` returns; None if it fails, which is reported."""
        try:
            return action(*arguments)
        except Stopped:
            return None
        except Exception as error:  # one strange file must not end the work on a folder of them
            if self._settings.skip_existing and _is_there(error):
                self._report.skipped(job)
            else:
                self._report.failure(job, _reason(error, job))
        return None


def _check_memory(source: Picture, size: tuple[int, int]) -> None:
    """Raise PictureError if the result alone is more than there is room for."""
    channels = (1 if source.color.ndim == 2 else 3) + (source.alpha is not None)
    needed = size[0] * size[1] * channels * source.color.itemsize
    free = free_bytes(torch.device("cpu"))
    if needed > free:
        raise pictures.PictureError(
            f"the result takes {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free; "
            "a smaller --scale needs less"
        )


def _is_there(error: Exception) -> bool:
    """Whether the error is that a result exists; the system's own of that type have a number."""
    return isinstance(error, FileExistsError) and error.errno is None


def _reason(error: Exception, job: Job) -> str:
    if is_out_of_memory(error):
        return "not enough memory; a smaller --tile needs less"
    if isinstance(error, (pictures.PictureError, NonFiniteError, VideoError)):
        return one_line(error)
    if _is_there(error):
        return f"{job.target} exists; see --overwrite"
    if isinstance(error, OSError):
        return f"{job.target} cannot be written: {error.strerror or error}"
    return f"{type(error).__name__}: {one_line(error)}"
