"""Every request to a host name below the domain of sandboxes: to the port that it names, or nowhere. Never to the API.

No key counts here. A port is reached with its token, or by anyone if it is public; else the answer is the same as for a
sandbox that does not exist.
"""

from __future__ import annotations

import asyncio
import sys
import time

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from belljar.control.api.auth_middleware import LimitedBody
from belljar.control.api.ingress import http_proxy, websocket_proxy
from belljar.control.api.ingress.headers import host_of
from belljar.control.api.ingress.host_names import PortHost, SandboxDomain
from belljar.control.api.ingress.origin_headers import OriginHeaders
from belljar.control.api.ingress.visitors import Shown, Visitor, give_cookie, visitor_of
from belljar.control.api.problems import problem
from belljar.control.api.request_context import RequestContext
from belljar.control.api.request_limits import RequestCount
from belljar.control.api.same_origin import SAFE_METHODS
from belljar.control.api.security_headers import HEADERS
from belljar.control.api.services import Services
from belljar.control.api.streams import StreamAborted
from belljar.control.sandboxes.port_token import PortVisit
from belljar.model.errors import BelljarError, NotFound
from belljar.model.sandbox_errors import SandboxUnreachable, StreamBroken

#: How often it is looked whether a visit that goes on is still allowed.
_LOOK_SECONDS = 2.0
_NOTHING = (
    "nothing is here for you: there is no such sandbox, or its port needs a token. Make one with POST "
    "/v1/sandboxes/ID/ports/PORT/tokens, and open the URL of the answer"
)
#: Counts the requests that no visit is known of yet.
_STRANGERS = ""


class HostRouter:
    """The outermost middleware: passes requests for ports on to the ingress, and all others to the API."""

    def __init__(self, app: ASGIApp, domain: SandboxDomain, ingress: ASGIApp) -> None:
        self._app = app
        self._domain = domain
        self._ingress = RequestContext(ingress)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_request = scope["type"] in ("http", "websocket")
        app = self._ingress if is_request and self._domain.has(host_of(scope)) else self._app
        await app(scope, receive, send)


class HostIngress:
    """The ports of sandboxes by host name."""

    def __init__(self, services: Services, domain: SandboxDomain, max_requests: int) -> None:
        """Of `max_requests` at once, each sandbox gets half of what the others leave."""
        self._ports = services.ports
        self._changes = services.changes
        self._domain = domain
        self._is_public_tls = (services.settings.public_url or "").startswith("https://")
        self._requests = RequestCount(max_requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._respond(scope, receive, send)
        except BelljarError as error:
            await _refusal(scope, error)(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        named = self._domain.parse(host_of(scope)) if len(headers.getlist("host")) == 1 else None
        if named is None or not scope["raw_path"].startswith(b"/"):
            raise NotFound(_NOTHING)
        is_tls = self._is_public_tls or scope["scheme"] in ("https", "wss")
        visitor = visitor_of(scope, headers, is_tls=is_tls)
        with self._requests.counted(_STRANGERS):
            visit = await self._ports.visit(named.sandbox_id, named.port, visitor.token)
        if visit is None:
            raise NotFound(_NOTHING)
        is_page = scope["type"] == "http" and scope["method"] in SAFE_METHODS
        if visitor.shown is Shown.URL and visit.token is not None and is_page:
            await _remembered(scope, visitor, visit, is_tls=is_tls)(scope, receive, send)
            return
        with self._requests.counted(named.sandbox_id):
            await self._pass_on(scope, receive, send, _Visit(self, named, visitor, visit))

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, visit: _Visit) -> None:
        machine, port = self._ports.machine(visit.first), visit.named.port
        target = scope["raw_path"] + (b"?" + visit.visitor.query if visit.visitor.query else b"")
        if scope["type"] == "websocket":
            websocket = WebSocket(scope, receive, send)
            text = target.decode("ascii", "replace")
            await websocket_proxy.pass_on(websocket, machine, port, text, OriginHeaders(), visit.watch)
            return
        request = Request(scope, LimitedBody(receive, sys.maxsize))
        response = await http_proxy.pass_on(request, machine, port, target, OriginHeaders())
        await response(scope, receive, visit.while_allowed(send))

    async def is_allowed(self, named: PortHost, visitor: Visitor) -> bool:
        """Return whether what the visitor showed still lets it in."""
        return await self._ports.visit(named.sandbox_id, named.port, visitor.token) is not None

    @property
    def is_stopping(self) -> bool:
        """Whether the server stops."""
        return self._changes.stopping


class _Visit:
    """A visit that is going on: it ends when what allowed it is withdrawn."""

    def __init__(self, ingress: HostIngress, named: PortHost, visitor: Visitor, first: PortVisit) -> None:
        self.named = named
        self.visitor = visitor
        self.first = first
        self._ingress = ingress
        self._looked_at = time.monotonic()

    async def watch(self) -> None:
        """Raise the error that ends a WebSocket."""
        while not self._ingress.is_stopping:
            await asyncio.sleep(_LOOK_SECONDS / 2)
            await self._look()
        raise StreamBroken("the server stops")

    def while_allowed(self, send: Send) -> Send:
        """Return a `send` that ends a response when the visit is not allowed any more."""

        async def send_if_allowed(message: Message) -> None:
            if message.get("more_body"):
                try:
                    await self._look()
                except BelljarError as error:
                    raise StreamAborted(error.message) from error
            await send(message)

        return send_if_allowed

    async def _look(self) -> None:
        if time.monotonic() - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        if not await self._ingress.is_allowed(self.named, self.visitor):
            raise NotFound("the port's token was revoked or expired, or the sandbox has ended")


def _remembered(scope: Scope, visitor: Visitor, visit: PortVisit, *, is_tls: bool) -> Response:
    """Return a redirection to the same page without the token, with the cookie that is made of it."""
    path = scope["raw_path"].decode("ascii", "replace").replace("\\", "%5C")
    if path.startswith("//"):  # it would name another host
        path = f"/.{path}"
    query = f"?{visitor.query.decode('ascii', 'replace')}" if visitor.query else ""
    response = Response(status_code=303, headers={**HEADERS, "Location": f"{path}{query}"})
    assert visit.token is not None and visitor.token is not None
    give_cookie(response, visitor.token, visit.token.expires_at, is_tls=is_tls)
    return response


def _refusal(scope: Scope, error: BelljarError) -> Response:
    """Return a page in plain text for browsers, a problem document for programs."""
    message = error.message
    if isinstance(error, SandboxUnreachable):  # it names the node
        message = "the sandbox cannot be reached now; try again"
    if "text/html" not in Headers(scope=scope).get("accept", ""):
        response = problem(error.status, error.code, message, error.details)
    else:
        response = PlainTextResponse(f"{error.status} {error.code}: {message}\n", error.status)
    response.headers.update(HEADERS)
    return response
