"""API keys: each belongs to a project; only a digest of the secret is kept.

A secret has 256 random bits, so that a plain sha256 of it is enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Row, select

from belljar.control.store.database import Database
from belljar.control.store.schema import keys
from belljar.model.errors import NotFound
from belljar.model.ids import new_id

#: How long a key that was found is good for without asking the database again.
KNOWN_SECONDS = 0.5
_MAX_KNOWN = 10_000
_PREFIX = "bj_"


class Key(BaseModel):
    """What is known of a key, without its secret."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    project: str
    #: Whether it may make and revoke keys.
    admin: bool
    created_at: datetime
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None


def new_secret() -> str:
    """A secret that nobody has seen."""
    return _PREFIX + secrets.token_urlsafe(32)


class SqlKeys:
    """Making, checking and revoking keys."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: Digest of the secret → its key, and until when (of the monotonic clock) it is good.
        self._known: dict[str, tuple[Key, float]] = {}
        #: How often a key was revoked here.
        self._revoked = 0

    async def create(self, project: str, name: str, *, admin: bool = False) -> tuple[Key, str]:
        """A new key and its secret, which can never be shown again."""
        secret = new_secret()
        key = Key(id=new_id("key"), name=name, project=project, admin=admin, created_at=datetime.now(UTC))
        await self.keep(key, secret)
        return key, secret

    async def keep(self, key: Key, secret: str) -> None:
        """Record a key whose secret is known already."""
        async with self._database.write() as connection:
            await connection.execute(keys.insert().values(**key.model_dump(), secret_sha256=_digest(secret)))

    async def authenticate(self, secret: str) -> Key | None:
        """The key of that secret, unless it was revoked.

        What was found is good for `KNOWN_SECONDS`: a key that another process revokes is refused then at the latest,
        one that is revoked here at once.
        """
        digest = _digest(secret)
        known = self._known.get(digest)
        if known is not None and time.monotonic() < known[1]:
            return known[0]
        query = select(keys).where(keys.c.secret_sha256 == digest, keys.c.revoked_at.is_(None))
        revoked, asked_at = self._revoked, time.monotonic()
        row = await self._database.reading(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            self._known.pop(digest, None)
            return None
        key = _key(row)
        if revoked == self._revoked:  # else it may be the one that was revoked meanwhile
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[digest] = key, asked_at + KNOWN_SECONDS
        return key

    async def used(self, key_id: str, at: datetime) -> None:
        """Note when a key was used last."""
        for digest, (key, until) in self._known.items():
            if key.id == key_id:
                self._known[digest] = key.model_copy(update={"last_used_at": at}), until
        query = keys.update().where(keys.c.id == key_id).values(last_used_at=at)
        await self._database.writing(lambda connection: connection.execute(query))

    async def list(self) -> list[Key]:
        """All keys, the oldest first, revoked ones too."""
        async with self._database.read() as connection:
            return [_key(row) for row in await connection.execute(select(keys).order_by(keys.c.id))]

    async def revoked_since(self, moment: datetime) -> Sequence[str]:
        """The ids of keys that were revoked at that moment or later."""
        query = select(keys.c.id).where(keys.c.revoked_at >= moment)
        return await self._database.reading(lambda connection: connection.execute(query).scalars().all())

    async def revoke(self, key_id: str) -> Key:
        """Make a key worthless from now on, in other processes within `KNOWN_SECONDS`. Raises NotFound."""
        self._forget()
        async with self._database.write() as connection:
            await connection.execute(
                keys.update()
                .where(keys.c.id == key_id, keys.c.revoked_at.is_(None))
                .values(revoked_at=datetime.now(UTC))
            )
            row = (await connection.execute(select(keys).where(keys.c.id == key_id))).one_or_none()
        self._forget()
        if row is None:
            raise NotFound(f"there is no key {key_id[:80]!r}; list them with: belljar key ls")
        return _key(row)

    def _forget(self) -> None:
        self._revoked += 1
        self._known.clear()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: Row[Any]) -> Key:
    return Key(**{name: row._mapping[name] for name in Key.model_fields})
