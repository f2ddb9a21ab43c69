"""Which job is next: no other passes it, and only a worker that can run it claims it."""

from __future__ import annotations

import asyncio

import pytest

from belljar.control.store.claims import SqlClaims
from belljar.control.store.jobs import SqlJobs
from belljar.model.job import Job
from belljar.model.resources import NodeLimits
from belljar.model.states import Status
from support.job_queue import ended, queued

NODE = NodeLimits(vcpus=4, memory_mb=4096)


class Node:
    """A worker of four vCPUs that counts what it holds, as the real one does."""

    def __init__(self, claims: SqlClaims) -> None:
        self.claims = claims
        self.held: list[Job] = []

    async def claim(self) -> Job | None:
        free = NODE.vcpus - sum(job.resources.vcpus for job in self.held)
        if not free:
            return None
        job = await self.claims.claim("w1", vcpus=free, memory_mb=4096, lease_seconds=30, largest=NODE)
        if job is not None:
            self.held.append(job)
        return job

    async def end_first(self) -> None:
        await self.claims.finish("w1", self.held.pop(0), ended(Status.FAILED))


@pytest.mark.parametrize("priority", [0, 50])
async def test_a_stream_of_small_jobs_does_not_keep_a_large_one_waiting(
    jobs: SqlJobs, claims: SqlClaims, priority: int
) -> None:
    node = Node(claims)
    for _ in range(4):
        await jobs.insert(queued(vcpus=1))
        assert await node.claim()
    large = await jobs.insert(queued(vcpus=4, priority=priority))
    for ended_jobs in range(1, 5):
        await jobs.insert(queued(vcpus=1))
        await node.end_first()
        job = await node.claim()
        assert (job and job.id) == (large.id if ended_jobs == 4 else None)
    assert await node.claim() is None
    await node.end_first()
    assert [await node.claim() is not None for _ in range(5)] == [True] * 4 + [False]


async def test_priority_holds_for_all_sizes(jobs: SqlJobs, claims: SqlClaims) -> None:
    for vcpus, priority in ((1, 0), (4, 1), (1, 2), (3, 3), (4, -1)):
        await jobs.insert(queued(vcpus=vcpus, priority=priority))
    node, order = Node(claims), []
    while job := await node.claim():
        order.append(job.priority)
    assert order == [3, 2]  # the next needs the whole node, which the first two hold
    node.held.clear()
    while job := await node.claim():
        order.append(job.priority)
        node.held.clear()
    assert order == [3, 2, 1, 0, -1]


async def test_a_job_that_cannot_run_here_is_left_to_other_nodes_and_delays_no_job(
    jobs: SqlJobs, claims: SqlClaims
) -> None:
    huge = await jobs.insert(queued(vcpus=8, priority=9))
    small = await jobs.insert(queued())
    job = await Node(claims).claim()
    assert job is not None and job.id == small.id
    job = await claims.claim("w2", vcpus=8, memory_mb=4096, lease_seconds=30)
    assert job is not None and job.id == huge.id


async def test_a_worker_takes_only_what_it_has_the_image_of(jobs: SqlJobs, claims: SqlClaims) -> None:
    arm = await jobs.insert(queued(image_digest="arm", priority=5))
    old = await jobs.insert(queued(image_digest=None))
    mine = await jobs.insert(queued(image_digest="x86"))

    async def take(images: list[str]) -> str | None:
        job = await claims.claim("w", vcpus=1, memory_mb=256, lease_seconds=30, images=images)
        return job and job.id

    assert [await take(["x86", "another"]) for _ in range(3)] == [old.id, mine.id, None]
    assert await take([]) is None
    assert await take(["arm"]) == arm.id


async def test_a_job_whose_image_is_on_no_node_any_more_fails_and_says_so(jobs: SqlJobs, claims: SqlClaims) -> None:
    gone = await jobs.insert(queued(image_digest="gone"))
    there = await jobs.insert(queued(image_digest="there"))
    old = await jobs.insert(queued(image_digest=None))
    assert await claims.fail_without_image({"there"}, waited_seconds=60) == []
    (failed,) = await claims.fail_without_image({"there"}, waited_seconds=-1)
    assert (failed.id, failed.status) == (gone.id, Status.FAILED)
    assert failed.finished_at is not None
    assert failed.error is not None and failed.error.code == "unknown_image"
    assert "no node here has the image python (sha256:gone) any more; build" in failed.error.message
    assert await claims.fail_without_image({"there"}, waited_seconds=-1) == []
    for job in (there, old):
        found = await jobs.get(None, job.id)
        assert found is not None and found.status is Status.QUEUED


async def test_a_claim_whose_worker_is_stopped_claims_nothing(jobs: SqlJobs, claims: SqlClaims) -> None:
    job = await jobs.insert(queued())
    for steps in range(200):
        claiming = asyncio.create_task(claims.claim("w", vcpus=1, memory_mb=256, lease_seconds=30, expected=True))
        for _ in range(steps):
            await asyncio.sleep(0)
        if claiming.done():  # it was faster than so many turns of the loop
            assert steps > 3 and await claiming
            return
        claiming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claiming
        found = await jobs.get(None, job.id)
        assert found is not None and (found.status, found.worker, found.attempt) == (Status.QUEUED, None, 0)


async def test_living_workers_keep_their_jobs_when_the_clock_is_set_forward(jobs: SqlJobs, claims: SqlClaims) -> None:
    await jobs.insert(queued())
    watcher = Clock(claims)
    await watcher.expire()
    assert await claims.claim("alive", vcpus=1, memory_mb=256, lease_seconds=30)
    watcher.jump(3600)
    await watcher.set_leases_back(jobs)  # an hour later by the clock, all leases are over
    assert await watcher.expire() == []
    watcher.wait(10)
    assert await watcher.expire() == []  # a lease's time is given
    watcher.wait(21)
    assert [job.worker for job in await watcher.expire()] == [None]  # it was silent after all


async def test_no_job_fails_for_its_image_just_after_the_clock_was_set(jobs: SqlJobs, claims: SqlClaims) -> None:
    await jobs.insert(queued(image_digest="of a node that looks dead"))
    watcher = Clock(claims)
    await watcher.expire()
    watcher.jump(3600)
    await watcher.expire()
    assert await claims.fail_without_image(set(), waited_seconds=-1) == []
    watcher.wait(31)
    assert len(await claims.fail_without_image(set(), waited_seconds=-1)) == 1


async def test_leases_do_not_last_for_hours_when_the_clock_is_set_back(jobs: SqlJobs, claims: SqlClaims) -> None:
    await jobs.insert(queued())
    watcher = Clock(claims)
    await watcher.expire()
    assert await claims.claim("dead", vcpus=1, memory_mb=256, lease_seconds=3600 + 30)
    watcher.jump(-3600)
    assert await watcher.expire() == []
    await watcher.set_leases_back(jobs, 31)
    assert len(await watcher.expire()) == 1


class Clock:
    """Makes the claims believe that the database's clock was set: by what they remember of it."""

    def __init__(self, claims: SqlClaims) -> None:
        self.claims = claims

    async def expire(self) -> list[Job]:
        return await self.claims.expire(30)

    def jump(self, seconds: float) -> None:
        assert self.claims._clock_seen is not None
        wall, own = self.claims._clock_seen
        self.claims._clock_seen = (wall - seconds, own)

    def wait(self, seconds: float) -> None:
        """Let this process's own clock go on."""
        self.claims._no_expiry_before -= seconds

    async def set_leases_back(self, jobs: SqlJobs, seconds: float = 3600) -> None:
        def back(connection: object) -> None:
            connection.exec_driver_sql(  # type: ignore[attr-defined]
                "UPDATE jobs SET lease_until = lease_until - ?", (int(seconds * 1e6),)
            )

        await jobs._database.writing(back)
