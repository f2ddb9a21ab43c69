"""Jobs and sandboxes of one worker share its room: it is never promised twice."""

from __future__ import annotations

import asyncio
from typing import Any

from belljar.model.job import Resources
from belljar.model.sandbox import SandboxStatus
from belljar.model.states import Status
from support.worker_harness import WorkerHarness, idle


async def test_a_job_and_a_sandbox_that_are_given_at_once_do_not_both_get_the_last_room(harness: WorkerHarness) -> None:
    """The job's claim was sent when there was room for it, and is answered when the sandbox has taken that."""
    async with harness.working(vcpus=2) as worker:
        taken, link = worker.capacity.watch(), worker._context.link
        claim: Any = link.claim

        async def claim_late(*request: Any) -> Any:
            assignment = await claim(*request)
            if assignment is not None:
                await taken.wait()
            return assignment

        setattr(link, "claim", claim_late)  # noqa: B010
        both = Resources(vcpus=2, memory_mb=128)
        job = await harness.submit("exit 0", max_attempts=1, resources=both)
        await harness.until(job, lambda found: found.status is not Status.QUEUED)
        sandbox = await harness.create_sandbox(vcpus=2)
        await harness.sandbox_until(sandbox, SandboxStatus.RUNNING)
        declined = await harness.until(job, lambda found: found.status is Status.QUEUED)
        assert (declined.attempt, declined.lost_attempts) == (0, ())
        assert worker.capacity.jobs == 1
        await harness.delete_sandbox(sandbox)
        ended = await harness.ended(job)
        assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 1)
        await idle(worker)


async def test_both_claims_notice_each_change_of_the_room(harness: WorkerHarness) -> None:
    """What one of them has noticed is still news to the other."""
    async with harness.working(vcpus=2) as worker:
        sandbox, _ = await harness.running_sandbox(vcpus=2)
        job = await harness.submit("exit 0")
        for _ in range(3):
            other = await harness.create_sandbox(vcpus=2)
            await asyncio.sleep(0.05)
            await harness.delete_sandbox(other)
        await harness.delete_sandbox(sandbox)
        assert (await harness.ended(job)).status is Status.SUCCEEDED
        await idle(worker)
