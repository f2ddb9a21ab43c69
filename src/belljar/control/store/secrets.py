"""Secrets in the database: each sealed, with the id of its key. What seals and unseals is in control/secrets."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, Row, func, select

from belljar.control.store.audit import record_change
from belljar.control.store.database import Database
from belljar.control.store.projects import require_project
from belljar.control.store.schema import secrets
from belljar.model.errors import InvalidOption

T = TypeVar("T")

#: Secrets of one project.
MAX_PROJECT_SECRETS = 1000


class Secret(BaseModel):
    """The record of a secret, without its value."""

    model_config = ConfigDict(frozen=True)

    name: str
    #: 1 for the first value, and one more with each new one.
    version: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed value, and the key that it is sealed with."""

    key_id: str
    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedSecret:
    """A stored secret."""

    project: str
    name: str
    version: int
    size_bytes: int
    fits_variable: bool
    sealed: Sealed


class SqlSecrets:
    """The secrets in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(
        self,
        project: str,
        name: str,
        *,
        size_bytes: int,
        fits_variable: bool,
        seal: Callable[[int, frozenset[str]], Sealed],
    ) -> Secret:
        """Store a new version of a secret.

        `seal` gets the version and the ids of all keys in use, and runs in the transaction: no rotation of keys ends
        between it and the write. Raises NotFound (project), ProjectConflict while the project is being removed,
        InvalidOption for one secret too many, and what `seal` raises.
        """
        this = (secrets.c.project == project) & (secrets.c.name == name)

        def write(connection: Connection) -> Secret:
            # Otherwise a later project of the same name would have the secret.
            require_project(connection, project)
            now = datetime.now(UTC)
            before = connection.execute(select(secrets.c.version, secrets.c.created_at).where(this)).one_or_none()
            version = 1 if before is None else before.version + 1
            if before is None:
                _check_room(connection, project)
            sealed = seal(version, _key_ids(connection))
            values = {
                "version": version,
                "updated_at": now,
                "size_bytes": size_bytes,
                "fits_variable": fits_variable,
                "key_id": sealed.key_id,
                "sealed": sealed.data,
            }
            if before is None:
                connection.execute(secrets.insert().values(project=project, name=name, created_at=now, **values))
            else:
                connection.execute(secrets.update().where(this).values(**values))
            record_change(connection, "secret.set", name, project=project, version=version)
            created_at = now if before is None else before.created_at
            return Secret(name=name, version=version, created_at=created_at, updated_at=now)

        return await self._database.writing(write)

    async def list(self, project: str) -> list[Secret]:
        """Return the project's secrets by name, at most MAX_PROJECT_SECRETS."""
        query = select(secrets).where(secrets.c.project == project).order_by(secrets.c.name)
        rows = await self._database.reading(lambda connection: connection.execute(query).all())
        return [_secret(row) for row in rows]

    async def get(self, project: str, names: Collection[str]) -> dict[str, SealedSecret]:
        """Return those of these secrets that the project has, by name."""
        query = select(secrets).where(secrets.c.project == project, secrets.c.name.in_(sorted(names)))
        rows = await self._database.reading(lambda connection: connection.execute(query).all())
        return {row.name: _sealed(row) for row in rows}

    async def remove(self, project: str, name: str) -> Secret | None:
        """Remove a secret and return its record; None when there is none."""
        query = secrets.delete().where(secrets.c.project == project, secrets.c.name == name).returning(secrets)

        def remove(connection: Connection) -> Row[Any] | None:
            row = connection.execute(query).one_or_none()
            if row is not None:
                record_change(connection, "secret.remove", name, project=project, version=row.version)
            return row

        row = await self._database.writing(remove)
        return None if row is None else _secret(row)

    async def key_ids(self) -> frozenset[str]:
        """Return the ids of all keys that secrets are sealed with. Reads the index ix_secrets_key."""
        return await self._database.reading(_key_ids)

    async def one_of_each_key(self) -> Sequence[SealedSecret]:
        """Return one secret for each key in use."""
        first = select(func.min(secrets.c.project + "\n" + secrets.c.name)).group_by(secrets.c.key_id)
        query = select(secrets).where((secrets.c.project + "\n" + secrets.c.name).in_(first))
        rows = await self._database.reading(lambda connection: connection.execute(query).all())
        return [_sealed(row) for row in rows]

    async def reseal(self, key_id: str, limit: int, reseal: Callable[[SealedSecret], Sealed]) -> int:
        """Seal up to `limit` secrets anew that have another key than this one, and return how many those were."""
        query = select(secrets).where(secrets.c.key_id != key_id).limit(limit)

        def write(connection: Connection) -> int:
            rows = connection.execute(query).all()
            for row in rows:
                sealed = reseal(_sealed(row))
                connection.execute(
                    secrets.update()
                    .where(secrets.c.project == row.project, secrets.c.name == row.name)
                    .values(key_id=sealed.key_id, sealed=sealed.data)
                )
            if rows:
                record_change(connection, "secret.reseal", key_id, secrets=len(rows))
            return len(rows)

        return await self._database.writing(write)

    async def exclusively(self, work: Callable[[frozenset[str]], T]) -> T:
        """Do `work` with the ids of all keys in use, in a write transaction: no secret is sealed meanwhile."""
        return await self._database.writing(lambda connection: work(_key_ids(connection)))


def _key_ids(connection: Connection) -> frozenset[str]:
    return frozenset(connection.execute(select(secrets.c.key_id).distinct()).scalars())


def _check_room(connection: Connection, project: str) -> None:
    count = connection.execute(select(func.count()).where(secrets.c.project == project)).scalar_one()
    if count >= MAX_PROJECT_SECRETS:
        raise InvalidOption(
            f"the project has {count} secrets, the most that are allowed; remove one first",
            option="name",
            limit=MAX_PROJECT_SECRETS,
        )


def _secret(row: Row[Any]) -> Secret:
    return Secret(**{name: row._mapping[name] for name in Secret.model_fields})


def _sealed(row: Row[Any]) -> SealedSecret:
    return SealedSecret(
        project=row.project,
        name=row.name,
        version=row.version,
        size_bytes=row.size_bytes,
        fits_variable=row.fits_variable,
        sealed=Sealed(row.key_id, row.sealed),
    )
