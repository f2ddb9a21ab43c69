"""The queue: order, leases, attempts; only the holder of a job writes about it."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from belljar.control.store.claims import SqlClaims
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.opening import open_database
from belljar.model.job import Job, JobError, LogInfo, Resources, Timings, Usage
from belljar.model.outcome import Outcome
from belljar.model.states import TERMINAL, Status
from belljar.settings import Settings
from support.job_queue import MACHINE, begin, ended, lose_all, queued, take


async def stored(jobs: SqlJobs, job: Job) -> Job:
    found = await jobs.get(None, job.id)
    assert found is not None
    return found


async def claimed(jobs: SqlJobs, claims: SqlClaims, worker: str = "w1", **fields: object) -> Job:
    await jobs.insert(queued(**fields))
    job = await take(claims, worker)
    assert job is not None
    return job


async def test_jobs_are_claimed_by_priority_and_then_by_age(jobs: SqlJobs, claims: SqlClaims) -> None:
    kept = [await jobs.insert(queued(priority=priority)) for priority in (0, -5, 7, 0, 7)]
    order = [await take(claims) for _ in range(5)]
    assert [job and job.id for job in order] == [kept[n].id for n in (2, 4, 0, 3, 1)]
    assert await take(claims) is None


async def test_a_job_that_does_not_fit_is_passed_over(jobs: SqlJobs, claims: SqlClaims) -> None:
    wide = await jobs.insert(queued(vcpus=4, priority=5))
    large = await jobs.insert(queued(memory_mb=2000, priority=5))
    small = await jobs.insert(queued())
    found = await claims.claim("w1", vcpus=2, memory_mb=1000, lease_seconds=9)
    assert found is not None and found.id == small.id
    assert await claims.claim("w1", vcpus=2, memory_mb=1000, lease_seconds=9) is None
    for vcpus, memory_mb, job in ((2, 2000, large), (4, 256, wide)):
        found = await claims.claim("w1", vcpus=vcpus, memory_mb=memory_mb, lease_seconds=9)
        assert found is not None and found.id == job.id


async def test_a_claim_says_who_holds_the_job_and_which_try_it_is(jobs: SqlJobs, claims: SqlClaims) -> None:
    job = await claimed(jobs, claims)
    assert (job.status, job.worker, job.attempt) == (Status.STARTING, "w1", 1)
    assert job == await stored(jobs, job)


_CLAIM_ALL = """
import asyncio, sys
from pathlib import Path
from belljar.settings import Settings
from belljar.control.store.claims import SqlClaims
from belljar.control.store.opening import open_database

async def main():
    database = await open_database(Settings(data_dir=Path(sys.argv[1])))
    claims = SqlClaims(database)
    print("ready", flush=True)
    sys.stdin.readline()
    while job := await claims.claim(sys.argv[2], vcpus=1, memory_mb=256, lease_seconds=30):
        print(job.id, flush=True)
    await database.close()

asyncio.run(main())
"""


@pytest.mark.process
async def test_workers_in_several_processes_never_claim_the_same_job(tmp_path: Path) -> None:
    database = await open_database(Settings(data_dir=tmp_path))
    kept = [(await SqlJobs(database).insert(queued())).id for _ in range(500)]
    await database.close()
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _CLAIM_ALL, str(tmp_path), f"w{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for worker in workers:
        assert worker.stdout and worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("\n")
        worker.stdin.flush()
    claimed = [worker.communicate(timeout=120)[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert all(claimed), "they did not work beside each other"
    assert sorted(claimed[0] + claimed[1]) == kept


@pytest.mark.parametrize("status", sorted(TERMINAL))
async def test_a_job_ends_once(jobs: SqlJobs, claims: SqlClaims, status: Status) -> None:
    job = await claimed(jobs, claims)
    assert await begin(claims, job)
    outcome = ended(
        status,
        exit_code=3,
        error=JobError(code="x", message="y"),
        usage=Usage(cpu_seconds=1.5),
        logs=LogInfo(stdout_bytes=7, stdout_truncated=True),
        timings=Timings(run_ms=4, phases={"a": 1}),
        machine=MACHINE,
        started_at=datetime.now(UTC),
    )
    assert await claims.finish("w1", job, outcome)
    after = await stored(jobs, job)
    assert Outcome.model_validate(after.model_dump(include=set(Outcome.model_fields))) == outcome
    for again in TERMINAL:
        assert not await claims.finish("w1", job, ended(again))
    assert not await begin(claims, job)
    assert await claims.requeue("w1", job, reason="x", code="y") is None
    assert await lose_all(claims, "w1") == []
    assert await stored(jobs, job) == after


async def test_a_script_that_has_not_begun_did_not_succeed(jobs: SqlJobs, claims: SqlClaims) -> None:
    job = await claimed(jobs, claims)
    assert not await claims.finish("w1", job, ended(Status.SUCCEEDED))
    assert (await stored(jobs, job)).status is Status.STARTING


async def test_a_script_that_was_over_at_once_is_written_once(jobs: SqlJobs, claims: SqlClaims) -> None:
    job, started_at = await claimed(jobs, claims), datetime.now(UTC)
    assert await claims.finish("w1", job, ended(Status.SUCCEEDED, started_at=started_at))
    after = await stored(jobs, job)
    assert (after.status, after.started_at) == (Status.SUCCEEDED, started_at)


async def test_only_the_attempt_that_holds_a_job_writes_about_it(jobs: SqlJobs, claims: SqlClaims) -> None:
    first = await claimed(jobs, claims, "w1")
    assert not await begin(claims, first, "w2")
    assert not await claims.finish("w2", first, ended(Status.FAILED))
    assert await claims.requeue("w2", first, reason="x", code="y") is None
    await claims.requeue("w1", first, reason="x", code="y")
    second = await take(claims, "w1")  # the same worker, but another attempt
    assert second is not None and second.attempt == 2
    assert not await begin(claims, first, "w1")
    assert not await claims.finish("w1", first, ended(Status.FAILED))
    assert await stored(jobs, first) == second


async def test_a_lost_attempt_is_tried_again_and_written_down(jobs: SqlJobs, claims: SqlClaims) -> None:
    job = await claimed(jobs, claims)
    await begin(claims, job)
    after = await claims.requeue("w1", job, reason="the machine died", code="machine_died")
    assert after is not None and after == await stored(jobs, job)
    assert (after.status, after.worker, after.started_at, after.machine) == (Status.QUEUED, None, None, None)
    assert after.timings == Timings()
    (lost,) = after.lost_attempts
    assert (lost.attempt, lost.worker, lost.had_started, lost.code) == (1, "w1", True, "machine_died")
    again = await take(claims, "w2")
    assert again is not None and (again.id, again.attempt, again.worker) == (job.id, 2, "w2")


async def test_after_max_attempts_a_job_is_lost_and_says_how_to_allow_more(jobs: SqlJobs, claims: SqlClaims) -> None:
    await jobs.insert(queued(max_attempts=3))
    for number in range(1, 4):
        job = await take(claims)
        assert job is not None
        after = await claims.requeue("w1", job, reason="the machine died", code="machine_died")
        assert after is not None
        assert after.status is (Status.LOST if number == 3 else Status.QUEUED)
    assert after.error is not None and after.error.code == "machine_died"
    assert "3 of 3 attempts" in after.error.message and "max_attempts" in after.error.message
    assert [lost.attempt for lost in after.lost_attempts] == [1, 2, 3]
    assert after.finished_at is not None
    assert await take(claims) is None


async def test_a_lost_attempt_of_a_job_to_cancel_cancels_it(jobs: SqlJobs, claims: SqlClaims) -> None:
    job = await claimed(jobs, claims)
    await jobs.cancel("mine", job.id)
    after = await claims.requeue("w1", job, reason="x", code="y")
    assert after is not None and (after.status, after.error) == (Status.CANCELLED, None)


async def test_leases_that_ran_out_are_lost_and_others_are_not(jobs: SqlJobs, claims: SqlClaims) -> None:
    await jobs.insert(queued())
    await jobs.insert(queued())
    silent, alive = await take(claims, "dead", lease_seconds=-1), await take(claims, "alive")
    assert silent is not None and alive is not None
    (after,) = await claims.expire()
    assert (after.id, after.status, after.lost_attempts[0].code) == (silent.id, Status.QUEUED, "lease_expired")
    assert await claims.expire() == []
    assert not await claims.finish("dead", silent, ended(Status.FAILED))
    assert (await stored(jobs, alive)).status is Status.STARTING


async def test_a_renewed_lease_does_not_run_out(jobs: SqlJobs, claims: SqlClaims) -> None:
    await jobs.insert(queued())
    job = await take(claims, lease_seconds=-1)
    assert job is not None
    mine, nobodys = (job.id, 1), ("job_of_nobody", 1)
    assert (await claims.renew("w2", [mine], lease_seconds=30)).lost == {mine}
    assert (await claims.renew("w1", [], lease_seconds=30)).lost == set()
    assert (await claims.renew("w1", [mine, nobodys], lease_seconds=30)).lost == {nobodys}
    assert await claims.expire() == []


async def test_a_lease_is_lost_with_its_attempt_although_the_worker_holds_the_next(
    jobs: SqlJobs, claims: SqlClaims
) -> None:
    job = await claimed(jobs, claims)
    assert await claims.requeue("w1", job, reason="x", code="y") is not None
    again = await take(claims)
    assert again is not None and (again.id, again.attempt) == (job.id, 2)
    first, second = (job.id, 1), (job.id, 2)
    assert (await claims.renew("w1", [first, second], lease_seconds=30)).lost == {first}
    assert await claims.held("w1", second) == again
    assert await claims.held("w2", second) is None and await claims.held("w1", first) is None


async def test_a_worker_that_starts_again_loses_what_it_held_and_nothing_else(jobs: SqlJobs, claims: SqlClaims) -> None:
    mine = [await claimed(jobs, claims, "w1") for _ in range(2)]
    other = await claimed(jobs, claims, "w2")
    await begin(claims, mine[1])
    after = await lose_all(claims, "w1")
    assert {job.id: job.lost_attempts[0].had_started for job in after} == {mine[0].id: False, mine[1].id: True}
    assert {job.status for job in after} == {Status.QUEUED}
    assert {job.lost_attempts[0].code for job in after} == {"worker_died"}
    assert (await stored(jobs, other)).status is Status.STARTING


async def test_a_worker_reads_which_of_its_jobs_are_to_be_cancelled(jobs: SqlJobs, claims: SqlClaims) -> None:
    one, _two, others = [await claimed(jobs, claims, worker) for worker in ("w1", "w1", "w2")]
    for job in (one, others):
        await jobs.cancel("mine", job.id)
    assert await claims.cancel_requested("w1") == {(one.id, 1)}
    assert (await claims.renew("w1", [(one.id, 1)], lease_seconds=30)).cancel_requested == {(one.id, 1)}
    await claims.finish("w1", one, ended(Status.CANCELLED))
    assert await claims.cancel_requested("w1") == set()


async def test_moments_are_kept_exactly(jobs: SqlJobs, claims: SqlClaims) -> None:
    created = datetime(2026, 2, 28, 23, 59, 59, 999_999, UTC)
    job = await claimed(jobs, claims, created_at=created)
    started = datetime.fromtimestamp(time.time(), UTC)
    await claims.running("w1", job, started_at=started, machine=MACHINE, timings=Timings(queue_ms=1.25))
    after = await stored(jobs, job)
    assert (after.created_at, after.started_at, after.timings.queue_ms) == (created, started, 1.25)


async def test_a_job_whose_scratch_disk_does_not_fit_is_passed_over(jobs: SqlJobs, claims: SqlClaims) -> None:
    large = await jobs.insert(queued(resources=Resources(vcpus=1, memory_mb=256, disk_mb=512), priority=5))
    plain = await jobs.insert(queued())
    found = await claims.claim("w1", vcpus=1, memory_mb=1000, disk_mb=511, lease_seconds=9)
    assert found is not None and found.id == plain.id
    assert await claims.claim("w1", vcpus=1, memory_mb=1000, disk_mb=0, lease_seconds=9) is None
    found = await claims.claim("w1", vcpus=1, memory_mb=1000, disk_mb=512, lease_seconds=9)
    assert found is not None and found.id == large.id


async def test_an_earlier_process_of_a_worker_writes_nothing_more(jobs: SqlJobs, claims: SqlClaims) -> None:
    await jobs.insert(queued())
    job = await claims.claim("w1", vcpus=64, memory_mb=1 << 20, lease_seconds=30, incarnation="a")
    assert job is not None
    attempt = (job.id, job.attempt)
    assert await claims.held("w1", attempt, incarnation="a") is not None
    assert [each.id for each in await claims.adopt("w1", "b", 30)] == [job.id]
    before = await stored(jobs, job)
    assert await claims.held("w1", attempt, incarnation="a") is None
    assert (await claims.renew("w1", [attempt], 30, incarnation="a")).lost == {attempt}
    assert not await claims.finish("w1", job, ended(Status.FAILED), incarnation="a")
    assert await claims.requeue("w1", job, reason="x", code="y", incarnation="a") is None
    assert await stored(jobs, job) == before
    assert await claims.finish("w1", job, ended(Status.FAILED), incarnation="b")
    assert await claims.ended_by("w1", attempt, incarnation="b")
    assert not await claims.ended_by("w1", attempt, incarnation="a")
