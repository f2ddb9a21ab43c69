"""What a project's jobs do now and did lately, in one look: for the first page of the dashboard."""

from __future__ import annotations

from dataclasses import dataclass

from belljar.control.jobs.waiting import why_waiting
from belljar.control.quotas.service import QuotaService
from belljar.control.store.job_ends import FAILURES, Span, SqlJobEnds, Step, Waiting, percentiles
from belljar.control.store.job_listing import JobFilter, ListedJob, SqlJobListing
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.nodes import SqlNodes

#: How many of the latest failures are shown.
_FAILURES = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """What ended in a span of time."""

    ended: int
    failed: int
    #: Milliseconds from submission to the script's start within which half, 95 % and 99 % of the jobs started.
    start_p50: float | None
    start_p95: float | None
    start_p99: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Overview:
    """The state of one project's jobs."""

    waiting: Waiting
    #: Why the job that has waited longest has not started; None when none waits.
    reason: str | None
    span: Span
    steps: list[Step]
    totals: Totals
    failures: list[ListedJob]


class OverviewService:
    """Reads the overview of a project. Its cost does not grow with the number of jobs."""

    def __init__(
        self,
        ends: SqlJobEnds,
        listing: SqlJobListing,
        jobs: SqlJobs,
        nodes: SqlNodes,
        quotas: QuotaService,
        silent_after_seconds: float,
    ) -> None:
        self._ends = ends
        self._listing = listing
        self._jobs = jobs
        self._nodes = nodes
        self._quotas = quotas
        self._silent_after_seconds = silent_after_seconds

    async def read(self, project: str, span: Span) -> Overview:
        """Return the state of the project's jobs, and what ended in the span."""
        waiting = await self._ends.waiting(project)
        steps = await self._ends.steps(project, span)
        return Overview(
            waiting=waiting,
            reason=await self.reason(waiting.oldest_id) if waiting.oldest_id is not None else None,
            span=span,
            steps=steps,
            totals=_totals(steps),
            failures=await self._failures(project),
        )

    async def reason(self, job_id: str) -> str | None:
        """Return why a queued job waits; None when it does not any more."""
        job = await self._jobs.get(None, job_id)
        if job is None or job.status.terminal or job.worker is not None:
            return None
        quota = await self._quotas.waiting_for(job.project)
        return why_waiting(job, await self._nodes.list(), self._silent_after_seconds, quota)

    async def _failures(self, project: str) -> list[ListedJob]:
        found: list[ListedJob] = []
        for status in sorted(FAILURES):
            found += (await self._listing.page(project, JobFilter(status=status), limit=_FAILURES)).jobs
        return sorted(found, key=lambda job: job.id, reverse=True)[:_FAILURES]


def _totals(steps: list[Step]) -> Totals:
    p50, p95, p99 = percentiles(steps, (0.5, 0.95, 0.99))
    return Totals(
        ended=sum(step.ended for step in steps),
        failed=sum(step.failed for step in steps),
        start_p50=p50,
        start_p95=p95,
        start_p99=p99,
    )
