"""Records requests in the audit log: changes that their transaction did not record, and refused or failed requests.

Plain ASGI around authentication, so that requests without a valid key are seen. A change that its own transaction
recorded costs nothing here.
"""

from __future__ import annotations

import json
from typing import Any

import h11
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from belljar.control.api.audited import action_in
from belljar.control.api.request_context import shown_path
from belljar.control.api.streams import StreamAborted
from belljar.control.audit.auditor import Auditor
from belljar.control.audit.entry import ANONYMOUS, Actor, ActorKind, Entry, Outcome
from belljar.control.audit.operation import carrying_out
from belljar.control.projects.identity import Identity, IdentityKind

#: Refusals that are recorded for all requests: nobody else could tell that somebody tries keys.
_ACCESS = frozenset({401, 403})
#: The answer to too many invalid keys.
_TOO_MANY = 429
#: Refusals that are recorded for requests that would change something. Malformed requests are in the access log only.
_CHANGE = frozenset({404, 409, 429})
#: The action of a refused request that would change nothing, or that was refused before its route was known.
REFUSED_ACCESS = "access.refuse"
_KINDS = {
    IdentityKind.KEY: ActorKind.KEY,
    IdentityKind.PERSON: ActorKind.PERSON,
    IdentityKind.NOBODY: ActorKind.ANONYMOUS,
}
_MAX_CODE_BYTES = 64 * 1024


class RequestOperation:
    """The action of a request, as far as it is known by now."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.is_recorded = False

    @property
    def action(self) -> str | None:
        """Return the name of the route's action; None if the request changes nothing or was not routed yet."""
        return action_in(self._scope)

    def covers(self, action: str) -> bool:
        """Return whether the request is this action."""
        return self.action == action

    def is_refused(self, status: int) -> bool:
        """Return whether to record a response with this status of an error."""
        if status in _ACCESS or (status == _TOO_MANY and "identity" not in self._scope.get("state", {})):
            return True
        return self.action is not None and (status in _CHANGE or status >= 500)

    def entry(
        self,
        action: str,
        project: str | None,
        changed: str | None,
        details: dict[str, Any],
        outcome: Outcome = Outcome.SUCCEEDED,
    ) -> Entry:
        """Return an entry for the request."""
        state = self._scope.get("state", {})
        identity: Identity | None = state.get("identity")
        client = self._scope.get("client")
        return Entry(
            actor=_actor_of(identity),
            action=action,
            outcome=outcome,
            project=project or (identity.project if identity is not None else None),
            object=changed or self._named_object(),
            address=client[0] if client else None,
            request_id=state.get("request_id"),
            details=details,
        )

    def refusal(self, status: int, code: str | None, outcome: Outcome) -> Entry:
        """Return an entry for the refused or failed request."""
        details: dict[str, Any] = {"status": status, "code": code}
        if self.action is None:
            details |= {"method": self._scope["method"], "path": shown_path(self._scope)}
        return self.entry(self.action or REFUSED_ACCESS, None, None, details, outcome)

    def _named_object(self) -> str | None:
        """Return the last part of the path that names something."""
        names = list(self._scope.get("path_params", {}).values())
        return str(names[-1]) if names and self.action is not None else None


class AuditMiddleware:
    """Middleware that records requests in the audit log."""

    def __init__(self, app: ASGIApp, auditor: Auditor) -> None:
        self._app = app
        self._auditor = auditor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        operation = RequestOperation(scope)
        response = _Response(operation, self._auditor, send)
        with carrying_out(operation):
            try:
                await self._app(scope, receive, response.send)
            except (ClientDisconnect, StreamAborted, h11.LocalProtocolError):
                raise
            except Exception:
                if response.status is None and operation.action is not None:
                    await self._auditor.record(operation.refusal(500, "internal_error", Outcome.FAILED))
                raise


class _Response:
    """Forwards a response, and records its request before the first byte of it."""

    def __init__(self, operation: RequestOperation, auditor: Auditor, send: Send) -> None:
        self._operation = operation
        self._auditor = auditor
        self._send = send
        self._is_refusal = False
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        kind = message["type"].removeprefix("websocket.")
        if kind == "http.response.start":
            self.status = status = message["status"]
            operation = self._operation
            if status < 400:
                if operation.action is not None and not operation.is_recorded:
                    await self._auditor.record(operation.entry(operation.action, None, None, {}))
            elif operation.is_refused(status):
                self._is_refusal = True
        elif self._is_refusal:
            self._is_refusal = False
            await self._record_refusal(message)
        await self._send(message)

    async def _record_refusal(self, message: Message) -> None:
        status = self.status or 500
        outcome = Outcome.FAILED if status >= 500 else Outcome.REFUSED
        self._auditor.refuse(self._operation.refusal(status, _code_of(message), outcome))


def _actor_of(identity: Identity | None) -> Actor:
    if identity is None:
        return ANONYMOUS
    return Actor(kind=_KINDS[identity.kind], id=identity.id, name=identity.name)


def _code_of(message: Message) -> str | None:
    """Return the code of the problem document in a response."""
    body = message.get("body", b"")
    if len(body) > _MAX_CODE_BYTES:
        return None
    try:
        code = json.loads(body)["code"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return str(code)
