"""Sessions of browsers; only a digest of the secret is stored. A secret has 256 random bits, like that of a key."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, select
from sqlalchemy.exc import IntegrityError

from belljar.control.projects.people import KnownSession, Membership, Session, SessionOwner
from belljar.control.store.audit import record_change
from belljar.control.store.database import Database
from belljar.control.store.keys import CACHE_SECONDS, SqlKeys, key_of
from belljar.control.store.people import person_of
from belljar.control.store.people_schema import members, people, sessions
from belljar.control.store.schema import keys, projects
from belljar.model.errors import SignInFailed
from belljar.model.ids import new_id

#: Sessions of one person or key; the oldest ends for a new one.
MAX_SESSIONS = 50
_MAX_CACHED = 10_000
_BY_DIGEST = select(sessions).where(sessions.c.secret_sha256 == bindparam("digest"))


class SqlSessions:
    """The sessions in the database."""

    def __init__(self, database: Database, keys: SqlKeys) -> None:
        self._database = database
        self._keys = keys
        #: Digest of the secret → the session, and when the entry expires, by the monotonic clock.
        self._cache: dict[str, tuple[KnownSession, float]] = {}
        #: Number of changes of sessions and members in this process, and those of keys and projects.
        self._changes = (0, keys.generation)

    async def start(
        self, owner: SessionOwner, expires_at: datetime, *, state: str | None = None
    ) -> tuple[Session, str, list[str]]:
        """Start a session. Return it with its secret, which is not stored, and the ids of sessions that ended for it.

        `state` is that of the sign-in, which starts one session only. Raises SignInFailed when it was used before.
        """
        now, secret = datetime.now(UTC), secrets.token_urlsafe(32)
        session = Session(id=new_id("ses"), created_at=now, used_at=now, expires_at=expires_at, **owner.model_dump())
        values = session.model_dump() | {
            "secret_sha256": _digest(secret),
            "state_sha256": None if state is None else _digest(state),
        }
        is_live = (_owned_by(owner.person_id, owner.key_id), sessions.c.ended_at.is_(None))
        oldest = select(sessions.c.id).where(*is_live).order_by(sessions.c.id.desc()).offset(MAX_SESSIONS - 1)

        def start(connection: Connection) -> list[str]:
            ended = list(connection.execute(oldest).scalars())
            connection.execute(sessions.update().where(sessions.c.id.in_(ended)).values(ended_at=now))
            try:
                connection.execute(sessions.insert().values(**values))
            except IntegrityError:
                raise SignInFailed("this sign-in was completed before; sign in again") from None
            return ended

        ended = await self._database.writing(start)
        if ended:
            self.forget()
        return session, secret, ended

    async def find(self, secret: str) -> KnownSession | None:
        """Return the session of that secret; None when there is none. It may have ended. Cached like keys."""
        digest = _digest(secret)
        if self._keys.generation != self._changes[1]:
            self.forget()
        cached = self._cache.get(digest)
        if cached is not None and time.monotonic() < cached[1]:
            return cached[0]
        changes, read_at = self._changes, time.monotonic()

        def read(connection: Connection) -> KnownSession | None:
            row = connection.execute(_BY_DIGEST, {"digest": digest}).one_or_none()
            # The index compared digests, which tells nothing about a secret; the last word is here.
            if row is None or not hmac.compare_digest(row.secret_sha256, digest):
                return None
            return _known(connection, row)

        known = await self._database.reading(read)
        if known is not None and changes == self._changes:
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            self._cache[digest] = known, read_at + CACHE_SECONDS
        return known

    async def record_use(self, session_id: str, at: datetime) -> None:
        """Store when a session was last used."""
        for digest, (known, until) in self._cache.items():
            if known.session.id == session_id:
                session = known.session.model_copy(update={"used_at": at})
                self._cache[digest] = known.model_copy(update={"session": session}), until
        query = sessions.update().where(sessions.c.id == session_id).values(used_at=at)
        await self._database.writing(lambda connection: connection.execute(query))

    async def get(self, session_id: str) -> Session | None:
        """Return a session by its id."""
        query = select(sessions).where(sessions.c.id == session_id)
        row = await self._database.reading(lambda connection: connection.execute(query).one_or_none())
        return None if row is None else _session(row)

    async def live(self, *, person_id: str | None = None, key_id: str | None = None) -> list[Session]:
        """Return the sessions of a person or key that were not ended, the newest first. Some may have expired."""
        query = (
            select(sessions)
            .where(_owned_by(person_id, key_id), sessions.c.ended_at.is_(None))
            .order_by(sessions.c.id.desc())
            .limit(MAX_SESSIONS)
        )
        rows = await self._database.reading(lambda connection: connection.execute(query).all())
        return [_session(row) for row in rows]

    async def end(self, session_id: str, *, action: str | None = None) -> None:
        """End a session: here at once, in other processes within `CACHE_SECONDS`. `action`: for the audit log."""
        query = sessions.update().where(sessions.c.id == session_id, sessions.c.ended_at.is_(None))

        def end(connection: Connection) -> None:
            connection.execute(query.values(ended_at=datetime.now(UTC)))
            if action is not None:
                record_change(connection, action, session_id)

        self.forget()
        await self._database.writing(end)
        self.forget()

    async def ended_since(self, at: datetime) -> Sequence[str]:
        """Return the ids of sessions that were ended at that time or later."""
        query = select(sessions.c.id).where(sessions.c.ended_at >= at)
        return await self._database.reading(lambda connection: connection.execute(query).scalars().all())

    def forget(self) -> None:
        """Read every session again, because one, a member or a project was changed."""
        self._changes = self._changes[0] + 1, self._keys.generation
        self._cache.clear()


def _known(connection: Connection, row: Row[Any]) -> KnownSession:
    session = _session(row)
    if session.key_id is not None:
        query = select(keys, projects.c.suspended_at).join_from(
            keys, projects, keys.c.project == projects.c.name, isouter=True
        )
        key = connection.execute(query.where(keys.c.id == session.key_id)).one_or_none()
        if key is None:
            return KnownSession(session=session)
        return KnownSession(session=session, key=key_of(key), is_suspended=key.suspended_at is not None)
    person = connection.execute(select(people).where(people.c.id == session.person_id)).one_or_none()
    if person is None:
        return KnownSession(session=session)
    found = connection.execute(
        select(members.c.project, members.c.role, projects.c.suspended_at)
        .join_from(members, projects, members.c.project == projects.c.name)
        .where(members.c.person_id == session.person_id, projects.c.removed_at.is_(None))
        .order_by(members.c.project)
    ).all()
    memberships = {
        each.project: Membership(role=each.role, is_suspended=each.suspended_at is not None) for each in found
    }
    return KnownSession(session=session, person=person_of(person), memberships=memberships)


def _owned_by(person_id: str | None, key_id: str | None) -> ColumnElement[bool]:
    if person_id is not None:
        return sessions.c.person_id == person_id
    return sessions.c.key_id == key_id


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


_NAMES = set(Session.model_fields)


def _session(row: Row[Any]) -> Session:
    return Session(**{name: row._mapping[name] for name in _NAMES})
