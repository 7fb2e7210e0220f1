"""HTTP: the page, the files that are downloaded, and nothing from other hosts."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import ipaddress
import os
import re
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .engine import LARGEST_FILE, Engine
from .session import Sessions
from .uploads import Uploads

if TYPE_CHECKING:
    from dasr_ops.models import DASR

FIRST_PORT = 7860
_PORTS_TRIED = 100

_TAKEN = (errno.EADDRINUSE, errno.EACCES)

_OLDEST_GRADIO = (6, 19)


class ServerError(RuntimeError):
    """The page cannot be offered; the message is one line."""


def check_gradio() -> None:
    """Raise ServerError if Gradio is missing or too old."""
    try:
        found = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        raise ServerError("Gradio is missing: pip install 'dasr-ops[demo]'") from None
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers is None or tuple(map(int, numbers.groups())) < _OLDEST_GRADIO:
        oldest = ".".join(map(str, _OLDEST_GRADIO))
        raise ServerError(
            f"Gradio {oldest} or later is needed, got {found}: "
            "pip install --upgrade 'dasr-ops[demo]'"
        )


def listen(host: str, port: int | None) -> socket.socket:
    """Open a socket that listens.

    Args:
        host: name or address of this computer.
        port: 0 for any that is free; None for the first free one from 7860 on.

    Raises:
        ServerError: the port is taken, or the host is not this computer.
    """
    ports = range(FIRST_PORT, FIRST_PORT + _PORTS_TRIED) if port is None else [port]
    try:
        family, *_, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise ServerError(f"--host {host}: not known") from None
    for number in ports:
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":  # elsewhere two programs could share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address[0], number, *address[2:]))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            reason = (error.strerror or str(error)).lower()
            if port is not None or error.errno not in _TAKEN:
                where = f"--host {host}" if port is None else f"--port {port}"
                raise ServerError(f"{where}: {reason}") from None
    raise ServerError(f"all ports from {FIRST_PORT} to {ports[-1]} are taken; give --port")


def serve(
    models: Mapping[str, DASR],
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    device: str | None = None,
    tile: int | str = 256,
    open_browser: bool = False,
) -> None:
    """Offer the page until Ctrl-C.

    Args:
        models: networks by the names that the page shows.
        host: address to listen on.
        port: as for `listen`.
        device: as for `Upscaler`.
        tile: as for `Upscaler`.
        open_browser: whether to show the page in the system's browser.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; everything is closed and removed.
        ServerError: there is no Gradio, or the address or ``device`` cannot be used.
        ValueError: ``tile`` cannot be used.
        OSError: the folder for the pictures cannot be made.
    """
    check_gradio()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(host, port))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dasr-demo-")))
        engine = _engine(models, device, tile)
        stack.callback(engine.worker.close)
        sessions = Sessions(folder / "sessions")
        stack.callback(sessions.close_all)
        uploads = Uploads(folder / "uploads")
        stack.enter_context(uploads.swept())
        own, number = listener.getsockname()[:2]
        private = ipaddress.ip_address(own).is_loopback
        app = application(engine, sessions, uploads, own_names(host) if private else None)
        address = _address(host, number)
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        if not private:
            print("Everybody who reaches this computer over the network can use the page.")
        if open_browser:
            threading.Timer(0.5, webbrowser.open, (address,)).start()
        _run(app, listener)


def _engine(models: Mapping[str, DASR], device: str | None, tile: int | str) -> Engine:
    try:
        return Engine(models, device=device, tile=tile)
    except (RuntimeError, AssertionError) as error:  # what PyTorch raises for odd devices
        if device is None:
            raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ServerError(f"--device {device}: {line}") from None


def own_names(host: str) -> set[str]:
    """Return what a page that only this computer reaches, by ``host``, may be asked for as."""
    name = f"[{host}]" if ":" in host else host
    return {"127.0.0.1", "localhost", "[::1]", name.lower()}


def application(
    engine: Engine, sessions: Sessions, uploads: Uploads, hosts: Collection[str] | None = None
) -> Any:
    """Return the FastAPI application.

    Args:
        engine: what computes.
        sessions: the open tabs.
        uploads: the uploaded files. Nothing is written but there and in the folders of the tabs.
        hosts: names under which alone the page is there, see `guards.OwnHost`; None for any.
    """
    # Gradio reads these when it is imported or when a page is made. It serves all that is in the
    # folder of uploads, and in that of examples, of which there are none.
    os.environ["GRADIO_TEMP_DIR"] = str(uploads.folder)
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(uploads.folder / "examples")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

    import gradio as gr
    from fastapi import FastAPI
    from fastapi.responses import FileResponse, PlainTextResponse

    from . import guards, page, style

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/download/{token}/{name}")
    def download(token: str, name: str) -> Any:
        path = sessions.download(token)
        if path is None or path.name != name or not path.is_file():
            return PlainTextResponse("This result is gone; make it again.", status_code=404)
        return FileResponse(path, filename=path.name)

    app.add_middleware(guards.UploadLimit, uploads=uploads)
    if hosts is not None:
        app.add_middleware(guards.OwnHost, hosts=hosts)
    app.add_middleware(guards.Headers)
    gr.set_static_paths(sessions.shown)  # served from where they are, instead of as copies
    return gr.mount_gradio_app(
        app,
        page.build(engine, sessions, uploads),
        path="/",
        footer_links=[],
        show_error=True,
        max_file_size=LARGEST_FILE,
        ssr_mode=False,
        enable_monitoring=False,
        theme=style.theme(),
        css=style.CSS,
    )


def _run(app: Any, listener: socket.socket) -> None:
    import uvicorn

    # Open pages hold a connection, which must not hold up the end.
    config = uvicorn.Config(
        app, log_level="error", access_log=False, timeout_graceful_shutdown=1, lifespan="on"
    )
    uvicorn.Server(config).run(sockets=[listener])


def _address(host: str, port: int) -> str:
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"
