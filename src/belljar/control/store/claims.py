"""What workers write of jobs: claim, renew, running, finish, requeue.

Every write is guarded by who holds the job (worker and attempt) and by the table of transitions, in the statement that
writes: an attempt whose lease was lost changes nothing, and a job ends once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from sqlalchemy import BigInteger, ColumnElement, Connection, select, type_coerce

from belljar.control.store.database import Database
from belljar.control.store.job_search import JobSearches
from belljar.control.store.metadata import UtcTime
from belljar.control.store.next_job import CLAIM_FOUND, claim_next_statement, find_statement, parameters
from belljar.control.store.rows import job_of, result_of
from belljar.control.store.schema import HELD, NOW_US, QUEUED, jobs
from belljar.model.errors import HostError, UnknownImage
from belljar.model.job import Job, JobError, LostAttempt, MachineInfo, Timings
from belljar.model.outcome import Outcome
from belljar.model.quotas import NO_LIMITS, QuotaLimits
from belljar.model.resources import NodeLimits
from belljar.model.states import Status, may_become

log = structlog.get_logger()

#: Maximum jobs that end in one transaction.
_BATCH = 100
_ANY_HELD = select(jobs.c.id).where(HELD).limit(1)
#: A trigger counts the time in between (counting.py).
_METER = jobs.update().where(HELD).values(metered_until=NOW_US)
#: The key of a lease: a job's id and the number of the attempt.
Attempt = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Renewed:
    """The result of a renewal; leases in neither set continue."""

    #: The worker does not hold these attempts any more, and its writes about them are refused.
    lost: frozenset[Attempt]
    #: These are to be cancelled.
    cancel_requested: frozenset[Attempt]


class SqlClaims:
    """The queue for workers."""

    def __init__(self, database: Database, default_limits: QuotaLimits = NO_LIMITS) -> None:
        """`default_limits` are those of projects without quotas of their own."""
        self._database = database
        self._default_limits = default_limits
        #: The last readings of the database's clock and of this process's monotonic clock.
        self._clock_seen: tuple[float, float] | None = None
        self._no_expiry_before = 0.0
        self.searches = JobSearches()

    async def claim(
        self,
        worker: str,
        *,
        vcpus: int,
        memory_mb: int,
        lease_seconds: float,
        expected: bool = False,
        largest: NodeLimits | None = None,
        images: Collection[str] | None = None,
        disk_mb: int | None = None,
        incarnation: str = "",
    ) -> Job | None:
        """Claim the next queued job (`next_job`). None when there is none, or it does not fit yet.

        `vcpus` and `memory_mb` are free; `largest` are the worker's resources when nothing runs (None: the same), and
        `images` the digests of its images (None: all). Jobs that could never run on this worker are skipped. No job is
        claimed before the first of the others: the resources that it waits for stay free, since a stream of smaller
        jobs could delay it for ever. Projects that have reached a quota are skipped.

        `disk_mb` is the largest scratch disk that fits; None: any. With `expected` the claim does not check for a job
        before it takes the write lock, unless the worker's last search was long.
        """
        free = NodeLimits(vcpus=vcpus, memory_mb=memory_mb, disk_mb=disk_mb)
        lease_us = int(lease_seconds * 1_000_000)
        values = parameters(worker, incarnation, lease_us, free, largest or free, images, self._default_limits)
        found: dict[str, Any] | None = None
        searches = self.searches
        if not expected or searches.seconds(worker):
            look = find_statement(images)
            first = await self._database.reading(lambda connection: searches.run(worker, connection, look, values))
            if first is None:
                return None  # an idle worker takes no write lock
            found = values | {"id": first.id}
        query = claim_next_statement(images)

        def claim(connection: Connection) -> Job | None:
            row = None if found is None else connection.execute(CLAIM_FOUND, found).one_or_none()
            if row is None:  # another worker was faster
                row = searches.run(worker, connection, query, values)
            return None if row is None else job_of(row)

        claiming = asyncio.ensure_future(self._database.writing(claim))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            while not claiming.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({claiming})
            if claiming.exception() is None and (job := claiming.result()) is not None:
                await self.put_back(worker, job, incarnation=incarnation)
            raise

    async def put_back(self, worker: str, job: Job, *, incarnation: str = "") -> None:
        """Undo a claim that was not made use of; the attempt does not count. Raises no HostError."""
        query = (
            jobs.update()
            .where(*_of_holder(worker, incarnation), jobs.c.id == job.id, jobs.c.attempt == job.attempt)
            .values(status=Status.QUEUED.value, worker=None, attempt=job.attempt - 1, lease_until=None)
        )
        with contextlib.suppress(HostError):  # then its lease expires
            await self._database.writing(lambda connection: connection.execute(query))

    async def renew(
        self, worker: str, attempts: Iterable[Attempt], lease_seconds: float, *, incarnation: str = ""
    ) -> Renewed:
        """Renew the leases of these attempts; those that this process does not hold any more are `lost`."""
        wanted = frozenset(attempts)
        if not wanted:
            return Renewed(frozenset(), frozenset())
        query = (
            jobs.update()
            .where(*_of_holder(worker, incarnation), jobs.c.id.in_([job_id for job_id, _ in wanted]))
            .values(lease_until=_lease(lease_seconds))
            .returning(jobs.c.id, jobs.c.attempt, jobs.c.cancel_requested)
        )
        rows = await self._database.writing(lambda connection: connection.execute(query).all())
        held = {(job_id, attempt): cancel for job_id, attempt, cancel in rows}
        cancelled = frozenset(attempt for attempt, cancel in held.items() if cancel)
        return Renewed(lost=wanted - held.keys(), cancel_requested=wanted & cancelled)

    async def adopt(self, worker: str, incarnation: str, lease_seconds: float) -> list[Job]:
        """Transfer all leases of the worker to this process of it, renew them, and return the jobs.

        An earlier process of the worker holds none of them any more.
        """
        query = (
            jobs.update()
            .where(HELD, jobs.c.worker == worker)
            .values(incarnation=incarnation, lease_until=_lease(lease_seconds))
            .returning(jobs)
        )
        return await self._database.writing(lambda connection: [job_of(row) for row in connection.execute(query).all()])

    async def held(self, worker: str, attempt: Attempt, *, incarnation: str = "") -> Job | None:
        """Return the job of this attempt if this process holds it, else None."""
        job_id, number = attempt
        return await self._database.reading(lambda connection: _held(connection, worker, incarnation, job_id, number))

    async def ended_by(self, worker: str, attempt: Attempt, *, incarnation: str = "") -> bool:
        """Return whether the job has ended, and this attempt of this process was its last."""
        query = select(jobs.c.status).where(
            jobs.c.id == attempt[0],
            jobs.c.attempt == attempt[1],
            jobs.c.worker == worker,
            jobs.c.incarnation == incarnation,
        )
        status = await self._database.reading(lambda connection: connection.execute(query).scalar_one_or_none())
        return status is not None and Status(status).terminal

    async def statuses(self, job_ids: Iterable[str]) -> dict[str, tuple[Status, str | None]]:
        """Return the status and the last worker of each of these jobs that exists."""
        query = select(jobs.c.id, jobs.c.status, jobs.c.worker).where(jobs.c.id.in_(list(job_ids)))
        rows = await self._database.reading(lambda connection: connection.execute(query).all())
        return {job_id: (Status(status), worker) for job_id, status, worker in rows}

    async def cancel_requested(self, worker: str, *, incarnation: str = "") -> set[Attempt]:
        """Return the attempts of this process whose jobs are to be cancelled."""
        query = select(jobs.c.id, jobs.c.attempt).where(
            *_of_holder(worker, incarnation), jobs.c.cancel_requested.is_(True)
        )
        rows = await self._database.reading(lambda connection: connection.execute(query).all())
        return {(job_id, attempt) for job_id, attempt in rows}

    async def note_secrets(self, worker: str, job: Job, versions: dict[str, int], *, incarnation: str = "") -> bool:
        """Record the versions of secrets that the attempt is given. Return False when it does not hold the job."""

        def write(connection: Connection) -> bool:
            now = _held(connection, worker, incarnation, job.id, job.attempt)
            if now is None:
                return False
            result = result_of(now.model_copy(update={"secret_versions": versions}))
            connection.execute(jobs.update().where(jobs.c.id == job.id).values(result=result))
            return True

        return await self._database.writing(write)

    async def running(
        self,
        worker: str,
        job: Job,
        *,
        started_at: datetime,
        machine: MachineInfo,
        timings: Timings,
        incarnation: str = "",
    ) -> bool:
        """Record that the script runs. Return False when this attempt does not hold the job any more."""

        def write(connection: Connection) -> bool:
            now = _held(connection, worker, incarnation, job.id, job.attempt)
            if now is None:
                return False
            if now.status is Status.RUNNING:
                return True  # recorded already
            after = now.model_copy(update={"machine": machine, "timings": timings})
            return _write(connection, now, Status.RUNNING, result=result_of(after), started_at=started_at)

        return await self._database.writing(write)

    async def finish(self, worker: str, job: Job, outcome: Outcome, *, incarnation: str = "") -> bool:
        """End the job. Return False, and write nothing, when this attempt does not hold it any more."""
        known = outcome.model_dump(exclude={"status", "started_at", "finished_at"})
        started = {} if outcome.started_at is None else {"started_at": outcome.started_at}

        def write(connection: Connection) -> bool:
            now = _held(connection, worker, incarnation, job.id, job.attempt)
            if now is None or (outcome.status is Status.SUCCEEDED and not (outcome.started_at or now.started_at)):
                return False  # a script that did not start cannot succeed
            after = Job.model_validate({**now.model_dump(), **known})
            return _write(
                connection,
                now,
                outcome.status,
                result=result_of(after),
                finished_at=outcome.finished_at,
                lease_until=None,
                stored_bytes=_stored_bytes(after),
                **started,
            )

        return await self._database.writing(write)

    async def requeue(self, worker: str, job: Job, *, reason: str, code: str, incarnation: str = "") -> Job | None:
        """Record a lost attempt: queue the job again, or end it after its last attempt.

        Returns the job as it is then; None when this attempt does not hold it any more.
        """

        def write(connection: Connection) -> Job | None:
            now = _held(connection, worker, incarnation, job.id, job.attempt)
            return None if now is None else _lose(connection, now, code, reason)

        return await self._database.writing(write)

    async def meter(self) -> None:
        """Count what the attempts that are held now have used since the last call, for the usage of their projects."""
        if await self._database.reading(lambda connection: connection.execute(_ANY_HELD).first()) is None:
            return
        await self._database.writing(lambda connection: connection.execute(_METER))

    async def watch_clock(self) -> None:
        """Read the database's clock, so that `expire` detects that it was set."""
        await self._clock_jump()

    async def expire(self, lease_seconds: float = 30.0) -> list[Job]:
        """Requeue or end the attempts whose leases have expired.

        To be called every few seconds. When the clock was set forward since the last call, living workers get the time
        of a lease to renew theirs first; when it was set back, leases are cut to the length that they may have.
        """
        jump_seconds = await self._clock_jump()
        if jump_seconds > lease_seconds / 3:
            log.warning("clock_jumped", seconds=round(jump_seconds, 1))
            self._no_expiry_before = time.monotonic() + lease_seconds
        elif jump_seconds < -lease_seconds / 3:
            log.warning("clock_jumped", seconds=round(jump_seconds, 1))
            longest = _lease(lease_seconds)
            query = jobs.update().where(HELD, jobs.c.lease_until > longest).values(lease_until=longest)
            await self._database.writing(lambda connection: connection.execute(query))
        if time.monotonic() < self._no_expiry_before:
            return []
        silent = type_coerce(jobs.c.lease_until, BigInteger) < NOW_US
        return await self._lose_all(silent, "lease_expired", "the lease expired (no heartbeat from the worker)")

    async def fail_without_image(self, images: Collection[str], waited_seconds: float) -> list[Job]:
        """End queued jobs that have waited that long and whose image is not among `images`, those of all nodes."""
        if time.monotonic() < self._no_expiry_before:
            return []  # after a clock jump living nodes look dead
        long_ago = NOW_US - int(waited_seconds * 1_000_000)
        query = select(jobs).where(
            QUEUED, jobs.c.image_digest.not_in(sorted(images)), type_coerce(jobs.c.created_at, BigInteger) < long_ago
        )
        query = query.limit(_BATCH)
        if await self._database.reading(lambda connection: connection.execute(query.limit(1)).first()) is None:
            return []

        def write(connection: Connection) -> list[Job]:
            return [_fail_without_image(connection, job_of(row)) for row in connection.execute(query).all()]

        return await self._database.writing(write)

    async def _clock_jump(self) -> float:
        """Return by how many seconds the database's clock was set since the last call."""
        now_us = await self._database.reading(lambda connection: connection.execute(select(NOW_US)).scalar_one())
        seen, self._clock_seen = self._clock_seen, (now_us / 1_000_000, time.monotonic())
        if seen is None:
            return 0.0
        return (self._clock_seen[0] - seen[0]) - (self._clock_seen[1] - seen[1])

    async def _lose_all(self, which: ColumnElement[bool], code: str, reason: str) -> list[Job]:
        query = select(jobs).where(HELD, which)
        if await self._database.reading(lambda connection: connection.execute(query.limit(1)).first()) is None:
            return []

        def write(connection: Connection) -> list[Job]:
            held = [job_of(row) for row in connection.execute(query).all()]
            return [_lose(connection, job, code, reason) for job in held]

        return await self._database.writing(write)


def _lease(seconds: float) -> ColumnElement[Any]:
    """Return the end of a lease that begins now, by the database's clock."""
    return type_coerce(NOW_US + int(seconds * 1_000_000), UtcTime)


def _of_holder(worker: str, incarnation: str) -> tuple[Any, ...]:
    """Return the condition that this process of this worker holds a job."""
    return HELD, jobs.c.worker == worker, jobs.c.incarnation == incarnation


def _held(connection: Connection, worker: str, incarnation: str, job_id: str, attempt: int) -> Job | None:
    """Return the job, if this attempt of this process holds it."""
    query = select(jobs).where(*_of_holder(worker, incarnation), jobs.c.id == job_id, jobs.c.attempt == attempt)
    row = connection.execute(query).one_or_none()
    return None if row is None else job_of(row)


def _write(connection: Connection, job: Job, status: Status, **values: Any) -> bool:
    allowed = [origin.value for origin in may_become(status)]
    query = jobs.update().where(jobs.c.id == job.id, jobs.c.status.in_(allowed)).values(status=status.value, **values)
    return connection.execute(query).rowcount == 1


def _stored_bytes(job: Job) -> int:
    """Return the size of the job's output and artifacts."""
    output = job.logs.stdout_bytes + job.logs.stderr_bytes
    return output + sum(artifact.size_bytes for artifact in job.kept_artifacts)


def _lose(connection: Connection, job: Job, code: str, reason: str) -> Job:
    """Record a lost attempt, and requeue, cancel or end the job."""
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
    result = result_of(after)
    _write(connection, job, status, result=result, finished_at=finished_at, lease_until=None, **values)
    query = select(jobs).where(jobs.c.id == job.id)
    return job_of(connection.execute(query).one())


def _fail_without_image(connection: Connection, job: Job) -> Job:
    message = (
        f"no node here has the image {job.image} (sha256:{(job.image_digest or '')[:12]}) any more; build or "
        "import it, and submit the job again"
    )
    after = job.model_copy(update={"error": JobError(code=UnknownImage.code, message=message)})
    _write(connection, job, Status.FAILED, result=result_of(after), finished_at=datetime.now(UTC))
    return job_of(connection.execute(select(jobs).where(jobs.c.id == job.id)).one())
