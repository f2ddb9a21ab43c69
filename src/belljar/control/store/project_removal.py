"""Removes the rows of projects that are being removed, in short transactions over bounded batches.

A new table with a column `project` belongs in one of the lists below; a test holds it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Connection, Table, exists, select, tuple_

from belljar.control.store.database import Database
from belljar.control.store.flows import remove_flows
from belljar.control.store.people_schema import members
from belljar.control.store.sandbox_tables import port_tokens, sandbox_labels, sandboxes, snapshots
from belljar.control.store.schema import (
    HELD,
    QUEUED,
    audit,
    flows,
    job_ends,
    job_labels,
    jobs,
    keys,
    node_counters,
    project_counters,
    project_quotas,
    project_usage,
    projects,
    removed_jobs,
    scripts,
    secrets,
    usage_series,
)
from belljar.control.store.usage_series import remove_usage_series
from belljar.model.states import Status

#: Tables whose rows need nothing else to be removed than themselves, in this order.
PLAIN_TABLES: tuple[Table, ...] = (
    keys,
    members,
    secrets,
    port_tokens,
    sandbox_labels,
    snapshots,  # their nodes remove the frozen machines that no row names
    usage_series,
    sandboxes,  # a node whose lease is gone with its row ends the machine
    flows,
    project_quotas,
    project_usage,
    job_ends,
    node_counters,
    project_counters,
)
#: Tables whose rows are removed with blobs: `remove_jobs`, and `belljar.control.maintenance.projects` for scripts.
TABLES_WITH_BLOBS: tuple[Table, ...] = (jobs, job_labels, scripts)
#: Tables whose rows stay, such as a record of who did what.
KEPT_TABLES: tuple[Table, ...] = (audit,)


class Batch(NamedTuple):
    """How many rows were changed, and how long the transaction held the write lock."""

    rows: int
    seconds: float


class SqlProjectRemoval:
    """What maintenance does to a project that is being removed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def projects(self) -> list[str]:
        """Return the names of the projects that are being removed."""
        query = select(projects.c.name).where(projects.c.removed_at.is_not(None)).order_by(projects.c.name)
        return await self._database.reading(lambda connection: list(connection.execute(query).scalars()))

    async def cancel_jobs(self, project: str, limit: int) -> Batch:
        """Cancel at most `limit` queued jobs, and request that the running ones are cancelled."""
        queued = select(jobs.c.id).where(jobs.c.project == project, jobs.c.status == Status.QUEUED.value).limit(limit)
        cancel = jobs.update().where(jobs.c.id.in_(queued.scalar_subquery()), QUEUED)
        running = jobs.update().where(HELD, jobs.c.project == project, jobs.c.cancel_requested.is_(False))

        def cancel_jobs(connection: Connection) -> int:
            connection.execute(running.values(cancel_requested=True))
            values = {"status": Status.CANCELLED.value, "cancel_requested": True, "finished_at": datetime.now(UTC)}
            return connection.execute(cancel.values(**values)).rowcount

        return await self._timed(cancel_jobs)

    async def remove_jobs(self, project: str, limit: int) -> Batch:
        """Remove the rows of at most `limit` ended jobs. `removed_jobs` lists them until their blobs are removed."""
        which = select(jobs.c.id).where(jobs.c.project == project, jobs.c.finished_at.is_not(None)).limit(limit)

        def remove(connection: Connection) -> int:
            ids = connection.execute(which).scalars().all()
            if ids:
                now = datetime.now(UTC)
                connection.execute(removed_jobs.insert(), [{"id": each, "removed_at": now} for each in ids])
                connection.execute(job_labels.delete().where(job_labels.c.job_id.in_(ids)))
                remove_flows(connection, flows.c.owner.in_(ids))
                remove_usage_series(connection, ids)
                connection.execute(jobs.delete().where(jobs.c.id.in_(ids)))
            return len(ids)

        return await self._timed(remove)

    async def scripts(self, project: str, limit: int) -> list[str]:
        """Return at most `limit` ids of scripts that the project has."""
        query = select(scripts.c.id).where(scripts.c.project == project).limit(limit)
        return await self._database.reading(lambda connection: list(connection.execute(query).scalars()))

    async def remove_rows(self, table: Table, project: str, limit: int) -> Batch:
        """Remove at most `limit` rows of the project from one of `PLAIN_TABLES`."""
        key = tuple_(*table.primary_key.columns)
        which = select(*table.primary_key.columns).where(table.c.project == project).limit(limit)
        query = table.delete().where(key.in_(which))
        return await self._timed(lambda connection: connection.execute(query).rowcount)

    async def finish(self, project: str, before: datetime) -> None:
        """Remove the project itself if its removal began before then and nothing of it is left."""
        tables = (*PLAIN_TABLES, jobs, scripts)
        left = [exists().where(table.c.project == project) for table in tables]
        this = projects.c.name == project
        query = projects.delete().where(this, projects.c.removed_at < before, *(~each for each in left))
        await self._database.writing(lambda connection: connection.execute(query))

    async def _timed(self, work: Callable[[Connection], int]) -> Batch:
        def timed(connection: Connection) -> tuple[int, float]:
            started = time.monotonic()
            return work(connection), started

        count, started = await self._database.writing(timed)
        return Batch(count, time.monotonic() - started)  # committing is part of it
