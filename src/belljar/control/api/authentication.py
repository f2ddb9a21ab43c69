"""Finds out who sends a request: the identity of its key or session, and the project in which it acts."""

from __future__ import annotations

import contextlib
import re
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote_to_bytes, urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from belljar.control.api.failed_attempts import FailedAttempts
from belljar.control.api.same_origin import check_same_origin
from belljar.control.api.session_cookie import Cookies
from belljar.control.jobs.changes import Changes
from belljar.control.projects.identity import Identity, nobody
from belljar.control.projects.key_format import IN_TEXT, flaw
from belljar.control.projects.keys import Key
from belljar.control.projects.session_service import SessionService, suspended
from belljar.control.store.keys import KnownKey, SqlKeys
from belljar.control.store.projects import SqlProjects, missing_project
from belljar.local_server import is_loopback
from belljar.model.errors import (
    BelljarError,
    CrossSiteRequest,
    Forbidden,
    HostError,
    InvalidRequest,
    KeyInUrl,
    NotAuthenticated,
    NotFound,
    ProjectSuspended,
    SessionEnded,
    TooManyFailures,
)

#: The header with which an operator names the project in which a request acts.
PROJECT_HEADER = "Belljar-Project"
_BEARER = re.compile(r"(?i:bearer) +([A-Za-z0-9._~+/=-]{1,512})\Z")
#: How often `last_used_at` is written: not for every request.
_USE_INTERVAL = timedelta(minutes=1)
_NOBODY = nobody()


class Authentication:
    """Authenticates the requests of one server."""

    def __init__(
        self,
        keys: SqlKeys,
        projects: SqlProjects,
        sessions: SessionService,
        changes: Changes,
        *,
        public_url: str | None,
        is_on: bool,
    ) -> None:
        """With `is_on` False, every request that comes from this machine is an operator's.

        `public_url` is the origin of this server's pages, where it is not that of the request's `Host`.
        """
        self.cookies = Cookies(public_url)
        self._public_url = public_url
        self._sessions = sessions
        self._keys = keys
        self._projects = projects
        self._changes = changes
        self._is_on = is_on
        self._failures = FailedAttempts()

    async def identity(self, scope: Scope, headers: Headers) -> Identity:
        """Return the request's identity.

        The header `Authorization` goes before the cookie of a session. A browser's requests act in the project that the
        header names, or that was chosen on a page. Raises NotAuthenticated, TooManyFailures, ProjectSuspended,
        Forbidden, NotFound (project), InvalidRequest, HostError.
        """
        named = _only(headers, PROJECT_HEADER)
        if not self._is_on:
            _check_local(headers)
            return await self._of_browser(None, scope, headers, named)
        _check_query(scope["query_string"])
        cookie = None if "authorization" in headers else self.cookies.session(scope, headers)
        if cookie is not None:
            self.check_same_origin(scope, headers)
            return await self._of_browser(cookie, scope, headers, named)
        identity = await self._of_key(scope, headers)
        return identity if named is None else await self._in_project(identity, named)

    async def _of_browser(self, cookie: str | None, scope: Scope, headers: Headers, named: str | None) -> Identity:
        """Return the identity of a session's cookie; None: with `--auth off`.

        A project that was chosen earlier and is gone, or not the person's any more, is passed over.
        """
        if named is None and (chosen := self.cookies.project(scope, headers)) is not None:
            with contextlib.suppress(NotFound, ProjectSuspended):
                return await self._acting_in(cookie, chosen)
        return await self._acting_in(cookie, named)

    async def _acting_in(self, cookie: str | None, project: str | None) -> Identity:
        identity = _NOBODY if cookie is None else await self._sessions.identity(cookie, project)
        return identity if project is None else await self._in_project(identity, project)

    async def _of_key(self, scope: Scope, headers: Headers) -> Identity:
        match = _BEARER.match(_only(headers, "authorization") or "")
        if match is None:
            raise NotAuthenticated("no key; send the header Authorization: Bearer KEY")
        key = await self.key_of(scope, match[1])
        await self._record_use(key.key)
        return key.identity

    def check_same_origin(self, scope: Scope, headers: Headers) -> None:
        """Refuse a request of another site's page. Raises CrossSiteRequest."""
        check_same_origin(scope, headers, self._public_url)

    def check_websocket_origin(self, headers: Headers) -> None:
        """Raise Forbidden for a WebSocket that a page of another origin opens: browsers do not ask for leave.

        A page cannot send `Authorization`, so a request with it is none of a page's.
        """
        origin = headers.get("origin")
        if origin is None or "authorization" in headers or origin == self._public_url:
            return
        if _authority(origin) != headers.get("host", ""):
            raise Forbidden(f"pages of {origin[:80]!r} may not open a WebSocket here; use the origin of this server")

    def turn(self, scope: Scope) -> AbstractAsyncContextManager[None]:
        """Return the turn of an address that is slowed; others need not wait."""
        return self._failures.turn(_host(scope))

    def count_failure(self, scope: Scope) -> None:
        """Count a failed sign-in for the client's address, like an invalid key."""
        self._failures.add(_host(scope))

    def is_same_origin(self, scope: Scope, headers: Headers) -> bool:
        """Return whether no other site's page sent the request."""
        try:
            self.check_same_origin(scope, headers)
        except CrossSiteRequest:
            return False
        return True

    async def key_of(self, scope: Scope, secret: str) -> KnownKey:
        """Return the valid key of a secret; failures count for the client's address.

        Raises NotAuthenticated, TooManyFailures, ProjectSuspended, HostError.
        """
        known = self._keys.cached(secret) or await self._look_up(scope, secret)
        if (reason := _invalid(known.key)) is not None:
            raise self._failure(_host(scope), reason)
        if not known.is_suspended:
            self._changes.set_active(known.key.project)
        elif not known.identity.is_operator:
            raise suspended(known.key.project)
        return known

    async def _look_up(self, scope: Scope, secret: str) -> KnownKey:
        host = _host(scope)
        if (reason := flaw(secret)) is not None:
            raise self._failure(host, reason)
        async with self._failures.turn(host):
            known = await self._keys.find(secret)
        if known is None:
            raise self._failure(host, "unknown or revoked key; create a new one with belljar key create")
        return known

    def _failure(self, host: str, reason: str) -> NotAuthenticated | TooManyFailures:
        seconds = self._failures.retry_after(host)
        self._failures.add(host)
        if seconds is None:
            return NotAuthenticated(reason)
        return TooManyFailures(
            f"{reason}; too many invalid keys from this address, try again in {seconds} s", retry_after=seconds
        )

    async def _in_project(self, identity: Identity, name: str) -> Identity:
        """Return the identity acting in the project that the request names. Other projects do not exist for it."""
        if not identity.may_see(name) or not (name == identity.project or await self._projects.exists(name)):
            raise missing_project(name)
        return identity.acting_in(name)

    async def _record_use(self, key: Key) -> None:
        now = datetime.now(UTC)
        if key.last_used_at is None or now - key.last_used_at > _USE_INTERVAL:
            try:
                await self._keys.record_use(key.id, now)
            except HostError:
                return  # a full disk must not refuse valid keys


def end_error(identity: Identity, changes: Changes) -> BelljarError | None:
    """Return why a request that has begun must end: its identity is not valid any more. None: it is."""
    if changes.is_revoked(identity.id):
        return NotAuthenticated("the key was revoked or expired")
    if identity.expires_at is not None and datetime.now(UTC) >= identity.expires_at:
        return NotAuthenticated("the key expired")
    session = identity.session
    if session is not None and (changes.is_revoked(session.id) or datetime.now(UTC) >= session.expires_at):
        return SessionEnded("the session has ended; sign in again")
    if changes.is_suspended(identity.project) and not identity.is_operator:
        return suspended(identity.project)
    return None


def _invalid(key: Key) -> str | None:
    if key.revoked_at is not None:
        return "the key was revoked; create a new one with belljar key create"
    if key.expires_at is not None and datetime.now(UTC) >= key.expires_at:
        return f"the key expired at {key.expires_at:%Y-%m-%d %H:%M:%S} UTC; create a new one with belljar key create"
    return None


def _only(headers: Headers, name: str) -> str | None:
    """Return the value of a header. Raises InvalidRequest for several: a proxy may have judged by another one."""
    values = headers.getlist(name)
    if len(values) > 1:
        raise InvalidRequest(f"the request has the header {name} {len(values)} times; send it once")
    return values[0] if values else None


def _host(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def _check_query(query: bytes) -> None:
    """Refuse a request with a key in its URL: proxies, browsers and logs keep URLs. Raises KeyInUrl."""
    if b"bj" not in query and b"%" not in query:
        return
    text = unquote_to_bytes(query).decode("latin-1")
    if IN_TEXT.search(text) is not None:
        raise KeyInUrl(
            "the URL has a key in its query, where logs may have kept it: revoke that key, create a new one, and send "
            "it in the header Authorization: Bearer KEY only"
        )


def _check_local(headers: Headers) -> None:
    """Refuse requests that are not from this machine: cross-origin ones, and other host names (DNS rebinding)."""
    host = headers.get("host", "")
    if not is_loopback(_host_name(host)):
        raise Forbidden(f"requests to {host[:80]!r} are refused with --auth off; send them to localhost")
    origin = headers.get("origin")
    if origin is not None and _authority(origin) != host:
        raise Forbidden("cross-origin requests are refused with --auth off")
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Forbidden("cross-site requests are refused with --auth off")


def _authority(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
