"""Reads what ended over time, and how long it took to start, from the counts of each minute (counting.py)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, func, select

from belljar.control.store.database import Database
from belljar.control.store.schema import job_ends, jobs, project_counters
from belljar.model.states import Status

#: For how many projects and spans steps are kept, and how long: a project may be removed, and its name used again.
_KEPT_PROJECTS = 200
_KEPT_SECONDS = 600.0
#: What counts as a failure: cancelling is somebody's decision.
FAILURES = frozenset({Status.FAILED, Status.TIMED_OUT, Status.LOST})


@dataclass(frozen=True, slots=True)
class Span:
    """A time to look back over, in equal steps that end now."""

    name: str
    minutes: int
    step_minutes: int


SPANS = (Span("1 hour", 60, 1), Span("24 hours", 1440, 15), Span("7 days", 10_080, 120))


@dataclass(kw_only=True, slots=True)
class Step:
    """What ended in one step of time."""

    begins_at: datetime
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    #: Lower bounds of times to the start in milliseconds → how many jobs.
    starts: dict[int, int] = field(default_factory=dict)

    @property
    def ended(self) -> int:
        """Return how many jobs ended."""
        return self.succeeded + self.failed + self.cancelled


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """The jobs of a project that have not ended."""

    queued: int
    #: Those that a worker has leased.
    running: int
    #: The job that has waited longest.
    oldest_id: str | None
    oldest_at: datetime | None


class SqlJobEnds:
    """What ended in each project. Steps that are over do not change: they are read once and kept."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: By project and width of a step: the steps that are over, by their number since 1970.
        self._over: dict[tuple[str, int], dict[int, Step]] = {}
        self._forget_at = time.monotonic() + _KEPT_SECONDS

    async def steps(self, project: str, span: Span) -> list[Step]:
        """Return what ended in each step of the span, the oldest first; the last step is not over."""
        width = span.step_minutes
        last = int(datetime.now(UTC).timestamp()) // 60 // width
        first = last - span.minutes // width + 1
        over = self._over.get((project, width), {})
        missing = next((number for number in range(first, last) if number not in over), last)
        read = await self._read(project, width, missing, last)
        kept = {number: over[number] for number in range(first, missing)}
        # A step is kept when the one after it is over too: writers may have taken their time at its end.
        kept |= {number: step for number, step in read.items() if number < last - 1}
        if len(self._over) >= _KEPT_PROJECTS or time.monotonic() > self._forget_at:
            self._over.clear()
            self._forget_at = time.monotonic() + _KEPT_SECONDS
        self._over[project, width] = kept
        return [kept.get(number) or read[number] for number in range(first, last + 1)]

    async def _read(self, project: str, width: int, first: int, last: int) -> dict[int, Step]:
        """Return these steps by their numbers."""
        columns = (job_ends.c.status, job_ends.c.start_ms)
        slot = job_ends.c.minute // width
        query = (
            select(slot.label("slot"), *columns, func.sum(job_ends.c.jobs).label("jobs"))
            .where(job_ends.c.project == project, job_ends.c.minute >= first * width)
            .group_by("slot", *columns)
        )
        rows = await self._database.reading(lambda connection: connection.execute(query).all())
        steps = {number: _empty(number * width) for number in range(first, last + 1)}
        for row in rows:
            _add(steps[min(int(row.slot), last)], Status(row.status), row.start_ms, row.jobs)
        return steps

    async def waiting(self, project: str) -> Waiting:
        """Return how many jobs wait and run, and which has waited longest."""
        counters = select(project_counters.c.queued_jobs, project_counters.c.held_jobs).where(
            project_counters.c.project == project
        )
        # The first of ix_jobs_status: ids sort by the time of submission.
        oldest = (
            select(jobs.c.id, jobs.c.created_at)
            .where(jobs.c.project == project, jobs.c.status == Status.QUEUED.value)
            .order_by(jobs.c.id)
            .limit(1)
        )

        def read(connection: Connection) -> Waiting:
            counts, first = connection.execute(counters).one_or_none(), connection.execute(oldest).one_or_none()
            return Waiting(
                queued=counts.queued_jobs if counts is not None else 0,
                running=counts.held_jobs if counts is not None else 0,
                oldest_id=first.id if first is not None else None,
                oldest_at=first.created_at if first is not None else None,
            )

        return await self._database.reading(read)


def percentiles(steps: Iterable[Step], fractions: Sequence[float]) -> list[float | None]:
    """Return the times to the start, in milliseconds, within which these fractions of the jobs have started.

    Times are known to about a fifth; inside a bound they are taken as evenly spread.
    """
    counts: dict[int, int] = {}
    for step in steps:
        for bound, number in step.starts.items():
            counts[bound] = counts.get(bound, 0) + number
    total, bounds = sum(counts.values()), sorted(counts)
    found: list[float | None] = []
    for fraction in fractions:
        rank, passed, value = fraction * total, 0, None
        for bound in bounds:
            if passed + counts[bound] >= rank:
                value = bound + _width(bound) * (rank - passed) / counts[bound]
                break
            passed += counts[bound]
        found.append(value)
    return found


def _width(bound: int) -> int:
    """Return how far the times of a bound reach (counting.py)."""
    width = 1
    for step in (1, 5, 50, 500, 5000, 50_000, 500_000):
        width = step
        if bound < step * 20:
            break
    return width


def _empty(minute: int) -> Step:
    return Step(begins_at=datetime(1970, 1, 1, tzinfo=UTC) + timedelta(minutes=minute))


def _add(step: Step, status: Status, start_ms: int, number: int) -> None:
    if status in FAILURES:
        step.failed += number
    elif status is Status.CANCELLED:
        step.cancelled += number
    else:
        step.succeeded += number
    if start_ms >= 0:
        step.starts[start_ms] = step.starts.get(start_ms, 0) + number
