"""What each maintenance service has done: when it ran, what it removed, whether it failed, how far it has come."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, select
from sqlalchemy.dialects.sqlite import insert

from belljar.control.store.database import Database
from belljar.control.store.schema import maintenance

_MAX_ERROR = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceRun:
    """The record of one service, over all its runs."""

    service: str
    first_run_at: datetime
    last_run_at: datetime
    last_success_at: datetime | None
    removed_count: int
    removed_bytes: int
    failures: int
    error: str | None
    #: Everything that ended before this moment has been seen to.
    done_until: datetime | None


class SqlMaintenance:
    """The records of maintenance services."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def runs(self) -> dict[str, ServiceRun]:
        """The record of each service that ever ran, by its name."""
        rows = await self._database.reading(lambda connection: connection.execute(select(maintenance)).all())
        return {row.service: _run(row) for row in rows}

    async def begin(self, service: str) -> ServiceRun:
        """Note that the service runs now; returns its record."""
        now = datetime.now(UTC)
        new = {"service": service, "first_run_at": now, "last_run_at": now}
        query = insert(maintenance).values(**new, removed_count=0, removed_bytes=0, failures=0)
        query = query.on_conflict_do_update(index_elements=["service"], set_={"last_run_at": now})

        def begin(connection: Connection) -> ServiceRun:
            connection.execute(query)
            return _run(connection.execute(select(maintenance).where(maintenance.c.service == service)).one())

        return await self._database.writing(begin)

    async def end(
        self, service: str, *, removed_count: int, removed_bytes: int, error: str | None, done_until: datetime | None
    ) -> None:
        """Note what a run removed, and why it failed, if it did. Without `done_until` that stays as it was."""
        values: dict[str, Any] = {
            "removed_count": maintenance.c.removed_count + removed_count,
            "removed_bytes": maintenance.c.removed_bytes + removed_bytes,
            "error": error[:_MAX_ERROR] if error is not None else None,
        }
        if error is None:
            values["last_success_at"] = datetime.now(UTC)
        else:
            values["failures"] = maintenance.c.failures + 1
        if done_until is not None:
            values["done_until"] = done_until
        query = maintenance.update().where(maintenance.c.service == service).values(**values)
        await self._database.writing(lambda connection: connection.execute(query))


def _run(row: Row[Any]) -> ServiceRun:
    return ServiceRun(**row._mapping)
