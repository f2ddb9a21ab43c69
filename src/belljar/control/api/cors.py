"""Cross-origin requests (CORS): off, or allowed for the exact origins of a setting.

A request needs a key in a header that no browser adds by itself, so responses never allow credentials (cookies).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from belljar.control.api.problems import problem
from belljar.model.errors import Forbidden, InvalidOption

_MAX_AGE_SECONDS = 600
_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
_REQUEST_HEADERS = "Authorization, Belljar-Project, Content-Type, Last-Event-ID, Range, X-Request-Id"
_RESPONSE_HEADERS = "Content-Disposition, Content-Range, Retry-After, X-Request-Id"
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?\Z|https?://\[[0-9a-f:.]+\](:[0-9]{1,5})?\Z")


class Cors:
    """The origins that may send requests from a browser."""

    def __init__(self, origins: Collection[str]) -> None:
        """Raises InvalidOption for what is no exact origin."""
        self._origins = frozenset(_checked(origin) for origin in origins)

    def allowed_origin(self, headers: Headers) -> str | None:
        """Return the origin of a request if it is allowed."""
        if not self._origins:
            return None
        origin = headers.get("origin")
        return origin if origin in self._origins else None

    def add(self, headers: MutableHeaders, origin: str | None) -> None:
        """Add to a response's headers what a browser needs to hand it to a page of this origin."""
        if not self._origins:
            return
        headers.add_vary_header("Origin")
        if origin is not None:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Expose-Headers"] = _RESPONSE_HEADERS


class Preflight:
    """Middleware that answers the question of a browser (OPTIONS) before authentication: it has no key."""

    def __init__(self, app: ASGIApp, cors: Cors) -> None:
        self._app = app
        self._cors = cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            headers = Headers(scope=scope)
            if "origin" in headers and "access-control-request-method" in headers:
                await self._response(headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _response(self, headers: Headers) -> Response:
        if self._cors.allowed_origin(headers) is None:
            reason = "requests from pages of other origins are refused; the setting cors_origins allows an origin"
            return problem(Forbidden.status, Forbidden.code, reason)
        return Response(
            status_code=204,
            headers={
                "Access-Control-Allow-Methods": _METHODS,
                "Access-Control-Allow-Headers": _REQUEST_HEADERS,
                "Access-Control-Max-Age": str(_MAX_AGE_SECONDS),
            },
        )


def _checked(origin: str) -> str:
    if not _ORIGIN.match(origin):
        raise InvalidOption(
            f"cors_origins: {origin[:80]!r} is no origin; write it as browsers do: https://app.example, in small "
            "letters, without a path, and * is not allowed",
            option="cors_origins",
        )
    parts = urlsplit(origin)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if port == -1 or port == {"http": 80, "https": 443}[parts.scheme]:
        raise InvalidOption(
            f"cors_origins: leave the port out of {origin[:80]!r}, as browsers do", option="cors_origins"
        )
    return origin
