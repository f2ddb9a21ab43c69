"""A host that really runs out: of descriptors, of disk, of files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from belljar.model.states import Status
from support.mounts import small_tmpfs
from support.worker_harness import WorkerHarness, idle, opened_harness


@pytest.fixture
async def small(agent: Path, tmp_path: Path) -> AsyncIterator[WorkerHarness]:
    """A harness whose data folder is a file system of 4 MB with few files."""
    with small_tmpfs(tmp_path / "small", "size=4m,nr_inodes=200") as folder:
        async with opened_harness(folder / "data", agent) as harness:
            yield harness


def fill(folder: Path) -> Path:
    """Leave no room for one more block."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    return filler


def use_all_files(folder: Path) -> list[Path]:
    made = []
    with contextlib.suppress(OSError):
        for number in range(1000):
            (folder / f"file{number}").touch()
            made.append(folder / f"file{number}")
    assert len(made) < 1000
    return made


async def test_a_script_that_fills_the_disk_ends_once_there_is_room_and_runs_once(
    small: WorkerHarness, tmp_path: Path
) -> None:
    """The disk is full when the script ends: the database, the blobs and the log can take nothing."""
    filler = small.settings.data_dir / "filler"
    script = f"echo ran >> {tmp_path}/runs; cat /dev/zero > {filler}; echo made > {tmp_path}/out; exit 6"
    job = await small.submit(script)
    async with small.working() as worker:
        async with asyncio.timeout(20):
            while not (tmp_path / "out").exists() or small.hypervisor.alive:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        filler.unlink()
        found = await small.ended(job)
        after = await small.ended(await small.submit("echo hello"))
        await idle(worker)
    assert (found.status, found.exit_code, found.attempt) == (Status.FAILED, 6, 1)
    assert after.status is Status.SUCCEEDED
    assert (tmp_path / "runs").read_text() == "ran\n"


async def test_artifacts_that_do_not_fit_leave_the_script_succeeded(small: WorkerHarness, tmp_path: Path) -> None:
    job = await small.submit(
        f"echo ran >> {tmp_path}/runs; mkdir -p {tmp_path}/x; head -c 3000000 /dev/zero > big", artifacts=("big",)
    )
    filler = small.settings.data_dir / "filler"
    filler.write_bytes(b"x" * 500_000)
    async with small.working():
        found = await small.ended(job)
        filler.unlink()
    assert (found.status, found.exit_code, found.attempt) == (Status.SUCCEEDED, 0, 1)
    assert found.error is not None and found.error.code == "artifacts_incomplete"
    assert "no room left" in found.error.message
    assert (tmp_path / "runs").read_text() == "ran\n"


async def test_without_a_file_to_make_jobs_wait_and_the_worker_lives(small: WorkerHarness) -> None:
    job = await small.submit("echo hello")
    async with small.working():
        await small.ended(job)
        files = use_all_files(small.settings.data_dir)
        for path in files[:4]:
            path.unlink()  # what the queue takes for the next one
        waiting = await small.submit("echo hello")
        files = use_all_files(small.settings.data_dir)
        await asyncio.sleep(1)
        for path in small.settings.data_dir.glob("file*"):
            path.unlink()
        found = await small.ended(waiting)
    assert (found.status, found.exit_code) == (Status.SUCCEEDED, 0)


async def test_without_a_descriptor_jobs_wait_and_the_worker_lives(harness: WorkerHarness, tmp_path: Path) -> None:
    """The limit is put where the process stands, again and again: whatever needs a descriptor then fails."""
    jobs = [await harness.submit(f"echo {number} >> {tmp_path}/runs; sleep 0.1") for number in range(12)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with harness.working(vcpus=2) as worker:
        await harness.ended(jobs[0])
        try:
            for _ in range(12):
                resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, hard))
                await asyncio.sleep(0.15)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                await asyncio.sleep(0.05)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        found = [await harness.ended(job, 60) for job in jobs]
        await idle(worker)
        async with asyncio.timeout(10):
            while any((harness.settings.data_dir / "run" / "logs").iterdir()):
                await asyncio.sleep(0.05)
    assert {(job.status, job.exit_code) for job in found} == {(Status.SUCCEEDED, 0)}
    assert sorted(map(int, (tmp_path / "runs").read_text().split())) == list(range(12))
    assert harness.hypervisor.alive == 0
    # A machine's folder, which the harness could not even list to remove it, is not the worker's.
    assert [each for each in harness.leftovers() if not each.startswith("machines/")] == []
