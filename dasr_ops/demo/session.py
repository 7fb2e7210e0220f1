"""What one browser tab has open."""

from __future__ import annotations

import secrets
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from .engine import Settings, crop
from .regions import (
    PREVIEW,
    SMALL,
    Box,
    busiest_point,
    detail_around,
    enlarged,
    framed,
    shown_size,
)
from .tasks import Task

if TYPE_CHECKING:
    from dasr_ops.models.pictures import Picture

MOST_SESSIONS = 8
"""Tabs that are remembered; the one that was idle for longest is forgotten first."""

VIEWS = ("Whole picture", "Detail")

_KEPT_FILES = 4
_KEPT_NAMES = 1000  # of tabs that were forgotten
_NOWHERE = Box(0, 0, 1, 1)


class Work(NamedTuple):
    """A task, and the picture that was open when it was made."""

    task: Task
    picture: Picture
    predictions: dict[str, Tensor]
    """v [1, 33] of this picture by the name of the weights."""


@dataclass
class Session:
    """The picture of one tab, and what is known about it.

    Attributes:
        folder: for the files that the browser shows.
        results: for the files that are downloaded.
        name: of the picture, without folder and suffix.
        picture: the input; None before the first one.
        image: the input in 8 bits, to be shown.
        detail: the part of the input that is shown as the detail.
        predictions: v [1, 33] by the name of the weights.
        wanted: what was asked for last; None after an error.
        view: which of `VIEWS` is looked at.
        result: the last whole result, what it was made with, and how many seconds that took.
        detail_result: the last detail alone, where it is, and what it was made with.
        download: the file that was made of the result.
        forgotten: whether the tab's picture was given up in favour of other tabs.
        token: names the tab in addresses, and cannot be guessed.
    """

    folder: Path
    results: Path
    name: str = ""
    picture: Picture | None = None
    image: Image.Image | None = None
    detail: Box = _NOWHERE
    predictions: dict[str, Tensor] = field(default_factory=dict)
    wanted: Settings | None = None
    view: str = VIEWS[0]
    result: tuple[Picture, Settings, float] | None = None
    detail_result: tuple[Picture, Box, Settings] | None = None
    download: Path | None = None
    forgotten: bool = False

    def __post_init__(self) -> None:
        self.token = secrets.token_urlsafe(16)
        self._lock = threading.RLock()
        self._tasks: dict[str, Task] = {}
        self._counter = 0
        self._shown: list[Path] = []
        self._before: tuple[Any, Path] | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results.mkdir(parents=True, exist_ok=True)

    @property
    def large(self) -> bool:
        """Whether a detail is there much sooner than the whole picture."""
        assert self.picture is not None
        return self.picture.size[0] * self.picture.size[1] > SMALL

    @property
    def current(self) -> bool:
        """Whether the whole result is what was asked for last."""
        return self.result is not None and self.result[1] == self.wanted

    def ask(self, settings: Settings) -> Work | None:
        """Note what is wanted from now on, call off what runs, and return work to begin with.

        None if there is no picture.
        """
        with self._lock:
            if self.picture is None:
                return None
            self.wanted = settings
            self.cancel("whole")
            return self._work("quick")

    def next(self, work: Work) -> Work:
        """Return another piece of the same work, to follow the one that is done.

        Raises:
            Cancelled: it was called off.
        """
        with self._lock:
            work.task.check()
            return self._work("quick")

    def go_on(self, settings: Settings) -> Work | None:
        """Return work on the whole picture; None if it is there, or no longer wanted."""
        with self._lock:
            if self.picture is None or self.wanted != settings or self.current:
                return None
            return self._work("whole")

    def give_up(self, work: Work) -> bool:
        """Want nothing more after an error; False if what is wanted has changed already."""
        with self._lock:
            if work.task not in self._tasks.values():
                return False
            self.wanted = None
            return True

    def _work(self, kind: str) -> Work:
        """Return new work, which takes the place of the last of its kind."""
        assert self.picture is not None
        self.cancel(kind)
        task: Task = Task()
        self._tasks[kind] = task
        return Work(task, self.picture, self.predictions)

    def cancel(self, kind: str) -> None:
        """Call off the task of this kind, if there is one."""
        with self._lock:
            task = self._tasks.pop(kind, None)
        if task is not None:
            task.cancel()

    def open(self, picture: Picture, name: str) -> None:
        """Take another picture."""
        image = shown(picture)
        with self._lock:
            self.clear()
            self.forgotten = False
            self.picture, self.image, self.name = picture, image, name
            self.detail = detail_around(busiest_point(image), picture.size)
            self.view = VIEWS[self.large]

    def clear(self) -> None:
        """Forget the picture."""
        with self._lock:
            for kind in list(self._tasks):
                self.cancel(kind)
            self.picture = self.image = self.wanted = self.result = self.detail_result = None
            self.predictions = {}
            self.name = ""
            self._before = None
            self.forget_download()
            for path in self._shown:
                path.unlink(missing_ok=True)
            self._shown = []

    def forget_download(self) -> None:
        """Remove the file made for downloading."""
        with self._lock:
            if self.download is not None:
                self.drop_download(self.download)
                self.download = None

    def drop_download(self, path: Path) -> None:
        """Remove a file that `new_download` has named."""
        shutil.rmtree(path.parent, ignore_errors=True)

    def downloadable(self, result: Picture, name: str) -> Path | None:
        """Return the file of this name that was made of ``result`` before, if there is one."""
        with self._lock:
            if self.result is None or self.result[0] is not result or self.download is None:
                return None
            return self.download if self.download.name == name else None

    def new_download(self, name: str) -> Path:
        """Return a file to write to, in a folder of its own.

        Raises:
            OSError: the tab was closed, or the folder cannot be made.
        """
        folder = self.results / secrets.token_hex(8)
        folder.mkdir()
        return folder / name

    def keep_download(self, path: Path, result: Picture) -> bool:
        """Offer a file made of ``result``, or remove it if that is no longer the result."""
        with self._lock:
            if self.result is None or self.result[0] is not result:
                self.drop_download(path)
                return False
            self.forget_download()
            self.download = path
            return True

    def keep(self, task: Task, result: Picture, settings: Settings, seconds: float) -> None:
        """Remember the result of the whole picture, unless ``task`` was called off."""
        with self._lock:
            task.check()
            self.result = result, settings, seconds
            self.forget_download()

    def keep_detail(self, task: Task, result: Picture, box: Box, settings: Settings) -> None:
        """Remember the result of a detail, unless ``task`` was called off."""
        with self._lock:
            task.check()
            self.detail_result = result, box, settings

    def pair(self) -> tuple[Path, Path] | None:
        """Write input and result as files, of the view that is looked at.

        Returns:
            Their names; None if the view has no result yet for what is wanted.
        """
        with self._lock:
            if self.image is None or self.wanted is None:
                return None
            scale = self.wanted.scale
            if self.view == VIEWS[0]:
                if self.result is None:
                    return None
                after, key = shown(self.result[0]), ("whole", self.result[1].scale)
                size = shown_size(after.size)
                if size != after.size:
                    after = after.resize(size, Image.Resampling.BOX)
                return self._pair(after, None, key)
            if self.current:
                part = crop(self.result[0], self.detail.scaled(scale))
            elif self.detail_result is not None and self.detail_result[1:] == (
                self.detail,
                self.wanted,
            ):
                part = self.detail_result[0]
            else:
                return None
            return self._pair(shown(part), self.detail, (self.detail, scale))

    def preview(self) -> Path:
        """Write the input as a file that every browser can show, upright and not too large.

        The detail is framed in it.
        """
        with self._lock:
            assert self.image is not None
            image = self.image.copy()
            image.thumbnail(PREVIEW)
            if self.view == VIEWS[1] and self.detail.size != self.image.size:
                image = framed(image, self.detail, self.image.size)
            return self._write(image)

    def move_detail(self, x: float, y: float) -> None:
        """Put the detail around a point of the preview."""
        with self._lock:
            assert self.image is not None
            preview = self.image.size
            factor = min(1.0, PREVIEW[0] / preview[0], PREVIEW[1] / preview[1])
            self.detail = detail_around((round(x / factor), round(y / factor)), self.image.size)

    def close(self) -> None:
        """Forget everything, files included."""
        self.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.results, ignore_errors=True)

    def _pair(self, after: Image.Image, box: Box | None, key: Any) -> tuple[Path, Path]:
        assert self.image is not None
        if self._before is None or self._before[0] != key or not self._before[1].exists():
            self._before = key, self._write(enlarged(self.image, after.size, box))
        return self._before[1], self._write(after)

    def _write(self, image: Image.Image) -> Path:
        opaque = image.mode in ("L", "RGB")
        self._counter += 1
        # Above a million pixels PNG takes longer than the network.
        large = opaque and image.width * image.height > 1_000_000
        path = self.folder / f"shown-{self._counter}{'.jpg' if large else '.png'}"
        options: dict[str, Any] = (
            {"quality": 95, "subsampling": 0} if large else {"compress_level": 1}
        )
        if image.info.get("icc_profile"):
            options["icc_profile"] = image.info["icc_profile"]
        image.save(path, **options)
        self._shown.append(path)
        kept = self._before[1] if self._before is not None else None
        for old in self._shown[:-_KEPT_FILES]:
            if old != kept:
                old.unlink(missing_ok=True)
                self._shown.remove(old)
        return path


class Sessions:
    """The tabs that are open, by the name that Gradio gives them.

    Args:
        folder: for their files: ``shown`` in it for those that pages show, ``results`` for those
            that are downloaded. Below them each tab has a folder whose name cannot be guessed.
    """

    def __init__(self, folder: Path) -> None:
        self.shown = folder / "shown"
        self._results = folder / "results"
        self._sessions: dict[str, Session] = {}
        self._forgotten: dict[str, None] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> Session:
        """Return the session of a tab, a new one if it is not known."""
        old = []
        with self._lock:
            session = self._sessions.pop(name, None)
            if session is None:
                session = Session(
                    self.shown / secrets.token_urlsafe(16),
                    self._results / secrets.token_urlsafe(16),
                    forgotten=name in self._forgotten,
                )
                self._forgotten.pop(name, None)
            self._sessions[name] = session  # the last is the one used last
            while len(self._sessions) > MOST_SESSIONS:
                oldest = next(iter(self._sessions))
                old.append(self._sessions.pop(oldest))
                if old[-1].picture is not None:
                    self._forgotten[oldest] = None
                    old[-1].forgotten = True
            while len(self._forgotten) > _KEPT_NAMES:
                self._forgotten.pop(next(iter(self._forgotten)))
        for session_ in old:
            session_.close()
        return session

    def download(self, token: str) -> Path | None:
        """Return the file that was made for downloading in the tab with this token."""
        with self._lock:
            for session in self._sessions.values():
                if secrets.compare_digest(session.token.encode(), token.encode()):
                    return session.download
        return None

    def close(self, name: str) -> None:
        """Forget a tab."""
        with self._lock:
            session = self._sessions.pop(name, None)
            self._forgotten.pop(name, None)
        if session is not None:
            session.close()

    def close_all(self) -> None:
        """Forget all tabs."""
        for name in list(self._sessions):
            self.close(name)


def shown(picture: Picture) -> Image.Image:
    """Return a picture in 8 bits, mode L, LA, RGB or RGBA, with its colour profile."""
    image = picture.to_pil()
    if image.mode == "I;16":
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
        if picture.icc_profile:
            image.info["icc_profile"] = picture.icc_profile
    return image
