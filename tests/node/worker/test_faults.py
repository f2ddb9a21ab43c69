"""What fails around a job: the worker goes on, a script that ended is never run again, and nothing is left over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from belljar.model.errors import DiskFull, HostError
from belljar.model.job import Job
from belljar.model.states import Status
from belljar.node.worker.journal import Entry, read_journal
from support.faults import EIO, EMFILE, ENOSPC
from support.worker_harness import WorkerHarness, idle

Error = Callable[[], Exception]

#: What a job does on its way, in order.
BEFORE_THE_SCRIPT = [
    "link.claim",
    "claims.claim",
    "link.append_output",
    "images.verify",
    "link.script_disk",
    "script_disks.path",
    "blobs.get_bytes",
    "warm_ups.of",
    "provisioner.machine",
]
AFTER_THE_SCRIPT = [
    "claims.running",
    "link.started",
    "link.put_artifact",
    "blobs.put_file",
    "link.finish",
    "claims.finish",
]
BESIDE_THE_JOB = [
    "link.renew",
    "claims.renew",
    "claims.expire",
    "link.wait_for_cancellation",
    "claims.cancel_requested",
    "claims.statuses",
    "link.heartbeat",
    "nodes.heartbeat",
]
ERRORS: dict[str, Error] = {
    "refuses": lambda: HostError("it refuses"),
    "full": lambda: DiskFull("no room left"),
    "EMFILE": EMFILE,
    "ENOSPC": ENOSPC,
    "EIO": EIO,
    "bug": lambda: RuntimeError("a bug"),
}


def counting(folder: Path, code: int = 0) -> str:
    """A script that notes each of its runs."""
    return f"echo ran >> {folder}/runs; cat; echo made > out.txt; sleep 0.1; exit {code}"


def runs(folder: Path) -> int:
    noted = folder / "runs"
    return len(noted.read_text().splitlines()) if noted.exists() else 0


async def run_with(harness: WorkerHarness, folder: Path, **options: object) -> Job:
    job = await harness.submit(counting(folder), stdin=b"input", artifacts=("*.txt",), **options)
    async with harness.working() as worker:
        found = await harness.ended(job)
        await idle(worker)
    assert harness.hypervisor.alive == 0
    return found


@pytest.mark.parametrize("error", [name for name in ERRORS if name != "bug"])
@pytest.mark.parametrize("call", BEFORE_THE_SCRIPT)
async def test_what_is_refused_for_a_moment_before_the_script_costs_no_attempt(
    harness: WorkerHarness, tmp_path: Path, call: str, error: str
) -> None:
    rule = harness.faults.refuse(call, ERRORS[error], times=3)
    found = await run_with(harness, tmp_path)
    assert rule.met == 3
    assert (found.status, found.attempt, found.error) == (Status.SUCCEEDED, 1, None)
    assert runs(tmp_path) == 1
    assert harness.leftovers() == []


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("call", AFTER_THE_SCRIPT)
async def test_what_is_refused_after_the_script_does_not_run_it_again(
    harness: WorkerHarness, tmp_path: Path, call: str, error: str
) -> None:
    rule = harness.faults.refuse(call, ERRORS[error], times=3)
    found = await run_with(harness, tmp_path)
    assert rule.met >= 2 or call in ("claims.running", "link.started", "link.put_artifact")
    assert (found.status, found.exit_code, found.attempt) == (Status.SUCCEEDED, 0, 1)
    assert runs(tmp_path) == 1
    assert found.error is None or found.error.code == "artifacts_incomplete"


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("call", BESIDE_THE_JOB)
async def test_what_fails_beside_a_job_does_not_touch_it(
    harness: WorkerHarness, tmp_path: Path, call: str, error: str
) -> None:
    harness.faults.refuse(call, ERRORS[error], times=2)
    found = await run_with(harness, tmp_path)
    assert (found.status, found.attempt) == (Status.SUCCEEDED, 1)
    assert runs(tmp_path) == 1


@pytest.mark.parametrize("error", ERRORS)
async def test_blobs_that_refuse_for_good_leave_the_end_as_it_was(
    harness: WorkerHarness, tmp_path: Path, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("belljar.node.worker.script_run.COLLECT_SECONDS", 0.5)
    harness.faults.refuse("blobs.put_file", ERRORS[error])
    found = await run_with(harness, tmp_path, timeout_seconds=30)
    assert (found.status, found.exit_code, found.attempt) == (Status.SUCCEEDED, 0, 1)
    assert found.error is not None and found.error.code == "artifacts_incomplete"
    assert found.kept_artifacts == ()
    assert runs(tmp_path) == 1


async def test_a_log_that_could_not_be_kept_is_kept_later(harness: WorkerHarness) -> None:
    job = await harness.submit("echo hello")
    harness.faults.refuse("blobs.put_file")
    log = harness.settings.data_dir / "run" / "logs" / f"{job.id}.log"
    kept = harness.settings.data_dir / "blobs" / "jobs" / job.id / "log"
    async with harness.working():
        found = await harness.ended(job)
        assert (found.status, found.error) == (Status.SUCCEEDED, None)
        assert log.exists() and not kept.exists()
        harness.faults.clear()
        async with asyncio.timeout(10):
            while log.exists():
                await asyncio.sleep(0.02)
    assert b"hello" in kept.read_bytes()
    assert harness.leftovers() == []


async def test_a_bug_loses_one_attempt_and_not_the_worker(harness: WorkerHarness, tmp_path: Path) -> None:
    harness.faults.refuse("script_disks.path", lambda: RuntimeError("a bug"), times=1)
    found = await run_with(harness, tmp_path)
    assert (found.status, found.attempt) == (Status.SUCCEEDED, 2)
    assert [lost.code for lost in found.lost_attempts] == ["internal_error"]
    assert harness.leftovers() == []


async def test_the_machine_is_gone_before_the_store_takes_the_end(harness: WorkerHarness, tmp_path: Path) -> None:
    """A job's own scratch disk may be what fills the disk that its end is to be written to."""
    harness.faults.refuse("claims.finish", lambda: DiskFull("no room left"))
    job = await harness.submit(counting(tmp_path))
    async with harness.working() as worker:
        async with asyncio.timeout(10):
            while not harness.faults.calls["claims.finish"] or list(
                (harness.settings.data_dir / "machines" / "w1").iterdir()
            ):
                await asyncio.sleep(0.01)
        assert harness.hypervisor.alive == 0
        assert (await harness.get(job)).status in (Status.STARTING, Status.RUNNING)
        harness.faults.clear()
        found = await harness.ended(job)
    assert (found.status, found.attempt) == (Status.SUCCEEDED, 1)
    assert worker.capacity.jobs == 0


async def test_a_machine_that_cannot_be_removed_does_not_undo_the_end(harness: WorkerHarness, tmp_path: Path) -> None:
    harness.faults.refuse("provisioner.release", EIO)
    found = await run_with(harness, tmp_path)
    assert (found.status, found.attempt) == (Status.SUCCEEDED, 1)
    assert runs(tmp_path) == 1


@pytest.mark.parametrize("refused", ["claims.finish", "claims.*", "link.*", "*.*"])
async def test_stopping_ends_in_time_while_the_store_refuses_and_the_next_start_knows_the_end(
    harness: WorkerHarness, tmp_path: Path, refused: str
) -> None:
    job = await harness.submit(f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; {counting(tmp_path, code=7)}")
    async with harness.working():
        await harness.running(job)
        harness.faults.refuse(refused)
        (tmp_path / "go").touch()
        async with asyncio.timeout(10):
            while not harness.faults.calls["link.finish"]:
                await asyncio.sleep(0.01)
    assert not (await harness.get(job)).status.terminal
    harness.faults.clear()
    async with harness.working():
        found = await harness.ended(job)
        async with asyncio.timeout(60):
            while harness.leftovers():  # its log is brought away after its end was written
                await asyncio.sleep(0.02)
    assert (found.status, found.exit_code, found.attempt) == (Status.FAILED, 7, 1)
    assert runs(tmp_path) == 1


async def test_stopping_while_a_script_runs_gives_its_job_back(harness: WorkerHarness, tmp_path: Path) -> None:
    job = await harness.submit("sleep 60")
    async with harness.working():
        await harness.running(job)
    found = await harness.get(job)
    assert found.status is Status.QUEUED and [lost.code for lost in found.lost_attempts] == ["worker_stopped"]
    assert harness.hypervisor.alive == 0 and harness.leftovers() == []


async def test_a_job_is_cancelled_while_its_blobs_refuse(harness: WorkerHarness) -> None:
    harness.faults.refuse("blobs.get_bytes")
    job = await harness.submit("cat", stdin=b"input")
    async with harness.working():
        await harness.until(job, lambda found: found.status is Status.STARTING)
        await harness.cancel(job)
        found = await harness.ended(job)
    assert found.status is Status.CANCELLED
    assert harness.hypervisor.made == []


async def test_cancelling_ends_the_fetching_of_artifacts(harness: WorkerHarness) -> None:
    harness.faults.hang("blobs.put_file")
    job = await harness.submit("echo made > out.txt", artifacts=("*.txt",))
    async with harness.working():
        async with asyncio.timeout(10):
            while not harness.faults.calls["blobs.put_file"]:
                await asyncio.sleep(0.01)
        await harness.cancel(job)
        found = await harness.ended(job)
    assert (found.status, found.exit_code) == (Status.SUCCEEDED, 0)
    assert found.error is not None and found.error.code == "artifacts_incomplete"
    assert "cancelled" in found.error.message


async def test_an_end_is_noted_with_an_incomplete_log_while_output_is_not_sent(
    harness: WorkerHarness, tmp_path: Path
) -> None:
    """A worker that is killed before the control plane has all output must not call the log complete."""
    job = await harness.submit(f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; echo text")
    async with harness.working(), asyncio.timeout(20):
        await harness.running(job)
        harness.faults.refuse("link.append_output")
        (tmp_path / "go").touch()
        entries: list[Entry | None] = [None]
        while entries == [None]:
            entries = [entry for _, entry in read_journal(harness.settings.data_dir)]
            await asyncio.sleep(0.001)
        (entry,) = entries
        assert entry is not None and entry.outcome.logs.incomplete
        assert entry.outcome.error is not None and entry.outcome.error.code == "log_incomplete"
        harness.faults.clear()
        found = await harness.ended(job)
    assert (found.error, found.logs.incomplete, found.logs.stdout_bytes) == (None, False, 5)
