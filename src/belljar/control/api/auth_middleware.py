"""Authenticates requests (authentication.py), and limits their bodies and how many are in flight.

Plain ASGI around all routes, so that no route can be left out.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from belljar.control.api.authentication import Authentication, end_error
from belljar.control.api.bodies import MAX_JSON_BYTES, MAX_SMALL_BYTES
from belljar.control.api.problems import message_of, problem_of
from belljar.control.api.request_limits import BodyBudget, RequestCount
from belljar.control.api.streams import StreamAborted
from belljar.control.jobs.changes import Changes
from belljar.control.projects.identity import Identity
from belljar.control.web.errors import error_page, wants_page
from belljar.model.errors import BelljarError, RequestTimeout, TooLarge
from belljar.settings import Settings

MB = 1024 * 1024
#: Routes without a key: for load balancers and supervisors, and the sign-in. They return no data of projects.
PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/signin", "/signin/oidc", "/signin/oidc/callback"})
#: The scripts and styles of pages.
PUBLIC_FOLDER = "/static/"
#: The multipart body beside the script: the header of a part, and two short fields.
_FORM_OVERHEAD_BYTES = 64 * 1024
#: Maximum memory of a form that is being received: larger files go to the disk.
_FORM_MEMORY_BYTES = 2 * MB
#: Routes that pass the body on as it arrives, of any size: into a sandbox.
_STREAMED = re.compile(r"/v1/sandboxes/[^/]+/(files|ports|processes/[^/]+/stdin)(/|\Z)")
_WITH_STREAMED_BODY = frozenset({"PUT", "POST"})
#: Memory of such a body: what the server reads ahead, and the piece that is being passed on.
_STREAM_BYTES = 256 * 1024
#: A body may pause for this long, and must have this rate on average after the same time.
_STALL_SECONDS = 30.0
_MIN_BYTES_PER_SECOND = 16 * 1024


class AuthMiddleware:
    """Middleware that authenticates, and limits bodies and requests in flight."""

    def __init__(
        self, app: ASGIApp, authentication: Authentication, settings: Settings, changes: Changes, max_requests: int
    ) -> None:
        self._app = app
        self._changes = changes
        self._authentication = authentication
        self._upload_bytes = settings.max_upload_mb * MB
        self._bodies = BodyBudget(settings.max_body_memory_mb * MB)
        self._requests = RequestCount(max_requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] in PUBLIC_PATHS or scope["path"].startswith(PUBLIC_FOLDER):
            await self._app(scope, LimitedBody(receive, MAX_SMALL_BYTES), send)
            return
        headers, state = Headers(scope=scope), scope.setdefault("state", {})
        try:
            identity = state["identity"] = await self._authentication.identity(scope, headers)
            max_bytes, memory = self._body_limits(scope, headers)
            with self._requests.counted(identity.id):
                async with self._bodies.lease(identity.id, memory) as lease:
                    state["body_lease"] = lease
                    body = LimitedBody(receive, max_bytes)
                    await self._app(scope, body, _while_valid(send, identity, self._changes))
        except BelljarError as error:
            await (await self._refusal(scope, receive, error))(scope, receive, send)

    async def _refusal(self, scope: Scope, receive: Receive, error: BelljarError) -> Response:
        if not wants_page(scope):
            return problem_of(error, is_operator=False)
        request = Request(scope, LimitedBody(receive, MAX_SMALL_BYTES))
        is_same_origin = self._authentication.is_same_origin(scope, request.headers)
        return await error_page(request, error, message_of(error, is_operator=False), is_same_origin=is_same_origin)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Authenticate before the connection is accepted; refuse it with a problem document."""
        headers, state = Headers(scope=scope), scope.setdefault("state", {})
        try:
            self._authentication.check_websocket_origin(headers)
            identity = state["identity"] = await self._authentication.identity(scope, headers)
            with self._requests.counted(identity.id):
                await self._app(scope, receive, send)
        except BelljarError as error:
            await problem_of(error, is_operator=False)(scope, receive, send)

    def _body_limits(self, scope: Scope, headers: Headers) -> tuple[int, int]:
        """Return the maximum size of the body and the memory to reserve for it, in bytes. Raises TooLarge."""
        if _STREAMED.match(scope["path"]) and scope["method"] in _WITH_STREAMED_BODY:
            return sys.maxsize, _STREAM_BYTES
        is_form = headers.get("content-type", "").lower().startswith("multipart/")
        max_bytes = self._upload_bytes + _FORM_OVERHEAD_BYTES if is_form else MAX_JSON_BYTES
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit():
            size = int(length[:20])
            if size > max_bytes:
                raise _too_large(max_bytes)
        else:
            size = max_bytes if "transfer-encoding" in headers else 0
        return max_bytes, min(size, _FORM_MEMORY_BYTES) if is_form else size


class LimitedBody:
    """A body that is being received, within its maximum size and minimum rate. Raises TooLarge, RequestTimeout."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._size = 0
        self._waited_seconds = 0.0
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()  # waits for the client to disconnect, without a deadline
        remaining = _STALL_SECONDS + self._size / _MIN_BYTES_PER_SECOND - self._waited_seconds
        started = time.monotonic()
        try:
            async with asyncio.timeout(min(_STALL_SECONDS, remaining)):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimeout("the body arrived too slowly; send it faster", close=True) from None
        self._waited_seconds += time.monotonic() - started
        self._size += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._size > self._max_bytes:
            raise _too_large(self._max_bytes)
        return message


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(
        f"the body is over {max_bytes} bytes; send large scripts to POST /v1/scripts, whose limit is the setting "
        "max_upload_mb",
        limit=max_bytes,
    )


def _while_valid(send: Send, identity: Identity, changes: Changes) -> Send:
    """Return a `send` that fails once the identity is not valid any more, which ends streams that began before."""

    async def send_if_valid(message: Message) -> None:
        if message["type"] == "http.response.body" and message.get("more_body"):
            error = end_error(identity, changes)
            if error is not None:
                raise StreamAborted(error.message)
        await send(message)

    return send_if_valid
