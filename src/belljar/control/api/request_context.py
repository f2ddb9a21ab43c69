"""Request ids, the access log, HEAD, and a response for every failure.

Plain ASGI around all other middleware. The id is in the response's header `X-Request-Id`, in problem documents and in
every log event of the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from http import HTTPStatus

import h11
import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from belljar.control.api.problems import internal_error, problem_of
from belljar.control.api.request_metrics import count_request, request_labels
from belljar.control.api.streams import StreamAborted
from belljar.control.projects.key_format import IN_TEXT as KEY_IN_TEXT
from belljar.model.errors import BelljarError, InvalidRequest
from belljar.model.ids import new_id
from belljar.system import tracing

log = structlog.get_logger()

#: A valid `X-Request-Id`; anything else is replaced, not refused.
_VALID_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
#: Paths that supervisors poll, logged at level debug.
_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
#: Of a longer path, the rest is not searched for keys, and not shown.
_MAX_PATH_BYTES = 4096
#: The message with which uvicorn cancels requests that are still running after the shutdown timeout.
_SHUTDOWN = "timeout graceful shutdown exceeded"


class _HeadSent(Exception):
    """The response to HEAD is complete."""


class RequestContext:
    """Middleware for request ids, the access log, HEAD for every GET, and the report of failures."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        scope.setdefault("method", "GET")  # of a WebSocket's handshake
        sent_id = Headers(scope=scope).get("x-request-id", "")
        request_id = sent_id if _VALID_ID.match(sent_id) else new_id("req")
        response = _Response(send, request_id, is_head=scope["method"] == "HEAD")
        scope.setdefault("state", {})["request_id"] = request_id
        # Routes handle GET only; the server's copy of the scope keeps HEAD.
        inner = {**scope, "method": "GET"} if response.is_head else scope
        with structlog.contextvars.bound_contextvars(request_id=request_id), _traced(scope, inner, response):
            try:
                await self._respond(scope, inner, receive, response)
            finally:
                count_request(scope["method"], inner.get("route"), response.status, response.began_seconds)
                _log_access(scope, response)

    async def _respond(self, scope: Scope, inner: Scope, receive: Receive, response: _Response) -> None:
        try:
            _check_framing(Headers(scope=scope))
            await self._app(inner, receive, response.send)
        except _HeadSent:
            return
        except StreamAborted as error:
            # The headers are sent: close the connection without an end, so that the response is visibly incomplete.
            log.info("stream_aborted", reason=str(error))
        except (ClientDisconnect, h11.LocalProtocolError):
            # The client disconnected during its body, or sent invalid HTTP after its headers.
            log.info("client_disconnected")
        except asyncio.CancelledError as error:
            if _SHUTDOWN not in str(error):
                raise
            log.warning("request_cancelled_at_shutdown", path=shown_path(scope))
        except BelljarError as error:
            await self._send_error(problem_of(error, is_operator=False), scope, receive, response)
        except Exception:
            log.exception("unhandled_exception", method=scope["method"][:20], path=shown_path(scope))
            await self._send_error(internal_error(), scope, receive, response)

    async def _send_error(self, problem: ASGIApp, scope: Scope, receive: Receive, response: _Response) -> None:
        if response.status is None:
            with contextlib.suppress(_HeadSent, h11.LocalProtocolError):
                await problem(scope, receive, response.send)


def _traced(scope: Scope, inner: Scope, response: _Response) -> AbstractContextManager[None]:
    if not tracing.is_on() or scope["path"] in _PROBES:
        return contextlib.nullcontext()
    return _span(scope, inner, response)


@contextlib.contextmanager
def _span(scope: Scope, inner: Scope, response: _Response) -> Iterator[None]:
    """Trace the request, and have its log events carry the trace's id."""
    parent = tracing.parse_traceparent(Headers(scope=scope).get("traceparent"))
    with tracing.span("request", parent=parent, kind="server") as span:
        try:
            with structlog.contextvars.bound_contextvars(trace_id=span.trace_id):
                yield
        finally:
            method, route = request_labels(scope["method"], inner.get("route"))
            span.name(f"{method} {route}")
            span.note(
                http_route=route,
                http_request_method=method,
                http_response_status__code=response.status,
                belljar_request=scope["state"]["request_id"],
            )
            if response.status is None or response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                span.fail("no response" if response.status is None else str(response.status))


class _Response:
    """Forwards a response with its id, and counts what was sent."""

    def __init__(self, send: Send, request_id: str, *, is_head: bool) -> None:
        self._send = send
        self._request_id = request_id
        self.is_head = is_head
        self.status: int | None = None
        self.sent_bytes = 0
        self._started = time.monotonic()
        #: Time until the response began; None: it did not.
        self.began_seconds: float | None = None

    @property
    def seconds(self) -> float:
        """The time since the request."""
        return time.monotonic() - self._started

    async def send(self, message: Message) -> None:
        if self.began_seconds is None:
            self.began_seconds = self.seconds
        if message["type"] == "websocket.accept":
            self.status = HTTPStatus.SWITCHING_PROTOCOLS
        if message["type"].removeprefix("websocket.") == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["X-Request-Id"] = self._request_id
            await self._send(message)
            if self.is_head:  # now, since the body of a followed log may take long
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
                raise _HeadSent
        else:
            await self._send(message)
            self.sent_bytes += len(message.get("body", b""))


def _check_framing(headers: Headers) -> None:
    """Refuse both a length and chunks: a proxy may have used the other one (RFC 9112, 6.1)."""
    if "transfer-encoding" in headers and "content-length" in headers:
        raise InvalidRequest("send Content-Length or Transfer-Encoding, not both", close=True)


def _log_access(scope: Scope, response: _Response) -> None:
    identity = scope["state"].get("identity")
    write = log.debug if scope["path"] in _PROBES else log.info
    write(
        "request_served",
        method=scope["method"][:20],
        path=shown_path(scope),
        status=response.status,
        milliseconds=round(response.seconds * 1000, 1),
        sent_bytes=response.sent_bytes,
        key=identity.id if identity is not None else None,
        project=identity.project if identity is not None else None,
    )


def shown_path(scope: Scope) -> str:
    """Return the path as it was sent, in percent-encoded ASCII, so that it cannot forge log lines; without keys."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode("ascii", "backslashreplace")
    path = raw[:_MAX_PATH_BYTES].decode("ascii", "backslashreplace")
    return (KEY_IN_TEXT.sub("bj_HIDDEN", path) if "bj_" in path else path)[:200]
