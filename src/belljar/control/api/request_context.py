"""What is the same for every request: its id, its line in the log, HEAD, and an answer whatever goes wrong.

Plain ASGI, outside everything else. The id is in the answer's header `X-Request-Id`, in every problem document and in
every log event of the request, so that a person finds one by the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time

import h11
import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from belljar.control.api.problems import internal_error, problem_of
from belljar.control.api.streams import StreamBroken
from belljar.model.errors import BelljarError, InvalidRequest
from belljar.model.ids import new_id

log = structlog.get_logger()

#: What a caller may send as `X-Request-Id`; anything else is replaced, not refused.
_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
#: Asked every few seconds by supervisors.
_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
#: What uvicorn cancels requests with that go on for too long after the server was told to stop.
_SHUTDOWN = "timeout graceful shutdown exceeded"


class _HeadAnswered(Exception):
    """The head of the answer is sent, and the rest is not wanted."""


class RequestContext:
    """Middleware: request ids, access log, HEAD for every GET, and one place where failures are reported."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _SANE_ID.match(given) else new_id("req")
        answer = _Answer(send, request_id, is_head=scope["method"] == "HEAD")
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.monotonic()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._answer(scope, receive, answer)
            finally:
                _log_access(scope, answer, time.monotonic() - started)

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        # Routes know GET only; the server's copy of the scope keeps HEAD.
        inner = {**scope, "method": "GET"} if answer.is_head else scope
        try:
            _check_framing(Headers(scope=scope))
            await self._app(inner, receive, answer.send)
        except _HeadAnswered:
            return
        except StreamBroken as error:
            # The head is out: the connection is closed without an end, so that nobody takes it for success.
            log.info("stream_broken_off", reason=str(error))
        except (ClientDisconnect, h11.LocalProtocolError):
            # The client left in the middle of its body, or what followed its head was not HTTP.
            log.info("client_left")
        except asyncio.CancelledError as error:
            if _SHUTDOWN not in str(error):
                raise
            log.warning("request_cancelled_at_shutdown", path=_path(scope))
        except BelljarError as error:
            await self._tell(problem_of(error, is_operator=False), scope, receive, answer)
        except Exception:
            log.exception("unhandled_exception", method=scope["method"][:20], path=_path(scope))
            await self._tell(internal_error(), scope, receive, answer)

    async def _tell(self, response: ASGIApp, scope: Scope, receive: Receive, answer: _Answer) -> None:
        if answer.status is None:
            with contextlib.suppress(_HeadAnswered, h11.LocalProtocolError):
                await response(scope, receive, answer.send)


class _Answer:
    """Passes an answer on, with its id, and knows how far it came."""

    def __init__(self, send: Send, request_id: str, *, is_head: bool) -> None:
        self._send = send
        self._request_id = request_id
        self.is_head = is_head
        self.status: int | None = None
        self.sent_bytes = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["X-Request-Id"] = self._request_id
            await self._send(message)
            if self.is_head:  # now: the body of a log that is followed may be long in coming
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
                raise _HeadAnswered
        else:
            await self._send(message)
            self.sent_bytes += len(message.get("body", b""))


def _check_framing(headers: Headers) -> None:
    """Refuse a length beside chunks: whoever passed the request on may have gone by the other one (RFC 9112, 6.1)."""
    if "transfer-encoding" in headers and "content-length" in headers:
        raise InvalidRequest("send Content-Length or Transfer-Encoding, not both", close=True)


def _log_access(scope: Scope, answer: _Answer, seconds: float) -> None:
    key = scope["state"].get("key")
    note = log.debug if scope["path"] in _PROBES else log.info
    note(
        "request_served",
        method=scope["method"][:20],
        path=_path(scope),
        status=answer.status,
        milliseconds=round(seconds * 1000, 1),
        sent_bytes=answer.sent_bytes,
        key=key.id if key is not None else None,
        project=key.project if key is not None else None,
    )


def _path(scope: Scope) -> str:
    """The path as it was sent, in percent-encoded ASCII: nothing of it can write into the log."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode("ascii", "backslashreplace")
    return raw.decode("ascii", "backslashreplace")[:200]
