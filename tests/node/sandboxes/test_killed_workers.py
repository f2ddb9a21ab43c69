"""Workers that are killed while they hold sandboxes in each state: every sandbox has a clear end, nothing is left."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from belljar.model.sandbox import EndReason, Sandbox, SandboxStatus
from support.worker_harness import WorkerHarness, opened_harness
from support.worker_harness_process import worker_process

pytestmark = pytest.mark.process

ENDS = (SandboxStatus.ENDED, SandboxStatus.LOST)
LEASE_SECONDS = 3.0


async def killed_while_it_holds(harness: WorkerHarness, agent: Path) -> list[Sandbox]:
    """Sandboxes of a worker that was killed as soon as one of them ran: the others ran, were starting or waited."""
    made = [await harness.create_sandbox() for _ in range(4)]
    async with worker_process(harness.settings.data_dir, agent, lease_seconds=LEASE_SECONDS) as worker:
        await harness.sandbox_until(made[0], SandboxStatus.RUNNING)
        worker.kill()
        await worker.wait()
    return made


async def test_the_next_worker_of_the_node_says_what_is_lost_and_starts_what_was_not_begun(
    agent: Path, tmp_path: Path
) -> None:
    async with opened_harness(tmp_path / "data", agent, lease_seconds=LEASE_SECONDS) as harness:
        made = await killed_while_it_holds(harness, agent)
        before = [await harness.sandbox_until(each, *SandboxStatus) for each in made]
        async with harness.working():
            for sandbox, was in zip(made, before, strict=True):
                now = await harness.sandbox_until(sandbox, SandboxStatus.RUNNING, *ENDS)
                if was.status is SandboxStatus.RUNNING:
                    now = await harness.sandbox_until(sandbox, *ENDS)
                    assert now.end is not None and now.end.reason is EndReason.NODE_LOST
                    assert now.status is SandboxStatus.LOST and now.fence == 1
                else:
                    assert now.status is SandboxStatus.RUNNING and now.fence > was.fence
        assert harness.hypervisor.alive == 0 and harness.leftovers() == []


async def test_without_another_worker_the_lease_ends_it(agent: Path, tmp_path: Path) -> None:
    async with opened_harness(tmp_path / "data", agent, lease_seconds=LEASE_SECONDS) as harness:
        harness.sandbox_wait_seconds = 2
        made = await killed_while_it_holds(harness, agent)
        before = [await harness.sandbox_until(each, *SandboxStatus) for each in made]
        expiring = asyncio.create_task(harness.sandbox_queue.run())  # a control plane without a node
        try:
            for sandbox, was in zip(made, before, strict=True):
                ended = await harness.sandbox_until(sandbox, *ENDS)
                expected = EndReason.NODE_LOST if was.status is SandboxStatus.RUNNING else EndReason.NO_ROOM
                assert ended.end is not None and ended.end.reason is expected
        finally:
            expiring.cancel()
            await asyncio.gather(expiring, return_exceptions=True)
        assert harness.sandbox_queue.machines._machines == {}


async def test_deleted_after_the_kill_it_ends_as_deleted(agent: Path, tmp_path: Path) -> None:
    async with opened_harness(tmp_path / "data", agent, lease_seconds=LEASE_SECONDS) as harness:
        made = await killed_while_it_holds(harness, agent)
        for sandbox in made:
            await harness.delete_sandbox(sandbox)
        async with harness.working():
            for sandbox in made:
                ended = await harness.sandbox_until(sandbox, *ENDS)
                assert ended.end is not None and ended.end.reason is EndReason.DELETED
        assert harness.hypervisor.made == []  # nothing was started for them
    assert not (tmp_path / "data/w1.pid").exists() or not _is_running(int((tmp_path / "data/w1.pid").read_text()))


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
