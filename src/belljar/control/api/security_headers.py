"""Headers of every response that tell browsers to be strict: nothing of the API is a page, and nothing is cached.

A route that serves pages sets its own Content-Security-Policy; what a route sets is kept.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from belljar.control.api.cors import Cors
from belljar.local_server import is_loopback

#: `sandbox`, because artifacts are files that a job wrote: an HTML file of one runs no script here.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}
#: A year. Subdomains may be other hosts.
_HSTS = "max-age=31536000"
_RAW = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
_NAMES = frozenset(name for name, _ in _RAW)
#: The same for responses that the server writes without the application.
HEADER_LINES = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items()).encode()


class SecurityHeaders:
    """The outermost middleware: adds the headers, and those of CORS for allowed origins."""

    def __init__(self, app: ASGIApp, cors: Cors) -> None:
        self._app = app
        self._cors = cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = self._cors.allowed_origin(Headers(scope=scope))
        has_hsts = scope.get("scheme") == "https" and not is_loopback(_host_of(scope))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers: list[tuple[bytes, bytes]] = message.setdefault("headers", [])
                given = {name.lower() for name, _ in headers}
                headers += _RAW if not given & _NAMES else [each for each in _RAW if each[0] not in given]
                if has_hsts:
                    headers.append((b"strict-transport-security", _HSTS.encode()))
                self._cors.add(MutableHeaders(raw=headers), origin)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _host_of(scope: Scope) -> str | None:
    host = Headers(scope=scope).get("host", "")
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
