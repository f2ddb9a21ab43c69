"""API keys: each belongs to a project; only a digest of the secret is stored.

A secret has 256 random bits, so a plain sha256 is enough: it cannot be guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, select

from belljar.control.projects.identity import Identity
from belljar.control.projects.key_format import PREFIX, new_secret
from belljar.control.projects.keys import Key
from belljar.control.projects.scopes import Role, Scope
from belljar.control.store.audit import record_change
from belljar.control.store.database import Database
from belljar.control.store.projects import add_project
from belljar.control.store.schema import keys, projects
from belljar.model.errors import KeyConflict, NotFound
from belljar.model.ids import new_id

#: How long an authenticated key is cached.
CACHE_SECONDS = 0.5
_MAX_CACHED = 10_000
#: Records of keys of one project, revoked and expired ones included: each takes room until its retention ends.
MAX_PROJECT_KEYS = 10_000
#: Compiled once: nearly every request reads it.
_BY_DIGEST = (
    select(keys, projects.c.suspended_at)
    .join_from(keys, projects, keys.c.project == projects.c.name, isouter=True)
    .where(keys.c.secret_sha256 == bindparam("digest"))
)


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key by its secret: it may be revoked or expired, or its project suspended."""

    key: Key
    identity: Identity
    is_suspended: bool


class SqlKeys:
    """The keys in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: Digest of the secret → the key, and when the entry expires, by the monotonic clock.
        self._cache: dict[str, tuple[KnownKey, float]] = {}
        #: Number of changes of keys or projects in this process.
        self._changes = 0

    async def create(
        self,
        project: str,
        name: str,
        *,
        role: Role | None = None,
        scopes: frozenset[Scope] = frozenset(),
        expires_at: datetime | None = None,
    ) -> tuple[Key, str]:
        """Create a key and return it with its secret, which is not stored. A new project is created too.

        Raises ProjectConflict for a project that is being removed, KeyConflict for one key too many.
        """
        key = Key(
            id=new_id("key"),
            name=name,
            project=project,
            role=role,
            extra_scopes=scopes,
            created_at=datetime.now(UTC),
            expires_at=expires_at,
        )
        secret = new_secret()
        await self.add(key, secret)
        return key, secret

    async def add(self, key: Key, secret: str) -> None:
        """Store a key with the digest of this secret, and its project if it is new.

        Raises ProjectConflict, and KeyConflict for one key too many.
        """

        def add(connection: Connection) -> None:
            is_new = add_project(connection, key.project)
            _check_room(connection, key)
            connection.execute(keys.insert().values(**_values(key), secret_sha256=_digest(secret)))
            record_change(connection, "key.create", key.id, project=key.project, new_project=is_new, **_described(key))

        await self._database.writing(add)

    async def find(self, secret: str) -> KnownKey | None:
        """Return the key of that secret; None when there is none.

        Keys are cached for `CACHE_SECONDS`: what another process changes is known after that time, what is changed
        here at once.
        """
        cached = self.cached(secret)
        if cached is not None:
            return cached
        digest = _digest(secret)
        changes, read_at = self._changes, time.monotonic()
        row = await self._database.reading(
            lambda connection: connection.execute(_BY_DIGEST, {"digest": digest}).one_or_none()
        )
        # The index found the row by comparing digests, which tells nothing about a secret; the last word is here.
        if row is None or not hmac.compare_digest(row.secret_sha256, digest):
            self._cache.pop(digest, None)
            return None
        key = key_of(row)
        known = KnownKey(key, key.identity(), row.suspended_at is not None)
        if changes == self._changes:  # otherwise the key may have been revoked meanwhile
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            self._cache[digest] = known, read_at + CACHE_SECONDS
        return known

    def cached(self, secret: str) -> KnownKey | None:
        """Return the key of that secret if it is in the cache, without a wait."""
        cached = self._cache.get(_digest(secret))
        return cached[0] if cached is not None and time.monotonic() < cached[1] else None

    async def authenticate(self, secret: str) -> Key | None:
        """Return the key of that secret; None when it is unknown, revoked or expired."""
        known = await self.find(secret)
        return known.key if known is not None and is_valid(known.key) else None

    async def record_use(self, key_id: str, at: datetime) -> None:
        """Store when a key was last used."""
        for digest, (known, until) in self._cache.items():
            if known.key.id == key_id:
                key = known.key.model_copy(update={"last_used_at": at})
                self._cache[digest] = KnownKey(key, known.identity, known.is_suspended), until
        query = keys.update().where(keys.c.id == key_id).values(last_used_at=at)
        await self._database.writing(lambda connection: connection.execute(query))

    async def list(self, project: str | None = None, *, after: str = "", limit: int | None = None) -> list[Key]:
        """Return the keys of a project, or of all, oldest first, after that id. Revoked and expired ones too."""
        query = select(keys).where(keys.c.id > after).order_by(keys.c.id).limit(limit)
        if project is not None:
            query = query.where(keys.c.project == project)
        rows = await self._database.reading(lambda connection: connection.execute(query).all())
        return [key_of(row) for row in rows]

    async def get(self, key_id: str) -> Key | None:
        """Return a key by its id."""
        query = select(keys).where(keys.c.id == key_id)
        row = await self._database.reading(lambda connection: connection.execute(query).one_or_none())
        return None if row is None else key_of(row)

    async def ended_since(self, at: datetime) -> Sequence[str]:
        """Return the ids of keys that were revoked or expired at that time or later: a rotation sets an expiry."""
        expired = (keys.c.expires_at >= at) & (keys.c.expires_at <= datetime.now(UTC))
        query = select(keys.c.id).where((keys.c.revoked_at >= at) | expired)
        return await self._database.reading(lambda connection: connection.execute(query).scalars().all())

    async def revoke(self, key_id: str) -> Key:
        """Revoke a key: here at once, in other processes within `CACHE_SECONDS`. Raises NotFound."""
        self.forget()
        now = datetime.now(UTC)
        query = keys.update().where(keys.c.id == key_id, keys.c.revoked_at.is_(None)).values(revoked_at=now)

        def revoke(connection: Connection) -> Row[Any] | None:
            connection.execute(query)
            row = connection.execute(select(keys).where(keys.c.id == key_id)).one_or_none()
            if row is not None:
                record_change(connection, "key.revoke", row.id, project=row.project, name=row.name)
            return row

        row = await self._database.writing(revoke)
        self.forget()
        if row is None:
            raise missing_key(key_id)
        return key_of(row)

    async def replace(self, key_id: str, new: Key, secret: str, ends_at: datetime) -> None:
        """Store the key that replaces another, which ends at `ends_at` unless it ends sooner, in one transaction.

        Raises KeyConflict when the other key is not valid any more (it may have been revoked meanwhile), and for one
        key too many.
        """
        old = select(keys).where(keys.c.id == key_id)
        sooner = keys.c.expires_at.is_(None) | (keys.c.expires_at > ends_at)
        end = keys.update().where(keys.c.id == key_id, sooner).values(expires_at=ends_at)

        def replace(connection: Connection) -> None:
            row = connection.execute(old).one_or_none()
            if row is None or not is_valid(key_of(row)):
                raise KeyConflict(f"the key {key_id} is revoked or expired; create a new one")
            _check_room(connection, new)
            connection.execute(end)
            connection.execute(keys.insert().values(**_values(new), secret_sha256=_digest(secret)))
            record_change(connection, "key.rotate", key_id, project=new.project, new_key=new.id, **_described(new))

        await self._database.writing(replace)
        self.forget()

    @property
    def generation(self) -> int:
        """Return a number that differs after each change of a key or its project in this process."""
        return self._changes

    def forget(self) -> None:
        """Read every key again, because a key or its project was changed."""
        self._changes += 1
        self._cache.clear()


def _check_room(connection: Connection, new: Key) -> None:
    """Raise KeyConflict when the project has too many keys for another one. An operator can always get in."""
    query = select(func.count()).select_from(keys).where(keys.c.project == new.project)
    if not new.admin and (count := connection.execute(query).scalar_one()) >= MAX_PROJECT_KEYS:
        raise KeyConflict(
            f"the project {new.project!r} has {count} keys with the revoked ones, and {MAX_PROJECT_KEYS} are allowed; "
            "revoke those that are not used, and wait for the end of the retention period (keep_revoked_keys_days)",
            limit=MAX_PROJECT_KEYS,
        )


def is_valid(key: Key) -> bool:
    """Return whether a key is neither revoked nor expired."""
    return key.revoked_at is None and (key.expires_at is None or datetime.now(UTC) < key.expires_at)


def missing_key(key_id: str) -> NotFound:
    """Return the error for an id that no key has, or a key of another project."""
    if key_id.startswith(PREFIX):  # a secret is not repeated
        return NotFound("this is the secret of a key, not its id; list the ids with: belljar key ls")
    return NotFound(f"there is no key {key_id[:80]!r}; list them with: belljar key ls")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


_NAMES = set(Key.model_fields)
_KNOWN_SCOPES, _KNOWN_ROLES = frozenset(Scope), frozenset(Role)


def _values(key: Key) -> dict[str, Any]:
    values = {name: getattr(key, name) for name in _NAMES}
    return values | {
        "role": key.role.value if key.role is not None else None,
        "extra_scopes": sorted(scope.value for scope in key.extra_scopes),
    }


def _described(key: Key) -> dict[str, Any]:
    """Return what the audit log says of a key."""
    return {
        "name": key.name,
        "role": key.role,
        "scopes": sorted(key.extra_scopes) or None,
        "expires_at": key.expires_at.isoformat() if key.expires_at is not None else None,
    }


def key_of(row: Row[Any]) -> Key:
    """Return the key of a row of the table `keys`."""
    values = {name: row._mapping[name] for name in _NAMES}
    # A role or scope that only a newer version knows allows nothing here.
    values["extra_scopes"] = frozenset(values["extra_scopes"]) & _KNOWN_SCOPES
    values["role"] = values["role"] if values["role"] in _KNOWN_ROLES else None
    return Key(**values)
