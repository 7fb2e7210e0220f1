"""What one browser tab has open."""

from __future__ import annotations

import secrets
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
_NOWHERE = Box(0, 0, 1, 1)


@dataclass
class Session:
    """The picture of one tab, and what is known about it.

    Attributes:
        folder: for the files that the browser asks for.
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
        token: names the tab in addresses, and cannot be guessed.
    """

    folder: Path
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

    def __post_init__(self) -> None:
        self.token = secrets.token_urlsafe(16)
        self._lock = threading.RLock()
        self._tasks: dict[str, Task] = {}
        self._counter = 0
        self._shown: list[Path] = []
        self._before: tuple[Any, Path] | None = None
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def large(self) -> bool:
        """Whether a detail is there much sooner than the whole picture."""
        assert self.picture is not None
        return self.picture.size[0] * self.picture.size[1] > SMALL

    @property
    def current(self) -> bool:
        """Whether the whole result is what was asked for last."""
        return self.result is not None and self.result[1] == self.wanted

    def new_task(self, kind: str) -> Task:
        """Return a new task, which takes the place of the last one of its kind."""
        task: Task = Task()
        with self._lock:
            self.cancel(kind)
            self._tasks[kind] = task
        return task

    def ask(self, settings: Settings) -> Task:
        """Note what is wanted from now on, call off what runs, and return a task to begin with."""
        with self._lock:
            self.wanted = settings
            self.cancel("whole")
            return self.new_task("quick")

    def go_on(self, settings: Settings) -> Task | None:
        """Return a task for the whole picture; None if it is there, or no longer wanted."""
        with self._lock:
            if self.picture is None or self.wanted != settings or self.current:
                return None
            return self.new_task("whole")

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
        if self.download is not None:
            self.download.unlink(missing_ok=True)
            self.download = None

    def keep(self, task: Task, result: Picture, settings: Settings, seconds: float) -> None:
        """Remember the result of the whole picture, unless ``task`` was called off."""
        with self._lock:
            task.check()
            self.result = result, settings, seconds
            self.forget_download()

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
        folder: for their files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        self._counter = 0

    def get(self, name: str) -> Session:
        """Return the session of a tab, a new one if it is not known."""
        forgotten = []
        with self._lock:
            session = self._sessions.pop(name, None)
            if session is None:
                self._counter += 1
                session = Session(self._folder / f"tab-{self._counter}")
            self._sessions[name] = session  # the last is the one used last
            while len(self._sessions) > MOST_SESSIONS:
                forgotten.append(self._sessions.pop(next(iter(self._sessions))))
        for old in forgotten:
            old.close()
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
