"""How long a claim takes beside many queued and many ended jobs: makes such a database and takes jobs from it.

    .venv/bin/python bench/claim_scale.py [QUEUED [ENDED [CLAIMS [PROJECTS]]]]

The database lies in a temporary folder; the jobs are spread over the projects, of which one has half. Prints
milliseconds: p50, p90, p99, the slowest, and the median of the processor time, of claims, of the ends of
those jobs, of lists and of the counts that /metrics shows. On a busy host only the processor time says something.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from belljar.control.store.claims import SqlClaims
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.opening import open_database
from belljar.model.ids import new_id
from belljar.model.job import Job
from belljar.model.outcome import Outcome
from belljar.model.states import Status
from belljar.settings import Settings
from support.job_queue import queued

_ENDS = (Status.SUCCEEDED, Status.SUCCEEDED, Status.SUCCEEDED, Status.FAILED)
_BATCH = 50_000


async def main(queued: int, ended: int, claims: int, projects: int) -> None:
    with tempfile.TemporaryDirectory(prefix="belljar-claims-") as folder:
        settings = Settings(data_dir=Path(folder))
        database = await open_database(settings)
        await SqlJobs(database).insert(_job())
        await database.close()
        started = time.monotonic()
        _fill(Path(folder) / "belljar.db", queued, ended, projects)
        size_mb = sum(path.stat().st_size for path in Path(folder).glob("belljar.db*")) >> 20
        seconds = time.monotonic() - started
        print(f"{queued} queued and {ended} ended, {projects} projects: {size_mb} MB, made in {seconds:.0f} s")
        database = await open_database(settings)
        try:
            await _measure(SqlJobs(database), SqlClaims(database), claims)
        finally:
            await database.close()


def _job() -> Job:
    return queued(project="default", image_digest="b" * 64, labels={"team": "a"})


def _fill(path: Path, queued: int, ended: int, projects: int) -> None:
    """Copy the one job that is there so many times, in ids and states of their own."""
    with sqlite3.connect(path, isolation_level=None) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -200000")
        names = [row[1] for row in connection.execute("PRAGMA table_info(jobs)")]
        row = dict(zip(names, connection.execute("SELECT * FROM jobs").fetchone(), strict=True))
        indexes = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'jobs' AND sql IS NOT NULL"
        ).fetchall()
        for name, _ in indexes:
            connection.execute(f"DROP INDEX {name}")
        insert = f"INSERT INTO jobs ({', '.join(names)}) VALUES ({', '.join(':' + name for name in names)})"
        for first in range(0, queued + ended, _BATCH):
            connection.execute("BEGIN")
            connection.executemany(
                insert,
                [
                    {
                        **row,
                        "id": new_id("job"),
                        "status": _status(number, ended),
                        "priority": number % 7 - 3,
                        "project": _project(number, projects),
                    }
                    for number in range(first, min(first + _BATCH, queued + ended))
                ],
            )
            connection.execute("COMMIT")
        for _, sql in indexes:
            connection.execute(sql)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def _project(number: int, projects: int) -> str:
    return "default" if number % 2 or projects == 1 else f"project{number // 2 % (projects - 1)}"


def _status(number: int, ended: int) -> str:
    return (_ENDS[number % len(_ENDS)] if number < ended else Status.QUEUED).value


async def _measure(jobs: SqlJobs, claims: SqlClaims, count: int) -> None:
    held: list[Job] = []

    async def claim() -> None:
        job = await claims.claim("w", vcpus=4, memory_mb=4096, lease_seconds=300)
        assert job is not None
        held.append(job)

    async def finish() -> None:
        now = datetime.now(UTC)
        await claims.finish("w", held.pop(), Outcome(status=Status.SUCCEEDED, started_at=now, finished_at=now))

    await claims.claim("w", vcpus=4, memory_mb=4096, lease_seconds=300)  # what is loaded late is loaded
    await _timed("claim", claim, count)
    await _timed("nothing fits", lambda: claims.claim("w", vcpus=0, memory_mb=0, lease_seconds=300), count)
    await _timed("finish", finish, count)
    await _timed("list, succeeded", lambda: jobs.list("default", status=Status.SUCCEEDED), 20)
    await _timed("list, running", lambda: jobs.list("default", status=Status.RUNNING), 20)
    await _timed("list, label", lambda: jobs.list("default", label="team=a"), 20)
    await _timed("counts", jobs.counts, 20)


async def _timed(what: str, do: Callable[[], Awaitable[object]], count: int) -> None:
    times, processor_times = [], []
    for _ in range(count):
        started, processor_started = time.perf_counter(), time.process_time()
        await do()
        times.append((time.perf_counter() - started) * 1000)
        processor_times.append((time.process_time() - processor_started) * 1000)
    times.sort()
    processor_p50 = sorted(processor_times)[count // 2]
    p50, p90, p99 = (times[int(len(times) * part)] for part in (0.5, 0.9, 0.99))
    wall = f"p50 {p50:8.2f}  p90 {p90:8.2f}  p99 {p99:8.2f}  max {times[-1]:8.2f} ms"
    print(f"{what:16} {wall}  processor p50 {processor_p50:8.2f} ms", flush=True)


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    asyncio.run(main(*(given + [100_000, 1_000_000, 200, 1][len(given) :])))
