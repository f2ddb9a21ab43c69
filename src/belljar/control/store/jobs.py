"""What callers read and write of jobs. What workers write is in claims.py."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import BigInteger, ColumnElement, Connection, bindparam, exists, func, select, type_coerce, union
from sqlalchemy.dialects.sqlite import insert

from belljar.control.audit.operation import record_nothing
from belljar.control.quotas.admission import check_submission, without_one_job
from belljar.control.store.audit import record_change
from belljar.control.store.cursor import page_length
from belljar.control.store.database import Database
from belljar.control.store.opening import open_database
from belljar.control.store.quotas import read_use
from belljar.control.store.rows import job_of, values_of
from belljar.control.store.sandbox_tables import LIVE, sandboxes
from belljar.control.store.schema import (
    HAS_QUEUED,
    HELD,
    NOW_US,
    QUEUED,
    job_counts,
    job_labels,
    jobs,
    project_counters,
    projects,
    scripts,
)
from belljar.model.errors import NotFound
from belljar.model.job import Job
from belljar.model.quotas import NO_LIMITS, QuotaLimits
from belljar.model.states import Status
from belljar.settings import Settings

#: SQLite takes some thousands of values in one statement.
_IDS_AT_ONCE = 500

_INSERT = insert(jobs).on_conflict_do_nothing()
_BY_ID = select(jobs).where(jobs.c.id == bindparam("of_id"))


class SqlJobs:
    """The JobStore of `belljar.control.jobs.service`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, job: Job, *, needs_script: bool = False, limits: QuotaLimits = NO_LIMITS) -> Job:
        """Store a new job; return the existing one with its idempotency key, if any.

        Raises NotFound, and QuotaExceeded when a new job exceeds the limits of its project.
        """
        values = values_of(job)
        labels = [
            {"job_id": job.id, "name": name, "value": value, "project": job.project}
            for name, value in job.labels.items()
        ]

        def insert_job(connection: Connection) -> Job:
            if needs_script and not _has_script(connection, job):
                raise NotFound(f"the script {job.script_id} was deleted; upload it again")
            if connection.execute(_INSERT, values).rowcount == 0:
                assert job.idempotency_key is not None
                first = _by_key(connection, job.project, job.idempotency_key)
                assert first is not None
                record_nothing("job.submit")
                return first
            if labels:
                connection.execute(job_labels.insert(), labels)
            if limits.counts:  # the triggers have counted the job; refusing it rolls that back
                check_submission(limits, without_one_job(read_use(connection, job.project)))
            record_change(connection, "job.submit", job.id, project=job.project, script=job.script_id)
            return job

        return await self._database.writing(insert_job)

    async def get(self, project: str | None, job_id: str) -> Job | None:
        """Return the job; None when the project (None: any) does not have it."""

        def get(connection: Connection) -> Job | None:
            row = connection.execute(_BY_ID, {"of_id": job_id}).one_or_none()
            return None if row is None or project not in (None, row.project) else job_of(row)

        return await self._database.reading(get)

    async def by_key(self, project: str, idempotency_key: str) -> Job | None:
        """Return the project's job with this idempotency key."""
        return await self._database.reading(lambda connection: _by_key(connection, project, idempotency_key))

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
        """Return a page of jobs, newest first, and the cursor of the next page. `label` is NAME or NAME=VALUE."""
        query = select(jobs).limit(limit + 1)
        newest = jobs.c.id
        if label is not None:
            # Read in the order of the labels' index: one project, newest first.
            newest = job_labels.c.job_id
            query = query.join_from(job_labels, jobs, jobs.c.id == job_labels.c.job_id).where(*_labelled(label))
            if project is not None:
                query = query.where(job_labels.c.project == project)
        if project is not None:
            query = query.where(jobs.c.project == project)
        if status is not None:
            query = query.where(jobs.c.status == status.value)
        if script_id is not None:
            query = query.where(jobs.c.script_id == script_id)
        if cursor is not None:
            query = query.where(newest < cursor)
        query = query.order_by(newest.desc())

        def page(connection: Connection) -> tuple[list[Job], bool]:
            sizes = query.with_only_columns(func.length(jobs.c.spec) + func.length(jobs.c.result))
            lengths = connection.execute(sizes).scalars().all()
            count = min(limit, page_length(lengths))
            return [job_of(row) for row in connection.execute(query.limit(count)).all()], len(lengths) > count

        jobs_of_page, has_more = await self._database.reading(page)
        return jobs_of_page, jobs_of_page[-1].id if has_more else None

    async def oldest_queued_seconds(self) -> float:
        """Return the time since the submission of the oldest queued job, 0 when none is queued.

        Reads one entry of ix_jobs_status for each project that has queued jobs.
        """
        of_project = (jobs.c.project == project_counters.c.project, jobs.c.status == Status.QUEUED.value)
        first = select(func.min(jobs.c.id)).where(*of_project).scalar_subquery()
        oldest = select(func.min(first)).select_from(project_counters).where(HAS_QUEUED).scalar_subquery()
        query = select(NOW_US - type_coerce(jobs.c.created_at, BigInteger)).where(jobs.c.id == oldest)
        age_us = await self._database.reading(lambda connection: connection.execute(query).scalar_one_or_none())
        return max(0, age_us or 0) / 1_000_000

    async def cancel(self, project: str, job_id: str) -> Job | None:
        """Cancel a queued job, or mark a running one for its worker. Return the job; None when there is none."""
        this = (jobs.c.id == job_id) & (jobs.c.project == project)
        held = jobs.c.status.in_([Status.STARTING.value, Status.RUNNING.value])

        def cancel(connection: Connection) -> Job | None:
            connection.execute(
                jobs.update()
                .where(this, jobs.c.status == Status.QUEUED.value)
                .values(status=Status.CANCELLED.value, cancel_requested=True, finished_at=datetime.now(UTC))
            )
            connection.execute(jobs.update().where(this, held).values(cancel_requested=True))
            row = connection.execute(select(jobs).where(this)).one_or_none()
            if row is None:
                return None
            record_change(connection, "job.cancel", job_id, project=project)
            return job_of(row)

        return await self._database.writing(cancel)

    async def states(self, job_ids: Sequence[str]) -> dict[str, tuple[str, int, bool]]:
        """Return status, attempt and whether to cancel, of each of these jobs that exists."""
        columns = select(jobs.c.id, jobs.c.status, jobs.c.attempt, jobs.c.cancel_requested)

        def states(connection: Connection) -> dict[str, tuple[str, int, bool]]:
            chunks = (job_ids[at : at + _IDS_AT_ONCE] for at in range(0, len(job_ids), _IDS_AT_ONCE))
            rows = (row for chunk in chunks for row in connection.execute(columns.where(jobs.c.id.in_(chunk))))
            return {job_id: (status, attempt, cancel) for job_id, status, attempt, cancel in rows}

        return await self._database.reading(states)

    async def image_digests(self) -> set[str]:
        """Return the digests of the images of jobs and sandboxes that have not ended."""
        of_jobs = [select(jobs.c.image_digest).where(alive) for alive in (QUEUED, HELD)]
        query = union(*of_jobs, select(sandboxes.c.image_digest).where(LIVE))
        digests = await self._database.reading(lambda connection: connection.execute(query).scalars().all())
        return {digest for digest in digests if digest is not None}

    async def counts(self) -> dict[Status, int]:
        """Return the number of jobs of each status that has any."""
        query = select(job_counts.c.status, job_counts.c.number).where(job_counts.c.number > 0)
        rows = await self._database.reading(lambda connection: connection.execute(query).all())
        return {Status(status): number for status, number in rows}


async def needed_images(settings: Settings) -> set[str]:
    """Return the digests of the images of jobs and sandboxes that have not ended, for commands that delete images.

    Raises DataFolderError, HostError; then delete nothing.
    """
    if settings.database_url is None and not settings.paths.database.exists():
        return set()  # no server has used this data folder
    database = await open_database(settings, migrate=False)
    try:
        return await SqlJobs(database).image_digests()
    finally:
        await database.close()


def _has_script(connection: Connection, job: Job) -> bool:
    removed = exists().where(projects.c.name == job.project, projects.c.removed_at.is_not(None))
    query = select(scripts.c.id).where(scripts.c.project == job.project, scripts.c.id == job.script_id, ~removed)
    return connection.execute(query).first() is not None


def _labelled(label: str) -> list[ColumnElement[bool]]:
    name, equals, value = label.partition("=")
    named = job_labels.c.name == name
    return [named, job_labels.c.value == value] if equals else [named]


def _by_key(connection: Connection, project: str, idempotency_key: str) -> Job | None:
    query = select(jobs).where(jobs.c.project == project, jobs.c.idempotency_key == idempotency_key)
    row = connection.execute(query).one_or_none()
    return None if row is None else job_of(row)
