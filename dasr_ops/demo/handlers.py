"""What happens when something is dropped, moved or pressed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import gradio as gr

from . import notes, text
from .engine import LARGEST_FILE, Engine, Settings
from .session import VIEWS, Session, Sessions, Work
from .tasks import Cancelled, Task
from .uploads import Uploads

if TYPE_CHECKING:
    from .page import Page

Update = dict[Any, Any]

FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WebP": ".webp", "TIFF": ".tif"}
"""Formats of the result, and their suffixes."""

EXAMPLE = Path(__file__).with_name("coffee.png")

_POLL = 0.15  # seconds between two looks at a running task
_EMPTY = text.note("")


class Handlers:
    """The functions behind the page; each yields or returns what changes.

    The request that every function gets tells the tab.

    Args:
        engine: what computes.
        sessions: the open tabs.
        uploads: the uploaded files; others are not read.
        page: the components.
    """

    def __init__(self, engine: Engine, sessions: Sessions, uploads: Uploads, page: Page) -> None:
        self._engine = engine
        self._sessions = sessions
        self._uploads = uploads
        self._page = page

    def open(self, upload: Any, request: gr.Request) -> Update:
        """Read an uploaded picture; ``upload`` is what the browser says about the file."""
        session = self._session(request)
        if upload is None:
            return self.clear(request)
        found = self._uploads.find(upload)
        if found is None:
            return self._emptied(session, text.NOT_UPLOADED)
        try:
            return self._open(session, *found)
        finally:
            self._uploads.remove(found[0])  # the session has read it, or nobody will

    def open_example(self, request: gr.Request) -> Update:
        """Take the picture that comes with the package."""
        return self._open(self._session(request), EXAMPLE, EXAMPLE.name)

    def _open(self, session: Session, path: Path, name: str) -> Update:
        from dasr_ops.models.pictures import read_picture

        try:
            if path.stat().st_size > LARGEST_FILE:
                return self._emptied(session, text.FILE_TOO_LARGE)
            with notes.said() as said:
                picture = read_picture(path)
            session.open(picture, _stem(name))
            page = self._page
            return {
                page.source: str(session.preview()),
                page.view: gr.update(value=session.view, visible=session.large),
                page.compare: None,
                page.notes: text.note("; ".join(said)) if said else _EMPTY,
                page.reading: _EMPTY,
                page.save: gr.update(interactive=False),
                page.status: text.progress("Reading"),
            }
        except Exception as error:
            return self._emptied(session, text.explain(error))

    def clear(self, request: gr.Request) -> Update:
        """Forget the picture."""
        return self._emptied(self._session(request), "")

    def _emptied(self, session: Session, problem: str) -> Update:
        session.clear()
        session.forgotten = False
        page = self._page
        return {
            page.source: None,
            page.view: gr.update(visible=False),
            page.compare: None,
            page.notes: _EMPTY,
            page.reading: _EMPTY,
            page.save: gr.update(interactive=False),
            page.status: text.failure(problem) if problem else _EMPTY,
        }

    def quick(
        self,
        denoise: float,
        deblur: float,
        dejpeg: float,
        scale: int,
        weights: str,
        request: gr.Request,
    ) -> Iterator[Update]:
        """Show at once what can be had at once: a detail, or all of a small picture."""
        session = self._session(request)
        settings = Settings(weights, int(scale), float(denoise), float(deblur), float(dejpeg))
        work, page = session.ask(settings), self._page
        yield self._nothing() if work or not session.forgotten else self._left_alone(session)
        if work is None:
            return
        _, picture, predictions = work
        try:
            self._engine.check_size(picture.size, settings)
            v = predictions.get(settings.weights)
            if v is None:
                yield from self._follow(
                    work.task,
                    lambda task: self._engine.predict(picture, settings.weights, task),
                    "Measuring the degradation",
                )
                v = predictions[settings.weights] = work.task.result()
                work = session.next(work)
            reading = {page.reading: text.reading(self._engine.describe(v, settings.weights))}
            if session.current:
                yield reading | self._shown(session)
            elif not session.large:
                yield reading
                yield from self._whole(session, work, settings)
            elif session.view == VIEWS[1]:
                yield reading | {page.save: gr.update(interactive=False)}
                box = session.detail
                yield from self._follow(
                    work.task,
                    lambda task: self._engine.enlarge_detail(picture, box, v, settings, task),
                    "Enlarging the detail",
                )
                session.keep_detail(work.task, work.task.result(), box, settings)
                yield self._shown(session)
            else:
                yield reading | {page.save: gr.update(interactive=False)}
        except Cancelled:
            if session.forgotten:
                yield self._left_alone(session)
        except Exception as error:
            yield self._failed(session, work, error)

    def finish(
        self,
        denoise: float,
        deblur: float,
        dejpeg: float,
        scale: int,
        weights: str,
        request: gr.Request,
    ) -> Iterator[Update]:
        """Enlarge the whole picture, if `quick` has not done so."""
        session = self._session(request)
        settings = Settings(weights, int(scale), float(denoise), float(deblur), float(dejpeg))
        work = session.go_on(settings)
        yield self._nothing()
        if work is None:
            return
        try:
            yield from self._whole(session, work, settings)
        except Cancelled:
            if session.forgotten:
                yield self._left_alone(session)
        except Exception as error:
            yield self._failed(session, work, error)

    def _failed(self, session: Session, work: Work, error: Exception) -> Update:
        if not session.give_up(work):
            return self._nothing()
        return {self._page.status: text.failure(text.explain(error))}

    def _left_alone(self, session: Session) -> Update:
        return self._emptied(session, text.LEFT_ALONE)

    def _whole(self, session: Session, work: Work, settings: Settings) -> Iterator[Update]:
        task, picture, predictions = work
        v = predictions.get(settings.weights)
        if v is None:
            return
        begin = [time.monotonic()]

        def enlarge(task: Task) -> Any:
            begin[0] = time.monotonic()  # without the time in the queue
            return self._engine.enlarge(picture, v, settings, task)

        yield from self._follow(task, enlarge, "Enlarging")
        result = task.result()
        session.keep(task, result, settings, time.monotonic() - begin[0])
        yield self._shown(session)

    def look(self, view: str, request: gr.Request) -> Update:
        """Change between the whole picture and a detail."""
        session = self._session(request)
        if session.forgotten:
            return self._left_alone(session)
        if session.picture is None:
            return {self._page.compare: None}
        session.view = view
        return self._shown(session) | {self._page.source: str(session.preview())}

    def point(self, event: gr.SelectData, request: gr.Request) -> Update:
        """Take the detail around the point of the picture that was pressed."""
        session = self._session(request)
        page = self._page
        if session.forgotten:
            return self._left_alone(session)
        if session.picture is None or not session.large:
            return self._nothing()
        session.view = VIEWS[1]
        session.move_detail(*event.index)
        return self._shown(session) | {
            page.view: VIEWS[1],
            page.source: str(session.preview()),
        }

    def choose_weights(self, weights: str) -> Update:
        """Offer the magnifications of these weights."""
        scales = self._engine.scales(weights)
        return {
            self._page.scale: gr.update(
                choices=[(f"{scale}×", scale) for scale in scales],
                value=self._engine.native_scale(weights),
                visible=len(scales) > 1,
            )
        }

    def write(self, format: str, request: gr.Request) -> Iterator[Update]:
        """Write the result as a file, and give its address to the browser."""
        from dasr_ops.models.pictures import write_picture

        session, page = self._session(request), self._page
        if session.forgotten:
            yield {page.link: ""} | self._left_alone(session)
            return
        bound = session.result
        if bound is None or bound[1] != session.wanted:
            yield {page.link: "", page.notes: text.note("The result is not ready yet.")}
            return
        result, settings, _ = bound
        name = f"{session.name}_x{settings.scale}{FORMATS[format]}"
        path, said = session.downloadable(result, name), []
        try:
            if path is None:
                yield {page.link: "", page.notes: text.progress(f"Writing {format}")}
                path = session.new_download(name)
                try:
                    with notes.said() as said:
                        write_picture(result, path, replace=True)
                except BaseException:
                    session.drop_download(path)
                    raise
                if not session.keep_download(path, result):
                    changed = "The result has changed; press Download again."
                    yield {page.link: "", page.notes: text.note(changed)}
                    return
            size = path.stat().st_size
            line = "; ".join([f"{name}, {text.amount(size)}", *said])
            address = f"download/{session.token}/{quote(name)}"
            yield {page.link: address, page.notes: text.note(line)}
        except Exception as error:
            yield {page.link: "", page.notes: text.failure(text.explain(error))}

    def leave(self, request: gr.Request) -> None:
        """Forget a tab that was closed."""
        if request.session_hash:
            self._sessions.close(request.session_hash)

    def _shown(self, session: Session) -> Update:
        """Return the pair of pictures of the current view, and the state of the result."""
        page, update = self._page, {}
        pair = session.pair()
        if pair is not None:
            update[page.compare] = tuple(map(str, pair))
        if session.current:
            result, _, seconds = session.result
            update[page.status] = text.finished(result.size, seconds, str(self._engine.device))
            update[page.save] = gr.update(interactive=True)
        return update or self._nothing()

    def _nothing(self) -> Update:
        """Return no change; Gradio empties the page after a function that yields nothing."""
        return {self._page.compare: gr.skip()}

    def _follow(self, task: Task, function: Callable[[Task], Any], label: str) -> Iterator[Update]:
        """Run a task and yield how far it is until it is over."""
        self._engine.worker.start(task, function)
        begin = last = time.monotonic()
        done = 0
        while not task.finished(_POLL):
            now = time.monotonic()
            if not task.started:
                begin = last = now
                said = text.progress("Waiting for its turn")
            elif not task.done or task.total == 1:
                said = text.progress(label)
            else:
                if task.done != done:
                    done, last = task.done, now
                rest = (last - begin) / done * (task.total - done) - (now - last)
                line = f"{label} · tile {done} of {task.total} · {text.left(rest)}"
                said = text.progress(line, done, task.total)
            yield {self._page.status: said}

    def _session(self, request: gr.Request) -> Session:
        return self._sessions.get(request.session_hash or "")


def _stem(name: str) -> str:
    """Return the name of a file without folder and suffix, as every system takes it."""
    stem = re.sub(r"[^\w \-.()+]", "_", Path(name).stem).strip(" .")
    return stem.encode()[:150].decode(errors="ignore") or "picture"
