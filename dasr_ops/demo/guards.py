"""What stands between the network and the page: who may ask, and how much may be sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Any

from .engine import LARGEST_FILE
from .uploads import Uploads

_App = Callable[[Any, Any, Any], Awaitable[None]]

_LARGEST_BODY = 2**20  # of everything but uploads

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


class Headers:
    """Adds headers to every answer, which forbid the browser to ask other hosts."""

    def __init__(self, app: _App) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: D102
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


class OwnHost:
    """Answers 403 to requests for other hosts.

    A page of another site whose name was made to resolve to this computer ("DNS rebinding") could
    else read what is open here: to the browser it would be its own site.

    Args:
        app: what answers the others.
        hosts: the names of this computer, in lower case, IPv6 addresses in brackets.
    """

    def __init__(self, app: _App, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: D102
        if scope["type"] == "lifespan" or _host(scope) in self._hosts:
            await self._app(scope, receive, send)
        else:
            await _refuse(scope, receive, send, 403, "This name is not one of this computer.")


class UploadLimit:
    """Refuses bodies that are too large, and uploads while too many wait to be read.

    Args:
        app: what takes the others.
        uploads: where they go.
    """

    def __init__(self, app: _App, uploads: Uploads) -> None:
        self._app = app
        self._uploads = uploads

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: D102
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        length = _header(scope, b"content-length") or "0"
        if _header(scope, b"transfer-encoding") or not length.isdecimal():
            await _refuse(scope, receive, send, 411, "The length must be said.")
            return
        upload = scope["path"].rstrip("/").endswith("/upload")
        # Room for what surrounds the file.
        if int(length) > _LARGEST_BODY + (LARGEST_FILE if upload else 0):
            await _refuse(scope, receive, send, 413, "This is too large.")
            return
        if not upload:
            await self._app(scope, receive, send)
            return
        with self._uploads.arriving(int(length)) as room:
            if room:
                await self._app(scope, receive, send)
            else:
                text = "Too many uploads wait to be read. Try again in some minutes."
                await _refuse(scope, receive, send, 503, text)


def _header(scope: Any, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def _host(scope: Any) -> str:
    """Return the host that was asked for, without the port; "" if none was."""
    host = (_header(scope, b"host") or "").lower()
    if host.startswith("["):
        address, bracket, _ = host.partition("]")
        return address + bracket
    return host.partition(":")[0]


async def _refuse(scope: Any, receive: Any, send: Any, status: int, text: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    from fastapi.responses import PlainTextResponse

    # What is still being sent is not read.
    answer = PlainTextResponse(text, status_code=status, headers={"connection": "close"})
    await answer(scope, receive, send)
