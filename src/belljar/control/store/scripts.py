"""The records of scripts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, exists, or_, select
from sqlalchemy.dialects.sqlite import insert

from belljar.control.audit.operation import record_nothing
from belljar.control.quotas.admission import check_stored
from belljar.control.store.audit import record_change
from belljar.control.store.cursor import decode, encode
from belljar.control.store.database import Database
from belljar.control.store.projects import being_removed
from belljar.control.store.quotas import read_use
from belljar.control.store.schema import AWAITED, jobs, projects, scripts
from belljar.model.quotas import NO_LIMITS, QuotaLimits
from belljar.model.script import Script

#: A use is stored at most this often: retention periods are in days.
_USE_INTERVAL = timedelta(hours=1)
#: Compiled once: each submission reads its script.
_BY_ID = select(scripts).where(scripts.c.project == bindparam("in_project"), scripts.c.id == bindparam("of_id"))


class SqlScripts:
    """The ScriptStore of `belljar.control.scripts.service`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, script: Script, *, limits: QuotaLimits = NO_LIMITS) -> Script:
        """Store the record; return the existing one when the project has the script.

        Raises ProjectConflict for a project that is being removed, QuotaExceeded when a new script exceeds the storage
        of its project.
        """
        key = {"in_project": script.project, "of_id": script.id}
        row = await self._database.reading(lambda connection: connection.execute(_BY_ID, key).one_or_none())
        if row is not None and _script(row).dependencies == script.dependencies:
            record_nothing("script.upload")
            await self._record_use(row)
            return _script(row)
        values = script.model_dump() | {"dependencies": _dependencies(script)}
        # A script from an older version has no dependencies in its record; for any other they are equal.
        query = insert(scripts).values(values)
        query = query.on_conflict_do_update(
            index_elements=["project", "id"], set_={"dependencies": query.excluded.dependencies}
        )

        removed = exists().where(projects.c.name == script.project, projects.c.removed_at.is_not(None))

        def add(connection: Connection) -> Script:
            if connection.execute(select(removed)).scalar():
                raise being_removed(script.project)
            connection.execute(query)
            if row is None and limits.max_storage_mb is not None:
                check_stored(limits, read_use(connection, script.project))
            record_change(connection, "script.upload", script.id, project=script.project, name=script.name)
            return _script(connection.execute(_BY_ID, key).one())

        return await self._database.writing(add)

    async def _record_use(self, row: Row[Any]) -> None:
        """Count a repeated upload as a use, which starts the retention period again."""
        now = datetime.now(UTC)
        if now - (row.used_at or row.created_at) < _USE_INTERVAL:
            return
        this = (scripts.c.project == row.project) & (scripts.c.id == row.id)
        query = scripts.update().where(this).values(used_at=now)
        await self._database.writing(lambda connection: connection.execute(query))

    async def get(self, project: str, script_id: str) -> Script | None:
        """Return the record; None when the project does not have the script."""
        key = {"in_project": project, "of_id": script_id}
        row = await self._database.reading(lambda connection: connection.execute(_BY_ID, key).one_or_none())
        return None if row is None else _script(row)

    async def list(self, project: str, limit: int, cursor: str | None) -> tuple[list[Script], str | None]:
        """Return a page of the project's scripts, newest first, and the cursor of the next page."""
        query = select(scripts).where(scripts.c.project == project)
        if cursor is not None:
            at, script_id = decode(cursor)
            older = scripts.c.created_at < at
            query = query.where(scripts.c.created_at <= at)  # the start in the index
            query = query.where(or_(older, and_(scripts.c.created_at == at, scripts.c.id < script_id)))
        query = query.order_by(scripts.c.created_at.desc(), scripts.c.id.desc()).limit(limit + 1)
        async with self._database.read() as connection:
            page = [_script(row) for row in await connection.execute(query)]
        if len(page) <= limit:
            return page, None
        last = page[limit - 1]
        return page[:limit], encode(last.created_at, last.id)

    async def delete(self, project: str, script_id: str) -> bool | None:
        """Delete the record. Return whether the disk is still needed; None when there was no record."""
        this = (scripts.c.project == project) & (scripts.c.id == script_id)

        def delete(connection: Connection) -> bool | None:
            # One transaction: a job is submitted before it and counts, or after it and finds no script.
            if connection.execute(scripts.delete().where(this)).rowcount == 0:
                return None
            record_change(connection, "script.delete", script_id, project=project)
            return _used(connection, script_id)

        return await self._database.writing(delete)

    async def used(self, script_id: str) -> bool:
        """Return whether any project has the script, or a job that has not ended runs it."""
        return await self._database.reading(lambda connection: _used(connection, script_id))


def _used(connection: Connection, script_id: str) -> bool:
    recorded = exists().where(scripts.c.id == script_id)
    awaited = exists().where(jobs.c.script_id == script_id, AWAITED)
    return bool(connection.execute(select(or_(recorded, awaited))).scalar())


def _dependencies(script: Script) -> Any:
    return script.dependencies.model_dump(mode="json") if script.dependencies is not None else None


def _script(row: Row[Any]) -> Script:
    return Script(**{name: row._mapping[name] for name in Script.model_fields})
