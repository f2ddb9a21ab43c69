"""Jobs as callers write and read them. What workers write is in claims.py."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from belljar.errors import NotFound
from belljar.jobs.model import Job
from belljar.jobs.states import Status
from belljar.store.database import Database
from belljar.store.rows import job_of, values_of
from belljar.store.schema import job_labels, jobs, scripts

#: SQLite takes some thousands of values in one statement.
_IDS_AT_ONCE = 500
#: A page ends early where its jobs are long: a job may have a megabyte of arguments.
_PAGE_CHARACTERS = 2 * 1024 * 1024
_JOBS_AT_ONCE = 25


class SqlJobs:
    """The JobStore of `belljar.jobs.service`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, job: Job, *, needs_script: bool = False) -> Job:
        async with self._database.write() as connection:
            if needs_script and not await _has_script(connection, job):
                raise NotFound(f"the script {job.script_id} was deleted meanwhile; upload it again")
            query = insert(jobs).values(values_of(job)).on_conflict_do_nothing()
            if (await connection.execute(query)).rowcount == 0:
                assert job.idempotency_key is not None
                first = await _by_key(connection, job.project, job.idempotency_key)
                assert first is not None
                return first
            if job.labels:
                rows = [{"job_id": job.id, "name": name, "value": value} for name, value in job.labels.items()]
                await connection.execute(job_labels.insert(), rows)
        return job

    async def get(self, project: str | None, job_id: str) -> Job | None:
        query = select(jobs).where(jobs.c.id == job_id)
        if project is not None:
            query = query.where(jobs.c.project == project)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else job_of(row)

    async def by_key(self, project: str, idempotency_key: str) -> Job | None:
        async with self._database.read() as connection:
            return await _by_key(connection, project, idempotency_key)

    async def list(
        self,
        project: str | None,
        *,
        status: Status | None = None,
        script_id: str | None = None,
        label: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[Job], str | None]:
        query = select(jobs).order_by(jobs.c.id.desc()).limit(limit + 1)
        if project is not None:
            query = query.where(jobs.c.project == project)
        if status is not None:
            query = query.where(jobs.c.status == status.value)
        if script_id is not None:
            query = query.where(jobs.c.script_id == script_id)
        if label is not None:
            query = query.where(jobs.c.id.in_(_labelled(label)))
        if cursor is not None:
            query = query.where(jobs.c.id < cursor)
        async with self._database.read() as connection:
            sizes = query.with_only_columns(func.length(jobs.c.asked) + func.length(jobs.c.found))
            lengths = (await connection.execute(sizes)).scalars().all()
            count = min(limit, _page_length(lengths))
            rows = (await connection.execute(query.limit(count))).all()
        found = []
        for number, row in enumerate(rows, 1):
            found.append(job_of(row))
            if number % _JOBS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return found, found[-1].id if len(lengths) > count else None

    async def cancel(self, project: str, job_id: str) -> Job | None:
        this = (jobs.c.id == job_id) & (jobs.c.project == project)
        held = jobs.c.status.in_([Status.STARTING.value, Status.RUNNING.value])
        async with self._database.write() as connection:
            await connection.execute(
                jobs.update()
                .where(this, jobs.c.status == Status.QUEUED.value)
                .values(status=Status.CANCELLED.value, cancel_requested=True, finished_at=datetime.now(UTC))
            )
            await connection.execute(jobs.update().where(this, held).values(cancel_requested=True))
            row = (await connection.execute(select(jobs).where(this))).one_or_none()
        return None if row is None else job_of(row)

    async def states(self, job_ids: Sequence[str]) -> dict[str, tuple[str, int, bool]]:
        """What waiters wait for: status, attempt, and whether it is to be cancelled, of those jobs that are there."""
        found: dict[str, tuple[str, int, bool]] = {}
        for at in range(0, len(job_ids), _IDS_AT_ONCE):
            some = job_ids[at : at + _IDS_AT_ONCE]
            query = select(jobs.c.id, jobs.c.status, jobs.c.attempt, jobs.c.cancel_requested).where(jobs.c.id.in_(some))
            async with self._database.read() as connection:
                for job_id, status, attempt, cancel in await connection.execute(query):
                    found[job_id] = status, attempt, cancel
        return found

    async def image_digests(self) -> set[str]:
        """The images of jobs that have not ended: few rows, found by the index over the status."""
        alive = [status.value for status in Status if not status.terminal]
        query = select(jobs.c.asked).where(jobs.c.status.in_(alive))
        async with self._database.read() as connection:
            asked = (await connection.execute(query)).scalars().all()
        return {fields["image_digest"] for fields in asked if fields.get("image_digest")}

    async def counts(self) -> dict[Status, int]:
        """How many jobs there are of each status that has any."""
        async with self._database.read() as connection:
            rows = await connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status))
            return {Status(status): number for status, number in rows}


async def _has_script(connection: AsyncConnection, job: Job) -> bool:
    query = select(scripts.c.id).where(scripts.c.project == job.project, scripts.c.id == job.script_id)
    return (await connection.execute(query)).first() is not None


def _page_length(lengths: Sequence[int]) -> int:
    """How many jobs of these lengths make a page: one at least."""
    total = 0
    for count, length in enumerate(lengths):
        total += length
        if total > _PAGE_CHARACTERS:
            return max(1, count)
    return len(lengths)


def _labelled(label: str) -> Any:
    name, equals, value = label.partition("=")
    query = select(job_labels.c.job_id).where(job_labels.c.name == name)
    return query.where(job_labels.c.value == value) if equals else query


async def _by_key(connection: AsyncConnection, project: str, idempotency_key: str) -> Job | None:
    query = select(jobs).where(jobs.c.project == project, jobs.c.idempotency_key == idempotency_key)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else job_of(row)
