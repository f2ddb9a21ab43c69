"""Jobs past their retention period are removed with all their data; nothing else is."""

from __future__ import annotations

import asyncio

import pytest

from belljar.control.blobs.store import Blobs
from belljar.control.jobs.blob_names import artifact_blob, stdin_blob
from belljar.control.logs.log import log_path
from belljar.model.errors import HostError
from belljar.model.states import TERMINAL, Status
from support.data_folder import Folder, days_ago
from support.job_queue import begin, queued, take

PERIODS = {
    Status.SUCCEEDED: "keep_succeeded_jobs_days",
    Status.FAILED: "keep_failed_jobs_days",
    Status.TIMED_OUT: "keep_failed_jobs_days",
    Status.CANCELLED: "keep_cancelled_jobs_days",
    Status.LOST: "keep_lost_jobs_days",
}


@pytest.mark.parametrize("status", sorted(TERMINAL))
async def test_a_job_is_removed_after_the_period_of_its_status(folder: Folder, status: Status) -> None:
    periods = dict.fromkeys(PERIODS.values(), 0.0) | {PERIODS[status]: 3.0}
    old, young = await folder.end(status, 3.1), await folder.end(status, 2.9)
    others = [await folder.end(other, 1000) for other in TERMINAL if PERIODS[other] != PERIODS[status]]
    log_path(folder.path, old.id).parent.mkdir(parents=True)
    log_path(folder.path, old.id).write_bytes(b"left here")

    outcomes = await folder.sweep(**periods, keep_stdin_days=0)
    assert not await folder.there(old) and folder.bytes_of(old.id) == []
    assert folder.sql("SELECT * FROM job_labels WHERE job_id = ?", old.id) == []
    assert folder.sql("SELECT * FROM removed_jobs") == []
    assert (outcomes["jobs"].result.removed.count, outcomes["jobs"].result.removed.size_bytes) == (1, 5 + 8 + 16 + 9)
    for kept in (young, *others):
        assert await folder.there(kept) and len(folder.bytes_of(kept.id)) == 6


async def test_nothing_is_removed_of_a_job_that_has_not_ended(folder: Folder) -> None:
    jobs = [await folder.jobs.insert(queued(created_at=days_ago(5000), stdin_bytes=1)) for _ in range(3)]
    for job in jobs:
        await folder.blobs.put_bytes(stdin_blob(job.id), b"x")
        await folder.blobs.put_bytes(artifact_blob(job.id, 0), b"x")
    starting, running = await take(folder.claims), await take(folder.claims)
    assert starting is not None and running is not None
    assert await begin(folder.claims, running)
    await folder.sweep(**dict.fromkeys(PERIODS.values(), 1e-9), keep_stdin_days=1e-9, keep_orphan_blobs_days=1e-9)
    for job in jobs:
        assert await folder.there(job) and len(folder.bytes_of(job.id)) == 4


async def test_zero_keeps_for_ever(folder: Folder) -> None:
    jobs = [await folder.end(status, 3000) for status in TERMINAL]
    await folder.sweep(**dict.fromkeys(PERIODS.values(), 0.0), keep_stdin_days=0)
    for job in jobs:
        assert await folder.there(job) and len(folder.bytes_of(job.id)) == 6


async def test_a_period_longer_than_time_itself_keeps_for_ever(folder: Folder) -> None:
    job = await folder.end(Status.SUCCEEDED, 3000)
    await folder.sweep(keep_succeeded_jobs_days=1e12)
    assert await folder.there(job)


async def test_standard_input_is_removed_early(folder: Folder) -> None:
    old, young = await folder.end(Status.SUCCEEDED, 2), await folder.end(Status.FAILED, 0.5)
    outcomes = await folder.sweep(keep_stdin_days=1)
    assert outcomes["stdin"].result.removed.count == 1
    assert await folder.blobs.size(stdin_blob(old.id)) is None and len(folder.bytes_of(old.id)) == 5
    assert await folder.blobs.size(stdin_blob(young.id)) == 5
    assert (await folder.sweep(keep_stdin_days=1))["stdin"].result.removed.count == 0
    assert (await folder.sweep(keep_stdin_days=0.4))["stdin"].result.removed.count == 1


async def test_a_dry_run_reports_the_same_and_removes_nothing(folder: Folder) -> None:
    jobs = [await folder.end(status, 400) for status in TERMINAL for _ in range(2)]
    planned = await folder.sweep(dry_run=True)
    assert folder.sql("SELECT * FROM maintenance") == []
    for job in jobs:
        assert await folder.there(job) and len(folder.bytes_of(job.id)) == 6
    done = await folder.sweep()
    assert planned["jobs"].result.removed == done["jobs"].result.removed
    assert done["jobs"].result.removed.count == len(jobs)
    assert (await folder.sweep())["jobs"].result.removed.count == 0


async def test_a_blob_store_that_fails_costs_nothing_but_time(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [await folder.end(Status.SUCCEEDED, 400) for _ in range(3)]

    async def refuse(_self: Blobs, _prefixes: object) -> None:
        raise HostError("the blob store is away")

    with monkeypatch.context() as patched:
        patched.setattr(Blobs, "delete_prefixes", refuse)
        outcomes = {each.service: each async for each in folder.maintenance().run_once()}
        assert str(outcomes["jobs"].error) == "the blob store is away"
        assert outcomes["nodes"].error is None  # the others have had their turn
        assert len(folder.sql("SELECT * FROM removed_jobs")) == len(jobs)
    assert folder.sql("SELECT failures, error FROM maintenance WHERE service = 'jobs'") == [
        (1, "the blob store is away")
    ]
    assert (await folder.sweep())["jobs"].result.removed.count == len(jobs)
    assert all(folder.bytes_of(job.id) == [] for job in jobs)
    assert folder.sql("SELECT failures, error FROM maintenance WHERE service = 'jobs'") == [(1, None)]


async def test_a_key_may_be_used_again_after_its_job_was_removed(folder: Folder) -> None:
    first = await folder.end(Status.SUCCEEDED, 400, idempotency_key="once")
    await folder.sweep()
    again = await folder.jobs.insert(queued(idempotency_key="once"))
    assert again.id != first.id


async def test_claims_and_submissions_continue_beside_a_sweep(folder: Folder) -> None:
    for _ in range(300):
        await folder.end(Status.SUCCEEDED, 400)
    sweeping = asyncio.create_task(folder.sweep())
    claimed = 0
    while not sweeping.done():
        await folder.jobs.insert(queued())
        claimed += await take(folder.claims) is not None
    assert (await sweeping)["jobs"].result.removed.count == 300
    assert claimed > 3
    assert await folder.jobs.counts() == {Status.STARTING: claimed}


async def test_the_index_finds_ended_jobs(folder: Folder) -> None:
    await folder.end(Status.SUCCEEDED, 1)
    plan = folder.sql(
        "EXPLAIN QUERY PLAN SELECT id FROM jobs WHERE status = 'succeeded' AND finished_at < 5 ORDER BY finished_at"
    )
    assert [row[3] for row in plan] == ["SEARCH jobs USING INDEX ix_jobs_ended (status=? AND finished_at<?)"]
