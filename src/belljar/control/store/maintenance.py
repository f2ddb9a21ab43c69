"""The records of maintenance services: when each ran, what it removed, whether it failed, how far it got."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, select
from sqlalchemy.dialects.sqlite import insert

from belljar.control.store.database import Database
from belljar.control.store.schema import maintenance
from belljar.system.maintenance import ServiceRecord

_MAX_ERROR_CHARACTERS = 500


class SqlMaintenance:
    """The records of maintenance services in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> dict[str, ServiceRecord]:
        """Return the record of each service that ever ran, by its name."""
        rows = await self._database.reading(lambda connection: connection.execute(select(maintenance)).all())
        return {row.service: _record(row) for row in rows}

    async def begin(self, service: str) -> ServiceRecord:
        """Record that the service runs now, and return its record."""
        now = datetime.now(UTC)
        values = {"service": service, "first_run_at": now, "last_run_at": now}
        query = insert(maintenance).values(**values, removed_count=0, removed_bytes=0, failures=0)
        query = query.on_conflict_do_update(index_elements=["service"], set_={"last_run_at": now})

        def begin(connection: Connection) -> ServiceRecord:
            connection.execute(query)
            return _record(connection.execute(select(maintenance).where(maintenance.c.service == service)).one())

        return await self._database.writing(begin)

    async def end(
        self, service: str, *, removed_count: int, removed_bytes: int, error: str | None, done_until: datetime | None
    ) -> None:
        """Record what a run removed, or why it failed. `done_until` None leaves that value unchanged."""
        values: dict[str, Any] = {
            "removed_count": maintenance.c.removed_count + removed_count,
            "removed_bytes": maintenance.c.removed_bytes + removed_bytes,
            "error": error[:_MAX_ERROR_CHARACTERS] if error is not None else None,
        }
        if error is None:
            values["last_success_at"] = datetime.now(UTC)
        else:
            values["failures"] = maintenance.c.failures + 1
        if done_until is not None:
            values["done_until"] = done_until
        query = maintenance.update().where(maintenance.c.service == service).values(**values)
        await self._database.writing(lambda connection: connection.execute(query))


def _record(row: Row[Any]) -> ServiceRecord:
    return ServiceRecord(**row._mapping)
