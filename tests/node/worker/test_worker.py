"""The worker over real parts: jobs from the queue to their end, and what it takes and gives back."""

from __future__ import annotations

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
