"""HTTP: the page, the files that are downloaded, and nothing from other hosts."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .engine import LARGEST_FILE, Engine
from .session import Sessions

if TYPE_CHECKING:
    from dasr_ops.models import DASR

FIRST_PORT = 7860
_PORTS_TRIED = 100

_TAKEN = (errno.EADDRINUSE, errno.EACCES)

# Everything comes from this server; data: and blob: are made by the page itself.
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
        b"frame-ancestors 'self'; form-action 'self'; base-uri 'self'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class ServerError(RuntimeError):
    """The page cannot be offered; the message is one line."""


def check_gradio() -> None:
    """Raise ServerError if Gradio is missing."""
    if importlib.util.find_spec("gradio") is None:
        raise ServerError("Gradio is missing: pip install 'dasr-ops[demo]'")


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
        ServerError: there is no Gradio, or the address cannot be used.
        ValueError, RuntimeError: ``device`` or ``tile`` are not usable.
    """
    check_gradio()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(host, port))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dasr-demo-")))
        engine = Engine(models, device=device, tile=tile)
        stack.callback(engine.worker.close)
        sessions = Sessions(folder / "gradio" / "sessions")
        stack.callback(sessions.close_all)
        app = application(engine, sessions, folder / "gradio")
        address = _address(host, listener.getsockname()[1])
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        if host not in ("127.0.0.1", "localhost", "::1"):
            print("Everybody who reaches this computer over the network can use the page.")
        if open_browser:
            threading.Timer(0.5, webbrowser.open, (address,)).start()
        _run(app, listener)


def application(engine: Engine, sessions: Sessions, files: Path) -> Any:
    """Return the FastAPI application.

    Args:
        engine: what computes.
        sessions: the open tabs; their files are in ``files``.
        files: folder for uploaded files and what is shown; nothing is written elsewhere.
    """
    files.mkdir(parents=True, exist_ok=True)
    # Gradio reads these when it is imported or when a page is made.
    os.environ["GRADIO_TEMP_DIR"] = str(files)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

    import gradio as gr
    from fastapi import FastAPI
    from fastapi.responses import FileResponse, PlainTextResponse

    from . import page, style

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/download/{token}/{name}")
    def download(token: str, name: str) -> Any:
        path = sessions.download(token)
        if path is None or path.name != name or not path.is_file():
            return PlainTextResponse("This result is gone; make it again.", status_code=404)
        return FileResponse(path, filename=path.name)

    app.add_middleware(_Headers)
    return gr.mount_gradio_app(
        app,
        page.build(engine, sessions, files),
        path="/",
        footer_links=[],
        show_error=True,
        max_file_size=LARGEST_FILE,
        ssr_mode=False,
        enable_monitoring=False,
        theme=style.theme(),
        css=style.CSS,
    )


class _Headers:
    """Adds headers to every answer, which forbid the browser to ask other hosts."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


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
