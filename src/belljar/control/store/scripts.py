"""Records of scripts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, exists, or_, select
from sqlalchemy.dialects.sqlite import insert

from belljar.control.store.cursor import decode, encode
from belljar.control.store.database import Database
from belljar.control.store.schema import AWAITED, jobs, scripts
from belljar.model.script import Script

#: A use is not noted again before this time has passed: periods are counted in days.
_USED_LATELY = timedelta(hours=1)
#: Made once: each submitted job looks its script up.
_ONE = select(scripts).where(scripts.c.project == bindparam("in_project"), scripts.c.id == bindparam("of_id"))


class SqlScripts:
    """The ScriptStore of `belljar.control.scripts.service`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, script: Script) -> Script:
        which = {"in_project": script.project, "of_id": script.id}
        there = await self._database.reading(lambda connection: connection.execute(_ONE, which).one_or_none())
        if there is not None and _script(there).dependencies == script.dependencies:
            await self._note_use(there)
            return _script(there)
        values = script.model_dump() | {"dependencies": _dependencies(script)}
        # Of a script that an older belljar took it is not known yet; of any other it is the same.
        query = insert(scripts).values(values)
        query = query.on_conflict_do_update(
            index_elements=["project", "id"], set_={"dependencies": query.excluded.dependencies}
        )

        def add(connection: Connection) -> Script:
            connection.execute(query)
            return _script(connection.execute(_ONE, which).one())

        return await self._database.writing(add)

    async def _note_use(self, row: Row[Any]) -> None:
        """Whoever uploads a script again means to use it: then it is kept as if it were new."""
        now = datetime.now(UTC)
        if now - (row.used_at or row.created_at) < _USED_LATELY:
            return
        this = (scripts.c.project == row.project) & (scripts.c.id == row.id)
        query = scripts.update().where(this).values(used_at=now)
        await self._database.writing(lambda connection: connection.execute(query))

    async def get(self, project: str, script_id: str) -> Script | None:
        which = {"in_project": project, "of_id": script_id}
        row = await self._database.reading(lambda connection: connection.execute(_ONE, which).one_or_none())
        return None if row is None else _script(row)

    async def list(self, project: str, limit: int, cursor: str | None) -> tuple[list[Script], str | None]:
        query = select(scripts).where(scripts.c.project == project)
        if cursor is not None:
            at, script_id = decode(cursor)
            older = scripts.c.created_at < at
            query = query.where(scripts.c.created_at <= at)  # where the index is read from
            query = query.where(or_(older, and_(scripts.c.created_at == at, scripts.c.id < script_id)))
        query = query.order_by(scripts.c.created_at.desc(), scripts.c.id.desc()).limit(limit + 1)
        async with self._database.read() as connection:
            found = [_script(row) for row in await connection.execute(query)]
        if len(found) <= limit:
            return found, None
        last = found[limit - 1]
        return found[:limit], encode(last.created_at, last.id)

    async def delete(self, project: str, script_id: str) -> bool | None:
        this = (scripts.c.project == project) & (scripts.c.id == script_id)

        def delete(connection: Connection) -> bool | None:
            # One transaction: a job is accepted before it, and counts, or after it, and finds no script.
            if connection.execute(scripts.delete().where(this)).rowcount == 0:
                return None
            return _used(connection, script_id)

        return await self._database.writing(delete)

    async def used(self, script_id: str) -> bool:
        return await self._database.reading(lambda connection: _used(connection, script_id))


def _used(connection: Connection, script_id: str) -> bool:
    recorded = exists().where(scripts.c.id == script_id)
    awaited = exists().where(jobs.c.script_id == script_id, AWAITED)
    return bool(connection.execute(select(or_(recorded, awaited))).scalar())


def _dependencies(script: Script) -> Any:
    return script.dependencies.model_dump(mode="json") if script.dependencies is not None else None


def _script(row: Row[Any]) -> Script:
    return Script(**{name: row._mapping[name] for name in Script.model_fields})
