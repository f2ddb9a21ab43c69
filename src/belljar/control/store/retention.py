"""Reads and removals of maintenance: short transactions over bounded batches, each found by an index.

A row is removed before its blobs. The transaction that removes a job's row adds its id to `removed_jobs`, until its
blobs are removed: after a crash in between, no row is without its blobs, and no blob is left for ever.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, Table, and_, exists, func, or_, select, tuple_

from belljar.control.store.database import Database
from belljar.control.store.flows import remove_flows
from belljar.control.store.people_schema import members, people, sessions
from belljar.control.store.schema import (
    AWAITED,
    flows,
    job_ends,
    job_labels,
    jobs,
    keys,
    nodes,
    project_usage,
    removed_jobs,
    scripts,
)
from belljar.control.store.usage_series import remove_usage_series
from belljar.model.ids import first_id
from belljar.model.states import Status


class Batch(NamedTuple):
    """The jobs whose rows were removed, and how long the transaction held the write lock."""

    job_ids: list[str]
    seconds: float


class EndedJob(NamedTuple):
    """An ended job and the time of its end."""

    id: str
    finished_at: datetime
    stdin_bytes: int


class ScriptKey(NamedTuple):
    """The key of a script's record."""

    project: str
    id: str


class SqlRetention:
    """The queries of maintenance."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def remove_ended(self, status: Status, before: datetime, limit: int, project: str | None = None) -> Batch:
        """Remove the rows of at most `limit` jobs that ended with this status before then, oldest first.

        With `project`, only of this one.
        """
        columns = select(jobs.c.id, jobs.c.project, jobs.c.script_id, jobs.c.created_at)
        which = columns.where(*_ended_before(status, before)).order_by(jobs.c.finished_at).limit(limit)
        if project is not None:
            which = columns.where(*_ended_of(project, status, before)).order_by(jobs.c.id).limit(limit)

        def remove(connection: Connection) -> tuple[list[str], float]:
            started = time.monotonic()
            rows = connection.execute(which).all()
            ids = [row.id for row in rows]
            if ids:
                _record_script_uses(connection, rows)
                now = datetime.now(UTC)
                connection.execute(removed_jobs.insert(), [{"id": each, "removed_at": now} for each in ids])
                connection.execute(job_labels.delete().where(job_labels.c.job_id.in_(ids)))
                remove_flows(connection, flows.c.owner.in_(ids))
                remove_usage_series(connection, ids)
                connection.execute(jobs.delete().where(jobs.c.id.in_(ids)))
            return ids, started

        ids, started = await self._database.writing(remove)
        return Batch(ids, time.monotonic() - started)  # committing is part of it

    async def removing(self, limit: int) -> list[str]:
        """Return at most `limit` ids of jobs whose rows are removed and whose blobs may exist."""
        query = select(removed_jobs.c.id).limit(limit)
        return await self._database.reading(lambda connection: list(connection.execute(query).scalars()))

    async def removed(self, job_ids: Collection[str]) -> None:
        """Record that the blobs of these jobs are removed."""
        query = removed_jobs.delete().where(removed_jobs.c.id.in_(list(job_ids)))
        await self._database.writing(lambda connection: connection.execute(query))

    async def ended_of(self, project: str, status: Status, before: datetime, after_id: str, limit: int) -> list[str]:
        """Return a page of ids of the project's jobs that ended with this status before then, by id."""
        which = select(jobs.c.id).where(*_ended_of(project, status, before), jobs.c.id > after_id)
        query = which.order_by(jobs.c.id).limit(limit)
        return await self._database.reading(lambda connection: list(connection.execute(query).scalars()))

    async def ended(self, status: Status, after: datetime | None, before: datetime, limit: int) -> list[EndedJob]:
        """Return jobs that ended with this status in that time, by their end; equal times stay on one page."""
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
        """Return the status of each of these jobs that exists."""
        query = select(jobs.c.id, jobs.c.status).where(jobs.c.id.in_(list(job_ids)))
        rows = await self._database.reading(lambda connection: connection.execute(query).all())
        return {row.id: Status(row.status) for row in rows}

    async def needed_scripts(self, script_ids: Collection[str]) -> set[str]:
        """Return which of these scripts a project has, or a job needs that has not ended."""
        ids = list(script_ids)
        recorded = select(scripts.c.id).where(scripts.c.id.in_(ids))
        awaited = select(jobs.c.script_id).where(jobs.c.script_id.in_(ids), AWAITED)
        query = recorded.union(awaited)
        return await self._database.reading(lambda connection: set(connection.execute(query).scalars()))

    async def scripts_after(self, after: ScriptKey | None, limit: int) -> list[ScriptKey]:
        """Return a page of the records of scripts, by key."""
        return await self._scripts(_scripts_after(after, limit))

    async def unused_scripts(self, before: datetime, after: ScriptKey | None, limit: int) -> list[ScriptKey]:
        """Return a page of the records of scripts without jobs that were not used since then, by key."""
        return await self._scripts(_scripts_after(after, limit).where(_unused(before)))

    async def _scripts(self, query: Select[tuple[str, str]]) -> list[ScriptKey]:
        rows = await self._database.reading(lambda connection: connection.execute(query).all())
        return [ScriptKey(row.project, row.id) for row in rows]

    async def remove_unused_script(self, script: ScriptKey, before: datetime) -> bool:
        """Remove one record if it is still unused. Return whether nothing else needs the script's blob."""
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

    async def old_usage(self, before: datetime, *, remove: bool) -> int:
        """Return how many days of projects' usage are before then; with `remove`, also remove their records."""
        return await self._records(project_usage, project_usage.c.day < before.timestamp() // 86_400, remove)

    async def old_job_ends(self, before: datetime, *, remove: bool) -> int:
        """Return how many counts of ended jobs are from before then; with `remove`, also remove them."""
        return await self._records(job_ends, job_ends.c.minute < before.timestamp() // 60, remove)

    async def revoked_keys(self, before: datetime, *, remove: bool) -> int:
        """Return how many keys were revoked or expired before then; with `remove`, also remove their records."""
        return await self._records(keys, or_(keys.c.revoked_at < before, keys.c.expires_at < before), remove)

    async def ended_sessions(self, before: datetime, *, remove: bool) -> int:
        """Return how many sessions ended or expired before then; with `remove`, also remove their records."""
        return await self._records(sessions, or_(sessions.c.ended_at < before, sessions.c.expires_at < before), remove)

    async def gone_people(self, before: datetime, *, remove: bool) -> int:
        """Return how many people are in no project, have no session, and signed in before then at last."""
        is_member = exists().where(members.c.person_id == people.c.id)
        has_session = exists().where(sessions.c.person_id == people.c.id)
        return await self._records(people, and_(people.c.signed_in_at < before, ~is_member, ~has_session), remove)

    async def _records(self, table: Table, which: ColumnElement[bool], remove: bool) -> int:
        count = select(func.count()).select_from(table).where(which)
        number = await self._database.reading(lambda connection: connection.execute(count).scalar_one())
        if not (number and remove):
            return number
        query = table.delete().where(which)
        return await self._database.writing(lambda connection: connection.execute(query).rowcount)


def _record_script_uses(connection: Connection, removed: Iterable[Any]) -> None:
    """Store when the scripts of removed jobs were last used."""
    used: dict[ScriptKey, datetime] = {}
    for row in removed:
        script = ScriptKey(row.project, row.script_id)
        used[script] = max(used.get(script, row.created_at), row.created_at)
    for script, at in used.items():
        earlier = or_(scripts.c.used_at.is_(None), scripts.c.used_at < at)
        this = and_(scripts.c.project == script.project, scripts.c.id == script.id)
        connection.execute(scripts.update().where(this, earlier).values(used_at=at))


def _ended_before(status: Status, before: datetime) -> Sequence[ColumnElement[bool]]:
    """Return the conditions of ix_jobs_ended, which has ended jobs only."""
    assert status.terminal, f"{status} is not terminal"
    return jobs.c.status == status.value, jobs.c.finished_at < before


def _ended_of(project: str, status: Status, before: datetime) -> Sequence[ColumnElement[bool]]:
    """Return the conditions for a part of ix_jobs_status: a job that ended before then was created before then."""
    assert status.terminal, f"{status} is not terminal"
    created_before = jobs.c.id < first_id("job", before)
    return jobs.c.project == project, jobs.c.status == status.value, created_before, jobs.c.finished_at < before


def _unused(before: datetime) -> ColumnElement[bool]:
    has_jobs = exists().where(jobs.c.script_id == scripts.c.id, jobs.c.project == scripts.c.project)
    return and_(func.coalesce(scripts.c.used_at, scripts.c.created_at) < before, ~has_jobs)


def _scripts_after(after: ScriptKey | None, limit: int) -> Select[tuple[str, str]]:
    query = select(scripts.c.project, scripts.c.id).order_by(scripts.c.project, scripts.c.id).limit(limit)
    if after is not None:
        query = query.where(tuple_(scripts.c.project, scripts.c.id) > tuple_(*after))
    return query
