"""The worker over real parts: jobs from the queue to their end, and what it takes and gives back."""

from __future__ import annotations

import asyncio
from typing import Any

from belljar.link.leases import ClaimRequest
from belljar.model.states import Status
from support.worker_harness import WorkerHarness


async def test_a_job_runs_to_its_end_and_nothing_is_left(harness: WorkerHarness) -> None:
    job = await harness.submit("cat; echo oh >&2; echo made > out.txt; exit 3", stdin=b"input", artifacts=("*.txt",))
    async with harness.working() as worker:
        found = await harness.ended(job)
    assert (found.status, found.exit_code, found.attempt, found.error) == (Status.FAILED, 3, 1, None)
    assert (found.logs.stdout_bytes, found.logs.stderr_bytes) == (5, 3)
    assert [each.path for each in found.kept_artifacts] == ["out.txt"]
    assert found.lost_attempts == ()
    assert worker.capacity.jobs == 0 and harness.hypervisor.alive == 0
    assert harness.leftovers() == []


async def test_a_worker_that_is_stopped_waits_until_a_claim_is_undone(harness: WorkerHarness) -> None:
    """Also when the capacity has changed just before, and the claim was being cancelled for that."""
    undone = []

    async def claim(*_: Any) -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.1)
            undone.append(True)

    worker = harness.worker()
    link: Any = worker._context.link
    link.claim = claim
    claiming = asyncio.create_task(worker._claim(ClaimRequest(vcpus=1, memory_mb=1)))
    await asyncio.sleep(0.01)
    worker._changed.set()
    await asyncio.sleep(0.01)
    claiming.cancel()
    await asyncio.wait({claiming})
    assert claiming.cancelled() and undone == [True]


async def test_a_claim_that_is_about_to_succeed_is_not_undone_when_the_capacity_changes(harness: WorkerHarness) -> None:
    async def claim(*_: Any) -> str:
        for _turn in range(5):
            await asyncio.sleep(0)
        return "an assignment"

    worker = harness.worker()
    link: Any = worker._context.link
    link.claim = claim
    worker._changed.set()
    assert await worker._claim(ClaimRequest(vcpus=1, memory_mb=1)) == "an assignment"  # type: ignore[comparison-overlap]
