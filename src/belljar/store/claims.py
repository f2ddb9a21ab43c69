"""What workers write about jobs: claim, renew, running, finish, give back.

Every write is guarded by who holds the job (worker and attempt) and by the table of transitions, in the statement that
writes: an attempt whose lease was lost changes nothing, and a job ends once.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncConnection

from belljar.jobs.model import Job, JobError, LostAttempt, MachineInfo, Timings
from belljar.jobs.outcome import Outcome
from belljar.jobs.states import Status, may_become
from belljar.store.database import Database
from belljar.store.rows import found_of, job_of
from belljar.store.schema import jobs

_HELD = [Status.STARTING.value, Status.RUNNING.value]


class SqlClaims:
    """The queue, as workers see it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(
        self,
        worker: str,
        *,
        vcpus: int,
        memory_mb: int,
        lease_seconds: float,
        disk_mb: int | None = None,
        expected: bool = False,
    ) -> Job | None:
        """Take the first queued job that fits: by priority, then by age. None when there is none.

        `disk_mb` is the largest scratch disk that there is room for; None: any. `expected`: there is likely to be one,
        and it need not be looked for first.
        """
        now = datetime.now(UTC)
        # One index, ix_jobs_queue: the status's rows in this order, read until one fits.
        first = (
            select(jobs.c.id)
            .where(jobs.c.status == Status.QUEUED.value, jobs.c.vcpus <= vcpus, jobs.c.memory_mb <= memory_mb)
            .order_by(jobs.c.priority.desc(), jobs.c.id)
            .limit(1)
        )
        if disk_mb is not None:
            first = first.where(jobs.c.disk_mb <= disk_mb)
        if not expected:
            async with self._database.read() as connection:
                if (await connection.execute(first)).first() is None:
                    return None  # an idle worker takes no write lock
        query = (
            jobs.update()
            .where(jobs.c.id == first.scalar_subquery())
            .values(
                status=Status.STARTING.value,
                worker=worker,
                attempt=jobs.c.attempt + 1,
                lease_until=now + timedelta(seconds=lease_seconds),
                started_at=None,
            )
            .returning(jobs)
        )
        async with self._database.write() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else job_of(row)

    async def renew(self, worker: str, job_ids: Iterable[str], lease_seconds: float) -> set[str]:
        """Hold these jobs for another lease; returns those that somebody wants cancelled."""
        until = datetime.now(UTC) + timedelta(seconds=lease_seconds)
        mine = (jobs.c.id.in_(list(job_ids))) & (jobs.c.worker == worker) & jobs.c.status.in_(_HELD)
        async with self._database.write() as connection:
            await connection.execute(jobs.update().where(mine).values(lease_until=until))
        return await self.cancel_requested(worker)

    async def cancel_requested(self, worker: str) -> set[str]:
        """Which of the jobs that this worker holds somebody wants cancelled."""
        query = select(jobs.c.id).where(
            jobs.c.status.in_(_HELD), jobs.c.worker == worker, jobs.c.cancel_requested.is_(True)
        )
        async with self._database.read() as connection:
            return set((await connection.execute(query)).scalars())

    async def running(
        self, worker: str, job: Job, *, started_at: datetime, machine: MachineInfo, timings: Timings
    ) -> bool:
        """The entrypoint runs. False when this attempt does not hold the job any more."""
        async with self._database.write() as connection:
            now = await _held(connection, worker, job)
            if now is None:
                return False
            after = now.model_copy(update={"machine": machine, "timings": timings})
            return await _write(connection, now, Status.RUNNING, found=found_of(after), started_at=started_at)

    async def finish(self, worker: str, job: Job, outcome: Outcome) -> bool:
        """End the job. False when this attempt does not hold it any more: nothing is written then."""
        async with self._database.write() as connection:
            now = await _held(connection, worker, job)
            if now is None or (outcome.status is Status.SUCCEEDED and not (outcome.started_at or now.started_at)):
                return False  # what has not begun has not succeeded
            known = outcome.model_dump(exclude={"status", "started_at", "finished_at"})
            after = Job.model_validate({**now.model_dump(), **known})
            started = {} if outcome.started_at is None else {"started_at": outcome.started_at}
            return await _write(
                connection,
                now,
                outcome.status,
                found=found_of(after),
                finished_at=outcome.finished_at,
                lease_until=None,
                **started,
            )

    async def requeue(self, worker: str, job: Job, *, reason: str, code: str) -> Job | None:
        """Infrastructure lost the attempt: queue the job again, or end it when it has had its attempts.

        Returns the job as it is then; None when this attempt does not hold it any more.
        """
        async with self._database.write() as connection:
            now = await _held(connection, worker, job)
            return None if now is None else await _lose(connection, now, code, reason)

    async def recover(self, worker: str) -> list[Job]:
        """What this worker held when it was killed: lose those attempts. To be called before its first claim."""
        mine = jobs.c.worker == worker
        return await self._lose_all(mine, "worker_died", "the worker was killed in the middle of it")

    async def expire(self) -> list[Job]:
        """Lose the attempts of workers that have been silent for longer than their leases."""
        silent = jobs.c.lease_until < datetime.now(UTC)
        return await self._lose_all(silent, "lease_expired", "its worker has been silent for too long")

    async def _lose_all(self, which: ColumnElement[bool], code: str, reason: str) -> list[Job]:
        query = select(jobs).where(jobs.c.status.in_(_HELD), which)
        async with self._database.read() as connection:
            if (await connection.execute(query.limit(1))).first() is None:
                return []
        async with self._database.write() as connection:
            held = [job_of(row) for row in await connection.execute(query)]
            return [await _lose(connection, job, code, reason) for job in held]


async def _held(connection: AsyncConnection, worker: str, job: Job) -> Job | None:
    """The job's row, if this attempt of this worker holds it."""
    query = select(jobs).where(
        jobs.c.id == job.id,
        jobs.c.worker == worker,
        jobs.c.attempt == job.attempt,
        jobs.c.status.in_(_HELD),
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else job_of(row)


async def _write(connection: AsyncConnection, job: Job, status: Status, **values: Any) -> bool:
    allowed = [origin.value for origin in may_become(status)]
    query = jobs.update().where(jobs.c.id == job.id, jobs.c.status.in_(allowed)).values(status=status.value, **values)
    return (await connection.execute(query)).rowcount == 1


async def _lose(connection: AsyncConnection, job: Job, code: str, reason: str) -> Job:
    """Write down a lost attempt; what comes next depends on how many there were and whether anybody still wants it."""
    lost = LostAttempt(
        attempt=job.attempt,
        worker=job.worker or "",
        had_started=job.status is Status.RUNNING,
        code=code,
        message=reason,
        at=datetime.now(UTC),
    )
    after = job.model_copy(update={"lost_attempts": (*job.lost_attempts, lost), "machine": None, "timings": Timings()})
    status, finished_at = Status.QUEUED, None
    if job.cancel_requested:
        status, finished_at = Status.CANCELLED, lost.at
    elif job.attempt >= job.max_attempts:
        status, finished_at = Status.LOST, lost.at
        message = f"{reason} ({job.attempt} of {job.max_attempts} attempts; allow more with max_attempts)"
        after = after.model_copy(update={"error": JobError(code=code, message=message)})
    values = {"worker": None, "started_at": None} if status is Status.QUEUED else {}
    found = found_of(after)
    await _write(connection, job, status, found=found, finished_at=finished_at, lease_until=None, **values)
    query = select(jobs).where(jobs.c.id == job.id)
    return job_of((await connection.execute(query)).one())
