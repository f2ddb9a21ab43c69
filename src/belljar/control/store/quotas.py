"""The quotas of projects, and what each has used of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select, text
from sqlalchemy.dialects.sqlite import insert

from belljar.control.store.audit import record_change
from belljar.control.store.counting import DAY_US, MINUTE_US, NOW
from belljar.control.store.database import Database
from belljar.control.store.projects import require_project
from belljar.control.store.schema import project_quotas, project_usage
from belljar.model.quotas import UNLIMITED, UNLIMITED_VALUE, CountedQuota, ProjectQuotas, Use

_NAMES = tuple(ProjectQuotas.model_fields)
_OF_PROJECT = select(project_quotas).where(project_quotas.c.project == bindparam("of_project"))
_MIB = 1024 * 1024
#: Read by each submission of a project that has a limit.
_USE = text(
    f"""
    SELECT {NOW} AS now_us, c.queued_jobs, c.held_jobs, c.script_bytes + c.job_bytes AS bytes, c.minute, c.minute_jobs,
        u.jobs AS day_jobs, u.vcpu_ms, u.memory_mb_ms,
        (SELECT count(*) FROM sandboxes AS s WHERE s.project = :project AND s.ended_at IS NULL) AS sandboxes,
        (SELECT sum(s.vcpus) FROM sandboxes AS s
            WHERE s.project = :project AND s.ended_at IS NULL AND s.status <> 'paused') AS sandbox_vcpus
    FROM (SELECT :project AS project) AS this
    LEFT JOIN project_counters AS c ON c.project = this.project
    LEFT JOIN project_usage AS u ON u.project = this.project AND u.day = {NOW} / {DAY_US}
    """  # noqa: S608 (constants)
)
#: Projects with queued jobs that claims pass over, by the quota that they have reached.
_AT_LIMIT = text(
    f"""
    SELECT count(*), coalesce(sum(c.held_jobs >= coalesce(q.max_running_jobs, :max_running_jobs)), 0),
        coalesce(sum(coalesce(u.vcpu_ms, 0) / 1000
            >= coalesce(q.max_vcpu_seconds_per_day, :max_vcpu_seconds_per_day)), 0),
        coalesce(sum(coalesce(u.memory_mb_ms, 0) / 1000
            >= coalesce(q.max_memory_mb_seconds_per_day, :max_memory_mb_seconds_per_day)), 0)
    FROM project_counters AS c
    LEFT JOIN project_quotas AS q ON q.project = c.project
    LEFT JOIN project_usage AS u ON u.project = c.project AND u.day = {NOW} / {DAY_US}
    WHERE c.queued_jobs > 0
    """  # noqa: S608 (constants)
)
#: The quotas that keep queued jobs from starting, in the order of `_AT_LIMIT`.
HOLDING_QUOTAS = (CountedQuota.RUNNING_JOBS, CountedQuota.VCPU_SECONDS, CountedQuota.MEMORY_MB_SECONDS)


@dataclass(frozen=True, kw_only=True, slots=True)
class DayUsage:
    """What a project used on one day (UTC)."""

    day: date
    jobs: int = 0
    vcpu_seconds: float = 0.0
    memory_mb_seconds: float = 0.0


class SqlQuotas:
    """The tables of quotas and their use. Triggers write the use (counting.py)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, project: str) -> ProjectQuotas:
        """Return the quotas that were set for the project."""
        return await self._database.reading(lambda connection: _read(connection, project))

    async def set(self, project: str, quotas: ProjectQuotas) -> None:
        """Replace the quotas of the project. Raises NotFound, ProjectConflict."""

        def write(connection: Connection) -> None:
            require_project(connection, project)
            _write(connection, project, quotas)

        await self._database.writing(write)

    async def change(self, project: str, changes: dict[str, Any]) -> ProjectQuotas:
        """Change some quotas of the project by name, and return all of them.

        Raises NotFound, ProjectConflict, ValidationError.
        """

        def change(connection: Connection) -> ProjectQuotas:
            require_project(connection, project)
            quotas = ProjectQuotas.model_validate(_read(connection, project).model_dump() | changes)
            _write(connection, project, quotas)
            return quotas

        return await self._database.writing(change)

    async def use(self, project: str) -> Use:
        """Return what the project has used of each quota."""
        return await self._database.reading(lambda connection: read_use(connection, project))

    async def days(self, project: str, count: int) -> list[DayUsage]:
        """Return what the project used on each of the last days, today first, days without use too."""
        today_of = text(f"SELECT {NOW} / {DAY_US}")

        def read(connection: Connection) -> list[DayUsage]:
            today = connection.execute(today_of).scalar_one()
            query = select(project_usage).where(
                project_usage.c.project == project, project_usage.c.day.between(today - count + 1, today)
            )
            rows = {row.day: row for row in connection.execute(query)}
            return [_day(number, rows.get(number)) for number in range(today, today - count, -1)]

        return await self._database.reading(read)

    async def at_limit(self, limits: dict[str, int]) -> tuple[int, dict[CountedQuota, int]]:
        """Return how many projects have queued jobs, and how many of them are at each quota that holds jobs back.

        `limits` are those of projects without quotas of their own, by name.
        """
        row = await self._database.reading(lambda connection: connection.execute(_AT_LIMIT, limits).one())
        return row[0], dict(zip(HOLDING_QUOTAS, row[1:], strict=True))

    async def retentions(self) -> dict[str, float]:
        """Return the retention period of jobs in days, of each project that has one of its own."""
        days = project_quotas.c.keep_jobs_days
        query = select(project_quotas.c.project, days).where(days.is_not(None))
        return await self._database.reading(
            lambda connection: {row.project: row.keep_jobs_days for row in connection.execute(query)}
        )


def read_use(connection: Connection, project: str) -> Use:
    """Return what the project has used of each quota."""
    row = connection.execute(_USE, {"project": project}).one()
    minute_jobs = row.minute_jobs if row.minute == row.now_us // MINUTE_US else 0
    return Use(
        used={
            CountedQuota.RUNNING_JOBS: row.held_jobs or 0,
            CountedQuota.QUEUED_JOBS: row.queued_jobs or 0,
            CountedQuota.JOBS_PER_MINUTE: minute_jobs or 0,
            CountedQuota.JOBS_PER_DAY: row.day_jobs or 0,
            CountedQuota.VCPU_SECONDS: (row.vcpu_ms or 0) / 1000,
            CountedQuota.MEMORY_MB_SECONDS: (row.memory_mb_ms or 0) / 1000,
            CountedQuota.STORAGE_MB: (row.bytes or 0) / _MIB,
            CountedQuota.SANDBOXES: row.sandboxes,
            CountedQuota.SANDBOX_VCPUS: row.sandbox_vcpus or 0,
        },
        at=datetime.fromtimestamp(row.now_us / 1_000_000, UTC),
        minute_left_seconds=_left_seconds(row.now_us, MINUTE_US),
        day_left_seconds=_left_seconds(row.now_us, DAY_US),
    )


def _left_seconds(now_us: int, window_us: int) -> int:
    """Return the seconds until the window of now ends, rounded up: a retry then is in the next one."""
    return -(-(window_us - now_us % window_us) // 1_000_000)


def _day(number: int, row: Any) -> DayUsage:
    day = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=number)).date()
    if row is None:
        return DayUsage(day=day)
    return DayUsage(day=day, jobs=row.jobs, vcpu_seconds=row.vcpu_ms / 1000, memory_mb_seconds=row.memory_mb_ms / 1000)


def _read(connection: Connection, project: str) -> ProjectQuotas:
    row = connection.execute(_OF_PROJECT, {"of_project": project}).one_or_none()
    if row is None:
        return ProjectQuotas()
    values = {name: row._mapping[name] for name in _NAMES}
    return ProjectQuotas.model_validate(
        {name: UNLIMITED if value == UNLIMITED_VALUE else value for name, value in values.items()}
    )


def _write(connection: Connection, project: str, quotas: ProjectQuotas) -> None:
    record_change(connection, "project.set_quotas", project, project=project, **quotas.model_dump(exclude_none=True))
    values = {name: UNLIMITED_VALUE if value == UNLIMITED else value for name, value in quotas.model_dump().items()} | {
        "updated_at": datetime.now(UTC)
    }
    if quotas == ProjectQuotas():
        connection.execute(delete(project_quotas).where(project_quotas.c.project == project))
        return
    query = insert(project_quotas).values(project=project, **values)
    connection.execute(query.on_conflict_do_update(index_elements=["project"], set_=values))
