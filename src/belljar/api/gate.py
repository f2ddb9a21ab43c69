"""Who may come in: the key, and with `--auth off` that it is no web page of somebody else's that asks.

Plain ASGI, outside everything else: a route that was forgotten is closed, not open.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from belljar.api.admin_key import PROJECT
from belljar.api.problems import problem_of
from belljar.errors import BelljarError, Forbidden, HostError, NotAuthenticated, TooLarge
from belljar.settings import Settings
from belljar.store.keys import Key, SqlKeys

#: Routes for load balancers and supervisors; they say nothing about anybody's jobs.
OPEN = frozenset({"/healthz", "/readyz"})
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
#: What is around the script in a multipart body: a part's head, and two short fields.
_FORM_ROOM = 64 * 1024
#: Standard input beside the code in a JSON body, and the escapes in both.
_JSON_ROOM = 32 * 1024 * 1024
_BEARER = re.compile(r"(?i:bearer) +([A-Za-z0-9._~+/=-]{1,512})\Z")
#: `last_used_at` is for people: a write for every request would be too many.
_NOTE_USE = timedelta(minutes=1)


class Gate:
    """Middleware: authenticates, checks Host and Origin, bounds the body."""

    def __init__(self, app: ASGIApp, keys: SqlKeys, settings: Settings) -> None:
        self._app = app
        self._keys = keys
        self._auth = settings.auth == "on"
        self._upload_bytes = settings.max_upload_mb * 1024 * 1024
        self._anybody = Key(
            id="key_none", name="auth is off", project=PROJECT, admin=True, created_at=datetime.now(UTC)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            if scope["path"] not in OPEN:
                scope.setdefault("state", {})["key"] = await self._admit(headers)
        except BelljarError as error:
            await problem_of(error)(scope, receive, send)
            return
        is_form = headers.get("content-type", "").startswith("multipart/")
        most_bytes = self._upload_bytes + (_FORM_ROOM if is_form else _JSON_ROOM)
        await self._app(scope, _Bounded(receive, most_bytes), send)

    async def _admit(self, headers: Headers) -> Key:
        if not self._auth:
            _check_local(headers)
            return self._anybody
        match = _BEARER.match(headers.get("authorization", ""))
        if match is None:
            raise NotAuthenticated("no key was sent; add the header Authorization: Bearer KEY")
        key = await self._keys.authenticate(match[1])
        if key is None:
            raise NotAuthenticated("the key is not known here, or was revoked; belljar key create makes a new one")
        await self._note_use(key)
        return key

    async def _note_use(self, key: Key) -> None:
        now = datetime.now(UTC)
        if key.last_used_at is None or now - key.last_used_at > _NOTE_USE:
            try:
                await self._keys.used(key.id, now)
            except HostError:
                return  # a full disk must not lock anybody out


class _Bounded:
    """Counts a body while it streams in. Raises TooLarge."""

    def __init__(self, receive: Receive, most_bytes: int) -> None:
        self._receive = receive
        self._left = most_bytes

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise TooLarge("the request's body is larger than the limits allow; see max_upload_mb in docs/settings.md")
        return message


def _check_local(headers: Headers) -> None:
    """Without keys, only programs on this machine may ask: no page of another origin, and no name that was rebound."""
    host = headers.get("host", "")
    if _host_name(host) not in LOOPBACK:
        raise Forbidden(f"with --auth off only requests to localhost are answered, not to {host[:80]!r}")
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        raise Forbidden("a web page of another origin may not use a server without keys")
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Forbidden("a web page of another site may not use a server without keys")


def _host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
