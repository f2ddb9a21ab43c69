"""How fast ended jobs are removed, and what claims feel of it: sweeps a data folder beside a worker that claims.

    .venv/bin/python bench/retention.py [JOBS [CLAIMS_A_SECOND]]

Every tenth job has a log and an artifact in the blob folder, the others a log alone. Prints rows a second, the longest
transaction, and milliseconds (p50, p99, slowest) of submitting and of claiming, alone and beside the sweep.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from belljar.control.blobs.store import open_blobs
from belljar.control.maintenance.jobs import JobCleaner
from belljar.control.maintenance.schedule import Maintenance
from belljar.control.store.claims import SqlClaims
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.opening import open_database
from belljar.control.store.retention import SqlRetention
from belljar.model.ids import new_id
from belljar.model.job import Job
from belljar.settings import Settings
from support.job_queue import queued

_ALONE_SECONDS = 5.0


def job() -> Job:
    return queued(project="default", env={"NAME": "value" * 20}, labels={"batch": "one", "kind": "test"})


def fill(folder: Path, number: int) -> None:
    """Copies of the one job that is there, as if they had ended long ago, and their blobs."""
    ended = int((datetime.now(UTC) - timedelta(days=400)).timestamp() * 1e6)
    ids = [new_id("job") for _ in range(number)]
    with sqlite3.connect(folder / "belljar.db") as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(jobs)")]
        changed = {"id": "?1", "status": "'succeeded'", "finished_at": "?2"}
        values = ", ".join(changed.get(column, column) for column in columns)
        first = connection.execute("SELECT id FROM jobs").fetchone()[0]
        insert = f"INSERT INTO jobs SELECT {values} FROM jobs WHERE id = '{first}'"
        connection.executemany(insert, ((each, ended + index) for index, each in enumerate(ids)))
        for name in ("batch", "kind"):
            connection.executemany(
                "INSERT INTO job_labels (job_id, name, value, project) VALUES (?, ?, 'x', 'default')",
                ((each, name) for each in ids),
            )
    for index, each in enumerate(ids):
        top = folder / "blobs" / "jobs" / each
        top.mkdir(parents=True)
        (top / "log").write_bytes(b"x" * 200)
        if index % 10 == 0:
            (top / "artifacts").mkdir()
            (top / "artifacts" / "0").write_bytes(b"x" * 1000)


async def work(jobs: SqlJobs, claims: SqlClaims, pause: float, until: Callable[[], bool]) -> dict[str, list[float]]:
    """Submit and claim until then; returns the milliseconds of each."""
    times: dict[str, list[float]] = {"submit": [], "claim": []}
    while not until():
        started = time.perf_counter()
        await jobs.insert(job())
        submitted = time.perf_counter()
        await claims.claim("w1", vcpus=64, memory_mb=1 << 20, lease_seconds=600)
        times["submit"].append((submitted - started) * 1000)
        times["claim"].append((time.perf_counter() - submitted) * 1000)
        await asyncio.sleep(pause)
    return times


def show(title: str, times: dict[str, list[float]]) -> None:
    for name, values in times.items():
        ordered = sorted(values)
        p50, p99 = (ordered[int(len(ordered) * share)] for share in (0.5, 0.99))
        print(f"{title} {name}: {len(ordered)}, p50 {p50:.2f}, p99 {p99:.2f}, slowest {ordered[-1]:.2f} ms")


async def main(number: int, per_second: float) -> None:
    with tempfile.TemporaryDirectory(prefix="belljar-retention-") as name:
        settings = Settings(data_dir=Path(name))
        database = await open_database(settings)
        jobs, claims = SqlJobs(database), SqlClaims(database)
        await jobs.insert(job())
        started = time.monotonic()
        await asyncio.to_thread(fill, Path(name), number)
        print(f"{number} ended jobs made in {time.monotonic() - started:.0f} s")
        end = time.monotonic() + _ALONE_SECONDS
        show("alone", await work(jobs, claims, 1 / per_second, lambda: time.monotonic() > end))

        cleaner = JobCleaner(settings, SqlRetention(database), open_blobs(settings))
        maintenance = Maintenance(settings, database, [cleaner])
        started = time.monotonic()
        sweeping = asyncio.create_task(_sweep(maintenance))
        times = await work(jobs, claims, 1 / per_second, sweeping.done)
        seconds = time.monotonic() - started
        removed = await sweeping
        print(
            f"sweep: {removed} jobs in {seconds:.1f} s, {removed / seconds:.0f} a second; longest transaction "
            f"{cleaner.pace.longest_seconds * 1000:.1f} ms, batches of {cleaner.pace.rows} at the end"
        )
        show("beside the sweep", times)
        await database.close()


async def _sweep(maintenance: Maintenance) -> int:
    return sum([outcome.result.removed.count async for outcome in maintenance.run_once()])


if __name__ == "__main__":
    asyncio.run(main(int((sys.argv[1:] or ["100000"])[0]), float((sys.argv[2:] or ["50"])[0])))
