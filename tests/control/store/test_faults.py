"""The store when it is interrupted, locked, full or killed: no committed write is lost, and it recovers."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from belljar.control.store import database as database_module
from belljar.control.store.claims import SqlClaims
from belljar.control.store.database import Database
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.opening import open_database
from belljar.model.errors import DiskFull, HostError
from belljar.model.states import Status
from belljar.settings import Settings
from support.job_queue import lose_all, queued, take
from support.paths import TESTS

pytestmark = pytest.mark.process


async def several_statements(database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(text("UPDATE jobs SET priority = priority + 1"))
        await connection.execute(text("UPDATE jobs SET priority = priority - 1"))


async def several_reads(database: Database) -> None:
    async with database.read() as connection:
        await connection.execute(text("SELECT * FROM jobs"))
        await connection.execute(text("SELECT count(*) FROM jobs"))


async def test_requests_that_are_cancelled_anywhere_leave_nothing_half_way(database: Database) -> None:
    jobs, kept = SqlJobs(database), 0
    choose = random.Random(1)

    def work(number: int) -> asyncio.Task[object]:
        kinds = [jobs.insert(queued()), jobs.counts(), several_statements(database), several_reads(database)]
        chosen = kinds.pop(number % 4)
        for other in kinds:
            other.close()
        return asyncio.create_task(chosen)  # type: ignore[arg-type]

    for _ in range(25):
        tasks = [work(number) for number in range(16)]
        for _ in range(choose.randrange(60)):
            await asyncio.sleep(0)
        for task in tasks:
            if choose.random() < 0.7:
                task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(end) for end in ends if isinstance(end, BaseException)} <= {asyncio.CancelledError}
        kept += sum(task.cancelled() is False and number % 4 == 0 for number, task in enumerate(tasks))
    counted = (await jobs.counts())[Status.QUEUED]
    assert counted >= kept > 0  # what was cancelled while it was written may be there too, whole
    found, _ = await jobs.list("mine", limit=1000)
    assert len(found) == counted and {job.priority for job in found} == {0}
    # Every connection is there and none is in a transaction.
    async with asyncio.timeout(10):
        await asyncio.gather(*(several_reads(database) for _ in range(20)), several_statements(database))
    with sqlite3.connect(database._path, timeout=0) as other:
        other.execute("BEGIN EXCLUSIVE")
        other.rollback()


async def test_a_locked_database_is_reported_and_works_again_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.2)
    database = await open_database(Settings(data_dir=tmp_path))
    jobs, claims = SqlJobs(database), SqlClaims(database)
    await jobs.insert(queued())
    with sqlite3.connect(tmp_path / "belljar.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        for attempt in (jobs.insert(queued()), take(claims), several_statements(database)):
            with pytest.raises(HostError, match="locked by another process"):
                await attempt
        assert await jobs.counts() == {Status.QUEUED: 1}  # reading goes on
        other.rollback()
    await jobs.insert(queued())
    assert await take(claims) is not None
    await database.close()


@pytest.mark.root
async def test_a_disk_that_was_full_for_a_while_is_written_again(database_disk: Path) -> None:
    database = await open_database(Settings(data_dir=database_disk))
    jobs, kept = SqlJobs(database), []
    await jobs.insert(queued())
    with (database_disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    for _ in range(3):
        with pytest.raises(DiskFull):
            for _ in range(100):
                kept.append((await jobs.insert(queued(env={"A": "x" * 5000}))).id)
    assert (await jobs.counts())[Status.QUEUED] == 1 + len(kept)
    (database_disk / "filler").unlink()
    kept.append((await jobs.insert(queued())).id)
    assert await take(SqlClaims(database)) is not None
    found, _ = await jobs.list("mine", limit=500)
    assert set(kept) < {job.id for job in found}
    await database.close()


_WRITE = """
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from belljar.settings import Settings
from belljar.control.store.claims import SqlClaims
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.opening import open_database
from belljar.model.states import Status
from support.job_queue import ended, lose_all, queued

async def main():
    database = await open_database(Settings(data_dir=Path(sys.argv[1])))
    jobs, claims = SqlJobs(database), SqlClaims(database)

    async def submit():
        while True:
            job = await jobs.insert(queued(labels={"a": "b"}))
            print("queued", job.id, flush=True)

    async def work(worker):
        for job in await lose_all(claims, worker):
            print("recovered", job.id, flush=True)
        while True:
            job = await claims.claim(worker, vcpus=1, memory_mb=256, lease_seconds=30)
            if job is not None and await claims.finish(worker, job, ended(Status.FAILED)):
                print("failed", job.id, flush=True)

    await asyncio.gather(submit(), submit(), work("w1"), work("w2"))

asyncio.run(main())
"""


async def test_killed_twice_in_the_middle_of_writes_nothing_that_was_answered_is_lost(tmp_path: Path) -> None:
    answered: dict[str, set[str]] = {"queued": set(), "failed": set(), "recovered": set()}
    for lines_before_death in (120, 40):
        command = [sys.executable, "-c", _WRITE, str(tmp_path), str(TESTS)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(lines_before_death)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        assert process.wait(30) == -signal.SIGKILL
        for line in lines:
            if line.endswith("\n"):
                what, job_id = line.split()
                answered[what].add(job_id)
    assert len(answered["queued"]) > 10 and len(answered["failed"]) > 10
    with sqlite3.connect(tmp_path / "belljar.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database = await open_database(Settings(data_dir=tmp_path))
    jobs, claims = SqlJobs(database), SqlClaims(database)
    found = {job.id: job for job in (await jobs.list("mine", limit=100_000))[0]}
    assert answered["queued"] <= found.keys()
    assert {found[job_id].status for job_id in answered["failed"]} == {Status.FAILED}
    # What was held when it was killed is queued again, and each job has its labels.
    for worker in ("w1", "w2"):
        await lose_all(claims, worker)
    counts = await jobs.counts()
    assert counts.keys() <= {Status.QUEUED, Status.FAILED, Status.LOST} and sum(counts.values()) == len(found)
    assert len((await jobs.list("mine", label="a=b", limit=100_000))[0]) == len(found)
    await database.close()


_FAIL_AND_COME_BACK = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from belljar.model.errors import HostError
from belljar.settings import Settings
from belljar.control.store.claims import SqlClaims
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.opening import open_database
from support.job_queue import lose_all, queued, take

async def main():
    database = await open_database(Settings(data_dir=Path(sys.argv[1])))
    jobs, claims, flag = SqlJobs(database), SqlClaims(database), Path(os.environ["FAIL_WHILE"])
    kept = [(await jobs.insert(queued())).id]
    for _ in range(3):
        flag.touch()
        for attempt in (lambda: jobs.insert(queued()), lambda: take(claims)):
            try:
                await attempt()
                print("no error")
            except HostError as error:
                print("refused", error.message)
        assert (await jobs.counts())["queued"] >= 1
        flag.unlink()
        kept.append((await jobs.insert(queued())).id)
        assert await take(claims) is not None
    found = {job.id for job in (await jobs.list("mine"))[0]}
    print("whole" if found == set(kept) else f"{found} {kept}")
    await database.close()

asyncio.run(main())
"""


def test_a_disk_whose_writes_failed_for_a_while_is_written_again(tmp_path: Path) -> None:
    library = tmp_path / "failing.so"
    source = Path(__file__).with_name("failing_disk.c")
    compiler = [cc] if (cc := shutil.which("cc")) else [sys.executable, "-m", "ziglang", "cc"]
    subprocess.run([*compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, timeout=300)
    run = subprocess.run(
        [sys.executable, "-c", _FAIL_AND_COME_BACK, str(tmp_path / "data"), str(TESTS)],
        env={**os.environ, "LD_PRELOAD": str(library), "FAIL_WHILE": str(tmp_path / "failing")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = run.stdout.splitlines()
    assert run.returncode == 0, run.stderr
    assert lines[-1] == "whole"
    assert len(lines) == 7 and all("refused" in line and "disk I/O error" in line for line in lines[:-1]), lines
    with sqlite3.connect(tmp_path / "data/belljar.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
