"""The page of ``dasr demo`` among several tabs and other sites: nobody gets what is not theirs."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
import warnings

import numpy as np
import pytest
from PIL import Image

from dasr_ops.demo import guards, notes, server, text, uploads
from dasr_ops.demo.engine import Settings
from dasr_ops.demo.session import MOST_SESSIONS, VIEWS, Sessions
from dasr_ops.demo.tasks import Cancelled, Task
from dasr_ops.demo.uploads import Uploads
from dasr_ops.models import pictures

from .demo_tools import Tab, noise, put, tiny_engine


@pytest.fixture(scope="module")
def engine():
    with tiny_engine("two") as engine:
        yield engine


@pytest.fixture
def tab(engine, tmp_path):
    pytest.importorskip("gradio", reason="the page is made by Gradio")
    tab = Tab(engine, tmp_path / "files")
    yield tab
    tab.sessions.close_all()


@pytest.fixture
def picture(tmp_path):
    def save(name: str = "a.png", seed: int = 0, size: tuple[int, int] = (30, 20)):
        Image.fromarray(noise(*size, seed)).save(tmp_path / name)
        return tmp_path / name

    return save


# --- what is read


def test_a_tab_cannot_open_what_another_has(engine, tab, picture, tmp_path):
    tab.upload(picture())
    tab.run()
    list(tab.write())
    other = Tab(engine, tmp_path / "files", name="other", sessions=tab.sessions)
    held = [p for p in tab.session.folder.parents[1].rglob("*") if p.is_file()]
    assert tab.session.download in held and len(held) >= 3
    for path in held:
        other.open({"path": str(path), "orig_name": "x.png"})
        assert text.failure(text.NOT_UPLOADED) == other.shown["status"]
        assert other.session.picture is None
        assert path.is_file()
    own, others = tab.session, other.session
    assert own.folder.name not in ("tab", "tab-1") and len(own.folder.name) >= 22
    names = {own.folder.name, own.results.name, own.token}
    assert len(names | {others.folder.name, others.results.name, others.token}) == 6


def test_only_uploads_are_read(tab, picture, tmp_path):
    folder = tab.uploads.folder
    secret = picture()
    inside = put(folder, "b.png", secret.read_bytes())
    hash_ = inside.parent.name
    loose = folder / "loose.png"
    loose.write_bytes(secret.read_bytes())
    named = folder / "session" / "c.png"
    deep = inside.parent / "deep" / "d.png"
    for path in (named, deep):
        path.parent.mkdir()
        path.write_bytes(secret.read_bytes())
    outside = put(tmp_path, "e.png", secret.read_bytes())
    paths = [
        secret,
        loose,
        named,
        deep,
        outside,
        inside.parent,
        folder,
        folder / ".." / ".." / "a.png",
    ]
    paths += [inside.parent / "missing.png", "", "\0", "x" * 5000, f"{folder}/{hash_}/../../a.png"]
    if hasattr(os, "symlink"):
        (inside.parent / "link.png").symlink_to(secret)
        paths.append(inside.parent / "link.png")
    wrong = [{"path": str(path), "orig_name": "x.png"} for path in paths]
    for upload in (*wrong, {}, {"path": None}, {"path": 3}, {"url": "x"}, [], "x", 3):
        tab.open(upload)
        assert text.failure(text.NOT_UPLOADED) == tab.shown["status"]
        assert tab.session.picture is None
    assert all(path.is_file() for path in (secret, loose, named, deep, outside, inside))
    tab.open({"path": str(inside), "orig_name": None})
    assert tab.session.name == "b"


# --- what is downloaded


def _writing(tab, monkeypatch, meanwhile):
    """Press Download; ``meanwhile`` is called while the file is being written."""
    write, paths = pictures.write_picture, []

    def slow(result, path, **options):
        write(result, path, **options)
        paths.append(path)
        meanwhile()

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "write_picture", slow)
        for update in tab.write():
            tab.take(update)
    return paths


def test_download_is_never_of_an_old_result(tab, picture, monkeypatch):
    tab.upload(picture())
    tab.run()
    (old,) = _writing(tab, monkeypatch, lambda: tab.run(deblur=1.0))
    assert not old.parent.exists() and tab.session.download is None
    assert tab.shown["link"] == ""
    assert "The result has changed; press Download again." in tab.shown["notes"]
    (new,) = _writing(tab, monkeypatch, lambda: None)
    assert new == tab.session.download and new.parent != old.parent
    with Image.open(new) as image:
        assert np.array_equal(np.asarray(image), tab.session.result[0].color)
    assert _writing(tab, monkeypatch, lambda: None) == []  # it is there


@pytest.mark.parametrize("end", ["clear", "leave"])
def test_a_download_that_comes_too_late_is_removed(tab, picture, monkeypatch, end):
    tab.upload(picture())
    tab.run()
    session = tab.session
    (path,) = _writing(tab, monkeypatch, lambda: getattr(tab.handlers, end)(tab.request))
    assert not path.parent.exists() and session.download is None
    assert "The result has changed" in tab.shown["notes"]


def test_a_download_that_fails_leaves_nothing(tab, picture, monkeypatch):
    tab.upload(picture())
    tab.run()

    def full():
        raise OSError(28, "No space left on device")

    (path,) = _writing(tab, monkeypatch, full)
    assert not path.parent.exists() and tab.session.download is None
    assert "No space left on device" in tab.shown["notes"]


# --- what is stored


def test_nothing_of_the_old_picture_is_stored_for_the_new(engine, tab, picture, monkeypatch):
    """The other picture comes at each step of the work on the first one."""
    first = picture("a.png", size=(300, 250))
    second = pictures.read_picture(picture("b.png", seed=1, size=(310, 240)))
    for step in range(1, 100):
        tab.upload(first)
        work = tab.quick()
        taken = 0
        for _ in range(step):
            if next(work, None) is None:
                break
            taken += 1
        tab.session.open(second, "b")
        list(work)
        session = tab.session
        assert session.predictions == {}
        assert session.result is None and session.detail_result is None
        if taken < step:
            break
    assert step > 2


@pytest.mark.parametrize("size", [(300, 250), (30, 20)])
@pytest.mark.parametrize("moment", [1, 2])
def test_a_picture_that_comes_in_between(tab, picture, monkeypatch, size, moment):
    """It comes when a result was fetched and is not stored yet."""
    second = pictures.read_picture(picture("b.png", seed=1, size=(31, 24)))
    tab.upload(picture("a.png", size=size))
    result, count = Task.result, []

    def late(task):
        found = result(task)
        count.append(1)
        if len(count) == moment:
            tab.session.open(second, "b")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Task, "result", late)
        for update in tab.quick():
            tab.take(update)
    session = tab.session
    assert len(count) == moment and session.picture is second
    assert session.predictions == {}
    assert session.result is None and session.detail_result is None
    tab.run()
    assert "62 × 48 pixels" in tab.shown["status"]


def test_work_that_was_called_off_goes_no_further(tab, picture):
    first, second = (pictures.read_picture(picture("a.png", seed)) for seed in (0, 1))
    session = tab.session
    session.open(first, "a")
    work = session.ask(Settings("two", 2))
    session.open(second, "b")
    assert work.picture is first and work.predictions is not session.predictions
    for late in (
        lambda: session.next(work),
        lambda: session.keep(work.task, first, Settings("two", 2), 1.0),
        lambda: session.keep_detail(work.task, first, session.detail, Settings("two", 2)),
    ):
        with pytest.raises(Cancelled):
            late()
    assert not session.give_up(work)


# --- forgotten tabs


def test_forgotten_tabs_say_so(engine, tab, picture, tmp_path):
    said = text.failure(text.LEFT_ALONE)

    def forget():
        tab.upload(picture())
        tab.run()
        for number in range(MOST_SESSIONS):
            tab.sessions.get(str(number))
        tab.shown["status"] = ""

    def point():
        event = type("Event", (), {"index": [3, 3]})
        tab.take(tab.handlers.point(event, tab.request))

    for act in (
        lambda: tab.run(deblur=0.5),
        lambda: tab.take(tab.handlers.look(VIEWS[1], tab.request)),
        lambda: [tab.take(update) for update in tab.write()],
        point,
    ):
        forget()
        act()
        assert tab.shown["status"] == said
        assert tab.shown["source"] is None and tab.shown["compare"] is None
    tab.upload(picture())
    tab.run()
    assert "pixels in" in tab.shown["status"]
    new = Tab(engine, tmp_path / "files", name="new", sessions=tab.sessions)
    new.run()
    assert new.shown.get("status", "") != said


def test_a_tab_that_is_forgotten_at_work_says_so(tab, picture):
    tab.upload(picture(size=(300, 250)))
    work = tab.quick()
    next(work)
    for number in range(MOST_SESSIONS):
        tab.sessions.get(str(number))
    for update in work:
        tab.take(update)
    assert tab.shown["status"] == text.failure(text.LEFT_ALONE)


# --- what waits


def test_uploads_that_nobody_reads_are_removed(tmp_path):
    waiting = Uploads(tmp_path / "u")
    old, new = (put(waiting.folder, name, name.encode()) for name in ("old.png", "new.png"))
    part = waiting.folder / "tmpabc"
    part.write_bytes(b"half")
    empty = waiting.folder / ("0" * 64)
    empty.mkdir()
    hour_ago = time.time() - 3600
    for path in (old, old.parent, part, empty):
        os.utime(path, (hour_ago, hour_ago))
    waiting.sweep()
    assert list(waiting.folder.iterdir()) == [new.parent] and new.is_file()
    waiting.remove(new)
    waiting.remove(new)
    assert list(waiting.folder.iterdir()) == []
    put(waiting.folder, "a.png", b"a")
    with waiting.swept(every=0.01):
        os.utime(waiting.folder / os.listdir(waiting.folder)[0], (hour_ago, hour_ago))
        time.sleep(0.05)
        assert len(list(waiting.folder.iterdir())) == 1  # its file is new
        waiting.sweep(age=-1)
    assert list(waiting.folder.iterdir()) == []


def test_uploads_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_BYTES", 100)
    monkeypatch.setattr(uploads, "MOST_FILES", 3)
    waiting = Uploads(tmp_path)
    put(tmp_path, "a", b"x" * 40)
    with waiting.arriving(50) as first, waiting.arriving(11) as second:
        assert first and not second
        with waiting.arriving(10) as third:
            assert third
    with waiting.arriving(60) as room:
        assert room
    for name in "bc":
        put(tmp_path, name, name.encode())
    with waiting.arriving(1) as room:
        assert not room


# --- what is said by the way


def test_notes_are_those_of_the_own_thread(tab, picture):
    """Warnings elsewhere do not get in, and two threads do not hand each other's on."""

    def collect(name, found, barrier):
        for _ in range(50):
            barrier.wait()
            with notes.said() as said:
                pictures.write_picture(
                    pictures.Picture(noise(4, 4), np.full((4, 4), 9, np.uint8)),
                    picture(f"{name}.png").with_suffix(".jpg"),
                )
            found.append(tuple(said))

    barrier, found = threading.Barrier(2, timeout=60), ([], [])
    before = warnings.filters[:], warnings.showwarning
    threads = [
        threading.Thread(target=collect, args=(f"t{number}", found[number], barrier))
        for number in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [("JPEG does not hold transparency: placed on white",)] * 50
    assert found == (expected, expected)
    assert (warnings.filters[:], warnings.showwarning) == before


# --- HTTP


@pytest.fixture
def serve(engine, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="the page is made by Gradio")
    uvicorn = pytest.importorskip("uvicorn")
    data_classes = pytest.importorskip("gradio.data_classes")
    monkeypatch.setattr(data_classes._StaticFiles, "all_paths", [])
    for name in ("TEMP_DIR", "EXAMPLES_CACHE", "ANALYTICS_ENABLED", "RUN_HISTORY"):
        monkeypatch.setenv(f"GRADIO_{name}", "")
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "1")
    stops = []

    def start(sessions, waiting):
        hosts = server.own_names("127.0.0.1")
        app = server.application(engine, sessions, waiting, hosts)
        listener = server.listen("127.0.0.1", 0)
        running = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()

        def stop():
            running.should_exit = True
            thread.join()
            listener.close()

        stops.append(stop)
        return listener.getsockname()[1]

    yield start
    for stop in stops:
        stop()


def _multipart(name: str, content: bytes) -> tuple[bytes, dict[str, str]]:
    head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + b"\r\n--b--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=b"}


def test_what_the_server_gives_and_takes(serve, tmp_path, picture, monkeypatch):
    sessions, waiting = Sessions(tmp_path / "sessions"), Uploads(tmp_path / "uploads")
    port = serve(sessions, waiting)
    address = f"http://127.0.0.1:{port}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(path, method="GET", body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        # The server may refuse, and close, before it has read the body.
        with contextlib.suppress(BrokenPipeError):
            connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content

    # Nothing is from elsewhere.
    with opener.open(f"{address}/", timeout=60) as answer:
        html = answer.read().decode().replace(address, "")
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*[\"']https?://[^>]*>", html)
    with opener.open(f"{address}/theme.css", timeout=60) as answer:
        assert not re.findall(r"url\(['\"]?https?:|@import", answer.read().decode())

    # Downloads.
    session = sessions.get("x")
    session.download = session.new_download("r.png")
    session.download.write_bytes(b"content")
    with opener.open(f"{address}/download/{session.token}/r.png", timeout=60) as answer:
        assert answer.read() == b"content"
        assert "attachment" in answer.headers["content-disposition"]
    for wrong in (f"{session.token}/s.png", "guess/r.png"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            opener.open(f"{address}/download/{wrong}", timeout=60)

    # What is shown is served to who knows its name; no results, no folders, nothing else.
    shown = session.folder / "shown-1.png"
    shown.write_bytes(b"shown")
    other = tmp_path / "other.png"
    other.write_bytes(b"other")
    file = "/gradio_api/file="
    assert ask(f"{file}{shown}") == (200, b"shown")
    for path in (session.download, session.folder, session.folder.parent, other):
        assert ask(f"{file}{path}")[0] == 403

    # Other names of this computer.
    for name in ("127.0.0.1", "localhost", "[::1]", "LocalHost"):
        for end in ("", f":{port}"):
            assert ask("/", headers={"Host": name + end})[0] == 200
    for name in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "", "[::1"):
        assert ask("/", headers={"Host": name})[0] == 403
        assert ask(f"{file}{shown}", headers={"Host": name})[0] == 403

    # Uploads.
    body, headers = _multipart("a.png", picture().read_bytes())
    status, content = ask("/gradio_api/upload", "POST", body, headers)
    assert status == 200
    (path,) = json.loads(content)
    assert waiting.find({"path": path, "orig_name": "a.png"})[0].read_bytes() in body
    assert ask("/gradio_api/upload", "POST", iter([body]), headers)[0] == 411
    monkeypatch.setattr(guards, "LARGEST_FILE", 0)
    monkeypatch.setattr(guards, "_LARGEST_BODY", len(body) - 1)
    assert ask("/gradio_api/upload", "POST", body, headers)[0] == 413
    assert ask("/gradio_api/queue/join", "POST", body, headers)[0] == 413
    monkeypatch.setattr(guards, "_LARGEST_BODY", len(body))
    monkeypatch.setattr(uploads, "MOST_BYTES", len(body))
    status, content = ask("/gradio_api/upload", "POST", body, headers)
    assert (status, b"Too many uploads" in content) == (503, True)
    assert [p for p in waiting.folder.rglob("*") if p.is_file()] == [
        waiting.find({"path": path})[0]
    ]


def test_names_of_this_computer():
    assert server.own_names("127.0.0.2") == {"127.0.0.1", "localhost", "[::1]", "127.0.0.2"}
    assert "[::1]" in server.own_names("::1") and "box" in server.own_names("Box")
