"""Starts and ends the sessions of browsers, and makes the identity of each request of one.

A session belongs to a person, or to the key that it was started with. It never allows more than its owner: what a
person may do is read from the memberships, what a key may do from the key, again and again.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import structlog

from belljar.control.jobs.changes import Changes
from belljar.control.projects.identity import DEFAULT_PROJECT, BrowserSession, Identity, IdentityKind
from belljar.control.projects.keys import Key
from belljar.control.projects.people import KnownSession, Membership, Person, Session, SessionOwner
from belljar.control.projects.scopes import ALL_SCOPES, granted
from belljar.control.store.keys import is_valid
from belljar.control.store.projects import missing_project
from belljar.control.store.sessions import SqlSessions
from belljar.model.errors import HostError, NotFound, ProjectSuspended, SessionEnded
from belljar.settings.sign_in import SignInSettings

log = structlog.get_logger()

#: How often `used_at` is written: not for every request. Shorter than any idle time that makes sense.
_USE_INTERVAL = timedelta(minutes=1)
_ENDED = "the session has ended; sign in again"


class SessionService:
    """The sessions of one server."""

    def __init__(self, sessions: SqlSessions, changes: Changes, settings: SignInSettings) -> None:
        self._sessions = sessions
        self._changes = changes
        self._lifetime = timedelta(hours=settings.session_lifetime_hours)
        self._idle = timedelta(minutes=settings.session_idle_minutes)
        self._operators = frozenset(settings.oidc_operators)

    def is_operator(self, email: str) -> bool:
        """Return whether the settings name this verified address as an operator's."""
        return email in self._operators

    async def start_with_key(self, key: Key, *, address: str, browser: str) -> tuple[Session, str]:
        """Start the session of a valid key, which ends with the key. Return it with its secret."""
        expires_at = min(datetime.now(UTC) + self._lifetime, key.expires_at or datetime.max.replace(tzinfo=UTC))
        return await self._start(SessionOwner(key_id=key.id, address=address, browser=browser), expires_at, None)

    async def start_for(self, person: Person, *, state: str, address: str, browser: str) -> tuple[Session, str]:
        """Start the session of a person. Return it with its secret. Raises SignInFailed for a state used before."""
        owner = SessionOwner(person_id=person.id, address=address, browser=browser)
        return await self._start(owner, datetime.now(UTC) + self._lifetime, state)

    async def _start(self, owner: SessionOwner, expires_at: datetime, state: str | None) -> tuple[Session, str]:
        session, secret, ended = await self._sessions.start(owner, expires_at, state=state)
        for each in ended:
            self._changes.notify_revoked(each)
        log.info("session_started", id=session.id, person=owner.person_id, key=owner.key_id)
        return session, secret

    async def identity(self, secret: str, project: str | None = None) -> Identity:
        """Return the identity of a request with the cookie of this secret.

        `project` is the one that the request names; by default it is the key's, or the person's first by name that is
        not suspended. Raises SessionEnded, NotFound (project), ProjectSuspended.
        """
        known = await self._sessions.find(secret)
        now = datetime.now(UTC)
        if known is None or self._has_ended(known.session, now):
            raise SessionEnded(_ENDED)
        session = BrowserSession(
            id=known.session.id, expires_at=known.session.expires_at, form_token=form_token_of(secret)
        )
        if known.session.key_id is not None:
            identity = self._of_key(known, session)
        else:
            identity = self._of_person(known, session, project)
        if now - known.session.used_at > min(_USE_INTERVAL, self._idle / 4):
            with contextlib.suppress(HostError):  # a full disk must not end valid sessions
                await self._sessions.record_use(known.session.id, now)
        return identity

    def _has_ended(self, session: Session, now: datetime) -> bool:
        return session.ended_at is not None or now >= session.expires_at or now - session.used_at > self._idle

    def _of_key(self, known: KnownSession, session: BrowserSession) -> Identity:
        key = known.key
        if key is None or not is_valid(key):
            raise SessionEnded("the key of this session was revoked or has expired; sign in again")
        identity = replace(key.identity(), session=session)
        if not known.is_suspended:
            self._changes.set_active(key.project)
        elif not identity.is_operator:
            raise suspended(key.project)
        return identity

    def _of_person(self, known: KnownSession, session: BrowserSession, project: str | None) -> Identity:
        person, memberships = known.person, known.memberships
        if person is None:
            raise SessionEnded(_ENDED)
        is_operator = self.is_operator(person.email)
        chosen = DEFAULT_PROJECT if is_operator else _chosen(memberships, project)
        if not is_operator:
            self._changes.set_active(chosen)
        return Identity(
            kind=IdentityKind.PERSON,
            id=person.id,
            name=person.email,
            project=chosen,
            only_project=None if is_operator else chosen,
            scopes=ALL_SCOPES if is_operator else granted(memberships[chosen].role, ()),
            roles={name: each.role for name, each in memberships.items()},
            session=session,
        )

    async def list(self, by: Identity) -> list[Session]:
        """Return the caller's own sessions that have not ended, the newest first."""
        now = datetime.now(UTC)
        is_person = by.kind is IdentityKind.PERSON
        found = await self._sessions.live(person_id=by.id if is_person else None, key_id=None if is_person else by.id)
        return [session for session in found if not self._has_ended(session, now)]

    async def revoke(self, by: Identity, session_id: str) -> None:
        """End a session of the caller, or any for an operator: at once, with its open streams. Raises NotFound."""
        session = await self._sessions.get(session_id)
        owner = None if session is None else session.person_id or session.key_id
        if session is None or not (by.is_operator or owner == by.id):
            raise NotFound(f"there is no session {session_id[:80]!r}; list them with GET /v1/sessions")
        await self._end(session_id, by, "session.revoke")

    async def sign_out(self, by: Identity) -> None:
        """End the session of the request: its cookie is worthless from now on."""
        if by.session is not None:
            await self._end(by.session.id, by, "session.end")

    async def replace(self, secret: str) -> None:
        """End the session that a browser had before it signed in again."""
        known = await self._sessions.find(secret)
        if known is not None and known.session.ended_at is None:
            await self._sessions.end(known.session.id)
            self._changes.notify_revoked(known.session.id)

    async def _end(self, session_id: str, by: Identity, action: str) -> None:
        await self._sessions.end(session_id, action=action)
        self._changes.notify_revoked(session_id)
        log.info("session_ended", id=session_id, by=by.id)


def form_token_of(secret: str) -> str:
    """Return what the forms of a session carry. It is made of the cookie's secret, which it does not reveal."""
    digest = hmac.new(secret.encode(), b"belljar form token", hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def suspended(project: str) -> ProjectSuspended:
    """Return the error for a request in a suspended project."""
    return ProjectSuspended(f"the project {project!r} is suspended; ask the operator of this server")


def _chosen(memberships: Mapping[str, Membership], project: str | None) -> str:
    if not memberships:
        raise SessionEnded("you are in no project any more; ask an owner to invite you, then sign in again")
    if project is None:
        project = next((name for name, each in memberships.items() if not each.is_suspended), next(iter(memberships)))
    if project not in memberships:
        raise missing_project(project)
    if memberships[project].is_suspended:
        raise suspended(project)
    return project
