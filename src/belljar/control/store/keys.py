"""API keys: each belongs to a project; only a digest of the secret is stored.

A secret has 256 random bits, so a plain sha256 is enough: it cannot be guessed.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, Row, select

from belljar.control.audit.operation import record_change
from belljar.control.store.database import Database
from belljar.control.store.schema import keys
from belljar.model.errors import NotFound
from belljar.model.ids import new_id

#: How long an authenticated key is cached.
CACHE_SECONDS = 0.5
_MAX_CACHED = 10_000
_PREFIX = "bj_"


class Key(BaseModel):
    """The record of a key, without its secret."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    project: str
    #: Whether it may create and revoke keys, and see all projects.
    admin: bool
    created_at: datetime
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None


def new_secret() -> str:
    """Return a new secret."""
    return _PREFIX + secrets.token_urlsafe(32)


class SqlKeys:
    """The keys in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: Digest of the secret → the key, and when it expires, by the monotonic clock.
        self._cache: dict[str, tuple[Key, float]] = {}
        #: Number of revocations in this process.
        self._revocations = 0

    async def create(self, project: str, name: str, *, admin: bool = False) -> tuple[Key, str]:
        """Create a key and return it with its secret, which is not stored."""
        secret = new_secret()
        key = Key(id=new_id("key"), name=name, project=project, admin=admin, created_at=datetime.now(UTC))
        await self.add(key, secret)
        return key, secret

    async def add(self, key: Key, secret: str) -> None:
        """Store a key with the digest of this secret."""
        values = {**key.model_dump(), "secret_sha256": _digest(secret)}

        def add(connection: Connection) -> None:
            connection.execute(keys.insert(), values)
            record_change(connection, "key.create", key.id, project=key.project, name=key.name, admin=key.admin)

        await self._database.writing(add)

    async def authenticate(self, secret: str) -> Key | None:
        """Return the key of that secret; None when it is unknown or revoked.

        Keys are cached for `CACHE_SECONDS`: one that another process revokes is refused after that time, one that is
        revoked here at once.
        """
        digest = _digest(secret)
        cached = self._cache.get(digest)
        if cached is not None and time.monotonic() < cached[1]:
            return cached[0]
        query = select(keys).where(keys.c.secret_sha256 == digest, keys.c.revoked_at.is_(None))
        revocations, read_at = self._revocations, time.monotonic()
        row = await self._database.reading(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            self._cache.pop(digest, None)
            return None
        key = _key(row)
        if revocations == self._revocations:  # otherwise the key may have been revoked meanwhile
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            self._cache[digest] = key, read_at + CACHE_SECONDS
        return key

    async def record_use(self, key_id: str, at: datetime) -> None:
        """Store when a key was last used."""
        for digest, (key, until) in self._cache.items():
            if key.id == key_id:
                self._cache[digest] = key.model_copy(update={"last_used_at": at}), until
        query = keys.update().where(keys.c.id == key_id).values(last_used_at=at)
        await self._database.writing(lambda connection: connection.execute(query))

    async def list(self) -> list[Key]:
        """Return all keys, oldest first, including revoked ones."""
        async with self._database.read() as connection:
            return [_key(row) for row in await connection.execute(select(keys).order_by(keys.c.id))]

    async def revoked_since(self, at: datetime) -> Sequence[str]:
        """Return the ids of keys that were revoked at that time or later."""
        query = select(keys.c.id).where(keys.c.revoked_at >= at)
        return await self._database.reading(lambda connection: connection.execute(query).scalars().all())

    async def revoke(self, key_id: str) -> Key:
        """Revoke a key: here at once, in other processes within `CACHE_SECONDS`. Raises NotFound."""
        self._clear_cache()
        update = keys.update().where(keys.c.id == key_id, keys.c.revoked_at.is_(None))

        def revoke(connection: Connection) -> Row[Any] | None:
            connection.execute(update.values(revoked_at=datetime.now(UTC)))
            row = connection.execute(select(keys).where(keys.c.id == key_id)).one_or_none()
            if row is not None:
                record_change(connection, "key.revoke", row.id, project=row.project, name=row.name)
            return row

        row = await self._database.writing(revoke)
        self._clear_cache()
        if row is None:
            raise NotFound(f"there is no key {key_id[:80]!r}; list them with: belljar key ls")
        return _key(row)

    def _clear_cache(self) -> None:
        self._revocations += 1
        self._cache.clear()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: Row[Any]) -> Key:
    return Key(**{name: row._mapping[name] for name in Key.model_fields})
