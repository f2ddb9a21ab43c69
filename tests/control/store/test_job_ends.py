"""What ended in each minute: counted with the end of each job, whatever ends it, and read in steps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from belljar.control.store.claims import SqlClaims
from belljar.control.store.database import Database
from belljar.control.store.job_ends import SPANS, SqlJobEnds, Step, percentiles
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.retention import SqlRetention
from belljar.model.job import Job, Timings
from belljar.model.states import TERMINAL, Status
from support.job_queue import MACHINE, ended, queued, take

EARLIER = text("UPDATE job_ends SET minute = minute - 30")


async def run(jobs: SqlJobs, claims: SqlClaims, status: Status, waited: timedelta, project: str = "mine") -> Job:
    """Run a job that started so long after its submission."""
    await jobs.insert(queued(project=project))
    job = await take(claims)
    assert job is not None
    started_at = job.created_at + waited
    assert await claims.running("w1", job, started_at=started_at, machine=MACHINE, timings=Timings())
    assert await claims.finish("w1", job, ended(status))
    return job


async def test_every_end_is_counted_once_with_its_status_and_time_to_start(
    database: Database, jobs: SqlJobs, claims: SqlClaims
) -> None:
    for status in (*TERMINAL, Status.SUCCEEDED):
        await run(jobs, claims, status, timedelta(seconds=2.3))
    waiting = queued()
    await jobs.insert(waiting)
    await jobs.cancel("mine", waiting.id)
    await jobs.cancel("mine", waiting.id)
    await run(jobs, claims, Status.SUCCEEDED, timedelta(0), project="other")
    for span in SPANS:
        steps = await SqlJobEnds(database).steps("mine", span)
        assert len(steps) == span.minutes // span.step_minutes
        assert sum(step.succeeded for step in steps) == 2
        assert sum(step.failed for step in steps) == 3  # failed, timed out, lost
        assert sum(step.cancelled for step in steps) == 2
        assert {bound for step in steps for bound in step.starts} == {2000}
        assert sum(number for step in steps for number in step.starts.values()) == 6, "one never started"
    assert steps[-1].begins_at <= datetime.now(UTC)


async def test_steps_that_are_over_are_read_once_and_others_each_time(
    database: Database, jobs: SqlJobs, claims: SqlClaims
) -> None:
    ends = SqlJobEnds(database)
    for number in range(1, 4):
        await run(jobs, claims, Status.SUCCEEDED, timedelta(0))
        if number == 1:
            await database.writing(lambda connection: connection.execute(EARLIER))
        assert sum(step.ended for step in await ends.steps("mine", SPANS[0])) == number
    gone = text("DELETE FROM job_ends WHERE minute < (SELECT max(minute) FROM job_ends) - 10")
    await database.writing(lambda connection: connection.execute(gone))
    assert sum(step.ended for step in await ends.steps("mine", SPANS[0])) == 3, "the old one was not read again"
    assert sum(step.ended for step in await SqlJobEnds(database).steps("mine", SPANS[0])) == 2


async def test_an_attempt_that_is_lost_and_tried_again_is_no_end(
    database: Database, jobs: SqlJobs, claims: SqlClaims
) -> None:
    await jobs.insert(queued(max_attempts=2))
    job = await take(claims)
    assert job is not None
    assert await claims.requeue("w1", job, reason="its node died", code="x") is not None
    assert not sum(step.ended for step in await SqlJobEnds(database).steps("mine", SPANS[0]))


async def test_what_waits_and_runs_and_the_oldest(database: Database, jobs: SqlJobs, claims: SqlClaims) -> None:
    ends = SqlJobEnds(database)
    nothing = await ends.waiting("mine")
    assert (nothing.queued, nothing.running, nothing.oldest_id) == (0, 0, None)
    first, second, third = [queued() for _ in range(3)]
    for job in (first, second, third):
        await jobs.insert(job)
    await take(claims)
    found = await ends.waiting("mine")
    assert (found.queued, found.running, found.oldest_id) == (2, 1, second.id)


async def test_old_counts_are_removed(database: Database, jobs: SqlJobs, claims: SqlClaims) -> None:
    await run(jobs, claims, Status.SUCCEEDED, timedelta(0))
    retention, now = SqlRetention(database), datetime.now(UTC)
    assert await retention.old_job_ends(now - timedelta(hours=1), remove=True) == 0
    assert await retention.old_job_ends(now + timedelta(minutes=2), remove=False) == 1
    assert await retention.old_job_ends(now + timedelta(minutes=2), remove=True) == 1
    assert await retention.old_job_ends(now + timedelta(minutes=2), remove=False) == 0


async def test_reading_uses_the_index_of_the_project(database: Database) -> None:
    statement = "EXPLAIN QUERY PLAN SELECT status FROM job_ends WHERE project = 'p' AND minute >= 5"
    lines = await database.reading(lambda connection: [row[3] for row in connection.execute(text(statement))])
    assert "SEARCH job_ends USING PRIMARY KEY (project=? AND minute>?)" in lines


@pytest.mark.parametrize("waited", [0, 7, 19, 20, 84, 99, 100, 149, 999, 1234, 9_999, 65_432, 1_234_567])
async def test_a_time_is_known_to_about_a_third(
    database: Database, jobs: SqlJobs, claims: SqlClaims, waited: int
) -> None:
    await run(jobs, claims, Status.SUCCEEDED, timedelta(milliseconds=waited))
    (median,) = percentiles(await SqlJobEnds(database).steps("mine", SPANS[0]), [0.5])
    assert median is not None and waited * 0.66 <= median + 1 <= waited * 1.35 + 2


def test_percentiles_of_nothing_and_of_many() -> None:
    step = Step(begins_at=datetime.now(UTC), starts={10: 50, 20: 45, 1000: 5})
    p50, p95, p99 = percentiles([step], (0.5, 0.95, 0.99))
    assert (p50, p95) == (11, 25) and p99 is not None and 1000 < p99 <= 1500
    assert percentiles([], (0.5, 0.99)) == [None, None]
