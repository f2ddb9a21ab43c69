"""The output of jobs on its way to their logs, over several attempts and after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from belljar.control.blobs.store import open_blobs
from belljar.control.logs.log import JobLog, LogWriter, log_path
from belljar.control.store.claims import SqlClaims
from belljar.model.log_stream import LogStream
from belljar.model.states import Status
from support.worker_harness import QUICK_UPLOADS, WorkerHarness, opened_harness


async def test_stdout_bytes_count_the_attempt_that_ended(harness: WorkerHarness, tmp_path: Path) -> None:
    job = await harness.submit(f"echo output; [ -e {tmp_path}/again ] || {{ touch {tmp_path}/again; sleep 60; }}")
    async with harness.working():
        await harness.running(job)
        harness.hypervisor.made[0].process.kill()
        found = await harness.ended(job)
    assert (found.status, found.attempt, found.logs.stdout_bytes) == (Status.SUCCEEDED, 2, 7)
    records = [
        record async for record in JobLog(harness.settings.data_dir, open_blobs(harness.settings), job.id).read()
    ]
    output = [(record.attempt, record.data) for record in records if record.stream is LogStream.STDOUT]
    assert output == [(1, b"output\n"), (2, b"output\n")]
    assert harness.leftovers() == []


async def test_blobs_that_hang_keep_no_worker_from_its_first_claim(agent: Path, tmp_path: Path) -> None:
    """The logs of what it puts right at its start wait, and not the jobs behind them."""
    async with opened_harness(
        tmp_path / "data", agent, upload_times=replace(QUICK_UPLOADS, upload_seconds=600)
    ) as harness:
        held = await harness.submit("exit 0", max_attempts=1)
        assert await SqlClaims(harness.database).claim("w1", vcpus=1, memory_mb=1024, lease_seconds=30)
        with LogWriter(log_path(harness.settings.data_dir, held.id)) as writer:
            writer.append(LogStream.STDOUT, b"text")
        hanging = harness.faults.hang("blobs.put_file")
        job = await harness.submit("sleep 60")
        async with harness.working():
            await harness.running(job)
            assert (await harness.get(held)).status is Status.LOST
            hanging.left = 0
            await harness.cancel(job)
            await harness.ended(job)
