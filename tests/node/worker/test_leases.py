"""Leases: a job has one machine at a time, whatever stores, clocks and processes do."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from belljar.control.store.claims import SqlClaims
from belljar.control.store.database import Database
from belljar.model.states import Status
from belljar.system.counters import counter_value
from support.faults import Faults
from support.worker_harness import WorkerHarness, idle, opened_harness
from support.worker_harness_process import worker_process

LEASE_SECONDS = 1.5


@pytest.fixture
async def harness(agent: Path, tmp_path: Path) -> AsyncIterator[WorkerHarness]:
    async with opened_harness(tmp_path / "data", agent, lease_seconds=LEASE_SECONDS) as harness:
        yield harness


def endless_at_first(notes: Path) -> str:
    """A script whose first run goes on for ever, noting that it lives, and whose second ends."""
    return f"""
        echo start >> {notes}
        if [ "$(grep -c start {notes})" -gt 1 ]; then sleep 0.3; echo end >> {notes}; exit 0; fi
        while :; do echo tick >> {notes}; sleep 0.02; done
    """


async def lose_all(database: Database) -> None:
    """End all leases now."""
    with contextlib.closing(sqlite3.connect(database._path)) as connection, connection:
        connection.execute("UPDATE jobs SET lease_until = 1 WHERE lease_until IS NOT NULL")
    await SqlClaims(database).expire()


def noted(notes: Path) -> list[str]:
    return notes.read_text().split() if notes.exists() else []


def assert_one_at_a_time(notes: Path) -> None:
    lines = noted(notes)
    second = len(lines) - lines[::-1].index("start") - 1
    assert lines.count("start") == 2 and lines[-1] == "end"
    assert "tick" not in lines[second:], "the first run went on beside the second"


async def test_a_worker_that_cannot_renew_ends_its_machine_before_another_begins(
    harness: WorkerHarness, tmp_path: Path
) -> None:
    notes, stuck = tmp_path / "notes", Faults()
    lost = counter_value("belljar_lost_leases")
    job = await harness.submit(endless_at_first(notes))
    async with harness.working("w1", faults=stuck):
        await harness.running(job)
        stuck.refuse("claims.*")
        async with harness.working("w2", faults=Faults()):
            found = await harness.ended(job)
            assert counter_value("belljar_lost_leases") == lost + 1
    assert (found.status, found.attempt, found.worker) == (Status.SUCCEEDED, 2, "w2")
    assert [each.code for each in found.lost_attempts] == ["lease_expired"]
    assert_one_at_a_time(notes)
    assert harness.hypervisor.alive == 0


async def test_a_store_that_hangs_is_a_lease_that_is_not_renewed(harness: WorkerHarness, tmp_path: Path) -> None:
    notes, stuck = tmp_path / "notes", Faults()
    job = await harness.submit(endless_at_first(notes))
    async with harness.working("w1", faults=stuck):
        await harness.running(job)
        stuck.hang("claims.renew")
        for call in ("requeue", "claim"):
            stuck.refuse(f"claims.{call}")
        async with harness.working("w2", faults=Faults()):
            found = await harness.ended(job)
    assert (found.status, found.worker) == (Status.SUCCEEDED, "w2")
    assert_one_at_a_time(notes)


async def test_an_attempt_whose_lease_was_given_away_is_stopped_and_changes_nothing(
    harness: WorkerHarness, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    job = await harness.submit(endless_at_first(notes))
    async with harness.working():
        await harness.running(job)
        machine = harness.hypervisor.made[0]
        await lose_all(harness.database)  # as the control plane would, once the lease has run out
        found = await harness.ended(job)
        async with asyncio.timeout(10):
            await machine.process.wait()
    assert (found.status, found.attempt) == (Status.SUCCEEDED, 2)
    assert noted(notes).count("start") == 2
    assert harness.hypervisor.alive == 0 and harness.leftovers() == []


async def test_a_store_that_refuses_for_longer_than_the_lease_loses_the_attempt_and_not_the_job(
    harness: WorkerHarness, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    job = await harness.submit(endless_at_first(notes))
    async with harness.working() as worker:
        await harness.running(job)
        machine = harness.hypervisor.made[0]
        harness.faults.refuse("claims.*")
        async with asyncio.timeout(10):
            await machine.process.wait()
        harness.faults.clear()
        found = await harness.ended(job)
    assert (found.status, found.attempt) == (Status.SUCCEEDED, 2)
    assert [each.code for each in found.lost_attempts] == ["lease_lost"]
    assert_one_at_a_time(notes)
    assert worker.capacity.jobs == 0


async def test_a_script_that_ended_while_the_store_refused_is_not_run_again_by_another_worker(
    harness: WorkerHarness, tmp_path: Path
) -> None:
    """The store refuses both, and for longer than the lease: neither takes the other for dead."""
    notes = tmp_path / "notes"
    job = await harness.submit(f"echo ran >> {notes}; sleep 0.3; exit 5")
    async with harness.working("w1"):
        await harness.running(job)
        async with harness.working("w2"):
            harness.faults.refuse("claims.*")
            await asyncio.sleep(2 * LEASE_SECONDS)
            assert harness.faults.calls["claims.finish"] > 1
            harness.faults.clear()
            found = await harness.ended(job)
    assert (found.status, found.exit_code, found.attempt, found.worker) == (Status.FAILED, 5, 1, "w1")
    assert noted(notes) == ["ran"]


async def test_a_script_that_ended_before_its_lease_was_lost_is_not_run_again(
    harness: WorkerHarness, tmp_path: Path
) -> None:
    """Its end cannot be written for longer than a lease, by a worker that lives and looks for silent ones."""
    notes = tmp_path / "notes"
    artifact = harness.faults.hang("blobs.put_file", times=1)
    harness.faults.refuse("claims.finish")
    job = await harness.submit(f"echo ran >> {notes}; echo made > out.txt; exit 5", artifacts=("*.txt",))
    async with harness.working(), asyncio.timeout(60):
        while not artifact.met:
            await asyncio.sleep(0.01)
        renewals = harness.faults.refuse("claims.renew")
        while not harness.faults.calls["claims.finish"]:
            await asyncio.sleep(0.01)
        renewals.left = 0
        looked = harness.faults.calls["claims.expire"]
        while harness.faults.calls["claims.expire"] < looked + 5:
            await asyncio.sleep(0.01)
        harness.faults.clear()
        found = await harness.ended(job)
    assert (found.status, found.exit_code, found.attempt) == (Status.FAILED, 5, 1)
    assert noted(notes) == ["ran"]


async def test_two_workers_on_one_queue_run_each_job_once(agent: Path, tmp_path: Path) -> None:
    async with opened_harness(tmp_path / "data", agent) as harness:
        jobs = [await harness.submit(f"echo {number} >> {tmp_path}/notes") for number in range(30)]
        async with harness.working("w1"), harness.working("w2"):
            found = [await harness.ended(job, 60) for job in jobs]
    assert {job.status for job in found} == {Status.SUCCEEDED}
    assert {job.worker for job in found} == {"w1", "w2"}
    assert sorted(map(int, noted(tmp_path / "notes"))) == list(range(30))


async def test_a_worker_that_is_killed_twice_in_a_row_loses_two_attempts(
    harness: WorkerHarness, agent: Path, tmp_path: Path
) -> None:
    notes, data_dir = tmp_path / "notes", harness.settings.data_dir
    job = await harness.submit(f"echo start >> {notes}; sleep 2; echo end >> {notes}", max_attempts=3)
    for attempt in (1, 2):
        async with worker_process(data_dir, agent) as process:
            await harness.until(job, lambda found: found.attempt == attempt and found.status is Status.RUNNING)  # noqa: B023
            process.kill()
            await process.wait()
    async with worker_process(data_dir, agent):
        found = await harness.ended(job)
    assert (found.status, found.attempt) == (Status.SUCCEEDED, 3)
    assert [each.code for each in found.lost_attempts] == ["worker_died", "worker_died"]
    assert noted(notes) == ["start", "start", "start", "end"]
    assert harness.leftovers() == []


async def test_a_script_that_ended_before_its_worker_was_killed_is_not_run_again(
    harness: WorkerHarness, agent: Path, tmp_path: Path
) -> None:
    notes, data_dir = tmp_path / "notes", harness.settings.data_dir
    (data_dir / "faults").write_text("claims.finish 1\n")
    job = await harness.submit(f"echo start >> {notes}; echo made > out.txt; exit 9", artifacts=("*.txt",))
    outcome = data_dir / "run" / "outcomes" / f"{job.id}.1"
    for _ in range(2):
        async with worker_process(data_dir, agent) as process:
            async with asyncio.timeout(60):
                while not (outcome.exists() and b"out.txt" in outcome.read_bytes()):
                    await asyncio.sleep(0.02)
            process.kill()
            await process.wait()
    (data_dir / "faults").unlink()
    async with worker_process(data_dir, agent):
        found = await harness.ended(job)
        async with asyncio.timeout(60):
            while harness.leftovers():  # its log is brought away after its end was written
                await asyncio.sleep(0.02)
    assert (found.status, found.exit_code, found.attempt) == (Status.FAILED, 9, 1)
    assert [each.path for each in found.kept_artifacts] == ["out.txt"]
    assert noted(notes) == ["start"]


@pytest.mark.parametrize("is_stopped", [True, False])
async def test_a_script_that_ended_is_not_run_again_when_its_lease_ran_out_before_that_was_known(
    harness: WorkerHarness, tmp_path: Path, is_stopped: bool
) -> None:
    """A server beside the worker lives, and rescues the job of a worker that is stopped, or cannot reach the store."""
    notes, faults = tmp_path / "notes", Faults()
    server = asyncio.create_task(harness.queue("w1", faults=Faults()).run())
    job = await harness.submit(f"echo ran >> {notes}; cat; sleep 0.2; exit 5", stdin=b"in", max_attempts=5)
    try:
        async with harness.working(faults=faults) as worker:
            await harness.running(job)
            faults.refuse("claims.*")
            async with asyncio.timeout(20):
                while not faults.calls["claims.finish"]:
                    await asyncio.sleep(0.01)
                if not is_stopped:
                    await harness.until(job, lambda found: found.status is Status.QUEUED)
                    faults.clear()
                    await harness.ended(job)
        faults.clear()
        await harness.until(job, lambda found: found.status is Status.QUEUED or found.status.terminal)
        async with harness.working(faults=faults) as worker:
            found = await harness.ended(job)
            await idle(worker)
    finally:
        server.cancel()
        await asyncio.wait({server})
    assert [lost.code for lost in found.lost_attempts] == ["lease_expired"]
    assert (found.status, found.exit_code, found.attempt) == (Status.FAILED, 5, 2)
    assert noted(notes) == ["ran"]
    assert list((harness.settings.data_dir / "run" / "outcomes").iterdir()) == []
