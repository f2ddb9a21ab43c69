"""What maintenance reads and removes: short transactions over bounded batches, each found by an index.

A row goes before its blobs. In the transaction that removes a job's row its id is kept in `removed_jobs`, until its
blobs are gone: whatever dies in between, no row is left without its blobs, and no blob is forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, Table, and_, exists, func, or_, select, tuple_

from belljar.control.store.database import Database
from belljar.control.store.schema import AWAITED, job_labels, jobs, keys, nodes, removed_jobs, scripts
from belljar.model.states import Status


class Batch(NamedTuple):
    """Jobs whose rows were removed, and how long the transaction held the write lock."""

    job_ids: list[str]
    seconds: float


class EndedJob(NamedTuple):
    """A job that has ended, and the place of it in the order of their ends."""

    id: str
    finished_at: datetime
    stdin_bytes: int


class ScriptKey(NamedTuple):
    """What names a script's record."""

    project: str
    id: str


class SqlRetention:
    """Reads and removals of maintenance."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def remove_ended(self, status: Status, before: datetime, limit: int) -> Batch:
        """Remove the rows of at most `limit` jobs that ended so before then, those that ended first."""
        which = (
            select(jobs.c.id, jobs.c.project, jobs.c.script_id, jobs.c.created_at)
            .where(*_ended_before(status, before))
            .order_by(jobs.c.finished_at)
            .limit(limit)
        )

        def remove(connection: Connection) -> tuple[list[str], float]:
            started = time.monotonic()
            rows = connection.execute(which).all()
            ids = [row.id for row in rows]
            if ids:
                _note_uses(connection, rows)
                now = datetime.now(UTC)
                connection.execute(removed_jobs.insert(), [{"id": each, "removed_at": now} for each in ids])
                connection.execute(job_labels.delete().where(job_labels.c.job_id.in_(ids)))
                connection.execute(jobs.delete().where(jobs.c.id.in_(ids)))
            return ids, started

        ids, started = await self._database.writing(remove)
        return Batch(ids, time.monotonic() - started)  # committing is a part of it, and not the smallest

    async def removing(self, limit: int) -> list[str]:
        """At most `limit` jobs whose rows are gone and whose blobs may still be there."""
        query = select(removed_jobs.c.id).limit(limit)
        return await self._database.reading(lambda connection: list(connection.execute(query).scalars()))

    async def removed(self, job_ids: Collection[str]) -> None:
        """The blobs of these jobs are gone."""
        query = removed_jobs.delete().where(removed_jobs.c.id.in_(list(job_ids)))
        await self._database.writing(lambda connection: connection.execute(query))

    async def ended(self, status: Status, after: datetime | None, before: datetime, limit: int) -> list[EndedJob]:
        """Jobs that ended so in that time, in the order of their ends. Those that ended at one moment stay together."""
        stdin = jobs.c.spec["stdin_bytes"].as_integer()
        query = select(jobs.c.id, jobs.c.finished_at, stdin).where(*_ended_before(status, before))
        if after is not None:
            query = query.where(jobs.c.finished_at > after)

        def read(connection: Connection) -> list[EndedJob]:
            rows = list(connection.execute(query.order_by(jobs.c.finished_at).limit(limit)))
            if len(rows) == limit:
                known = {row.id for row in rows}
                together = connection.execute(query.where(jobs.c.finished_at == rows[-1].finished_at))
                rows += [row for row in together if row.id not in known]
            return [EndedJob(job_id, at, size or 0) for job_id, at, size in rows]

        return await self._database.reading(read)

    async def known_jobs(self, job_ids: Collection[str]) -> dict[str, Status]:
        """Those of these jobs that there are, with their status."""
        query = select(jobs.c.id, jobs.c.status).where(jobs.c.id.in_(list(job_ids)))
        rows = await self._database.reading(lambda connection: connection.execute(query).all())
        return {row.id: Status(row.status) for row in rows}

    async def needed_scripts(self, script_ids: Collection[str]) -> set[str]:
        """Those of these scripts that a project has, or that a job that has not ended runs."""
        wanted = list(script_ids)
        recorded = select(scripts.c.id).where(scripts.c.id.in_(wanted))
        awaited = select(jobs.c.script_id).where(jobs.c.script_id.in_(wanted), AWAITED)
        query = recorded.union(awaited)
        return await self._database.reading(lambda connection: set(connection.execute(query).scalars()))

    async def scripts_after(self, after: ScriptKey | None, limit: int) -> list[ScriptKey]:
        """Records of scripts in the order of their keys."""
        return await self._scripts(_scripts_after(after, limit))

    async def unused_scripts(self, before: datetime, after: ScriptKey | None, limit: int) -> list[ScriptKey]:
        """Records of scripts without any job that were not used since then, in the order of their keys."""
        return await self._scripts(_scripts_after(after, limit).where(_unused(before)))

    async def _scripts(self, query: Select[tuple[str, str]]) -> list[ScriptKey]:
        rows = await self._database.reading(lambda connection: connection.execute(query).all())
        return [ScriptKey(row.project, row.id) for row in rows]

    async def remove_unused_script(self, script: ScriptKey, before: datetime) -> bool:
        """Remove one record, if it is still unused. True when no other project and no job needs the script's blob."""
        this = and_(scripts.c.project == script.project, scripts.c.id == script.id)
        awaited = exists().where(jobs.c.script_id == script.id, AWAITED)
        needed = select(or_(exists().where(scripts.c.id == script.id), awaited))

        def remove(connection: Connection) -> bool:
            if connection.execute(scripts.delete().where(this, _unused(before))).rowcount == 0:
                return False
            return not connection.execute(needed).scalar()

        return await self._database.writing(remove)

    async def silent_nodes(self, before: datetime, *, remove: bool) -> int:
        """Return how many nodes had their last heartbeat before then; with `remove`, also remove their records."""
        return await self._records(nodes, nodes.c.heartbeat_at < before, remove)

    async def revoked_keys(self, before: datetime, *, remove: bool) -> int:
        """Return how many keys were revoked before then; with `remove`, also remove their records."""
        return await self._records(keys, keys.c.revoked_at < before, remove)

    async def _records(self, table: Table, which: ColumnElement[bool], remove: bool) -> int:
        count = select(func.count()).select_from(table).where(which)
        found = await self._database.reading(lambda connection: connection.execute(count).scalar_one())
        if not (found and remove):
            return found
        query = table.delete().where(which)
        return await self._database.writing(lambda connection: connection.execute(query).rowcount)


def _note_uses(connection: Connection, removed: Iterable[Any]) -> None:
    """Keep of jobs that go when their scripts were used last."""
    used: dict[ScriptKey, datetime] = {}
    for row in removed:
        script = ScriptKey(row.project, row.script_id)
        used[script] = max(used.get(script, row.created_at), row.created_at)
    for script, at in used.items():
        earlier = or_(scripts.c.used_at.is_(None), scripts.c.used_at < at)
        this = and_(scripts.c.project == script.project, scripts.c.id == script.id)
        connection.execute(scripts.update().where(this, earlier).values(used_at=at))


def _ended_before(status: Status, before: datetime) -> Sequence[ColumnElement[bool]]:
    """Read by ix_jobs_ended, which holds the ended jobs alone."""
    assert status.terminal, f"{status} is no end"
    return jobs.c.status == status.value, jobs.c.finished_at < before


def _unused(before: datetime) -> ColumnElement[bool]:
    has_jobs = exists().where(jobs.c.script_id == scripts.c.id, jobs.c.project == scripts.c.project)
    return and_(func.coalesce(scripts.c.used_at, scripts.c.created_at) < before, ~has_jobs)


def _scripts_after(after: ScriptKey | None, limit: int) -> Select[tuple[str, str]]:
    query = select(scripts.c.project, scripts.c.id).order_by(scripts.c.project, scripts.c.id).limit(limit)
    if after is not None:
        query = query.where(tuple_(scripts.c.project, scripts.c.id) > tuple_(*after))
    return query
