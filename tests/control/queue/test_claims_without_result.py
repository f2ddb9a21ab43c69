"""A node that none of many queued jobs fits: its searches read the whole queue, and are few."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Row

from belljar.control.store.job_search import JobSearches
from belljar.link.leases import ClaimRequest, NodeIdentity
from support.control_plane import ControlPlane, opened_control_plane

#: A search through so many takes some milliseconds of processor time.
COUNT = 20_000
WAIT_SECONDS = 1.0
REQUEST = ClaimRequest(vcpus=4, memory_mb=4096, images=frozenset({"a" * 64}))


def fill(connection: Connection) -> None:
    """Copy the one job that is there."""
    columns = [row[1] for row in connection.exec_driver_sql("PRAGMA table_info(jobs)")]
    others = ", ".join(name for name in columns if name != "id")
    connection.exec_driver_sql(
        f"""WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {COUNT})
        INSERT INTO jobs (id, {others})
        SELECT printf('job_%026d', n), {others} FROM numbers, (SELECT * FROM jobs LIMIT 1)"""
    )


async def wake_for_ever(plane: ControlPlane) -> None:
    while True:
        plane.changes.notify_queued()
        await asyncio.sleep(0.001)


async def test_a_stream_of_jobs_that_do_not_fit_costs_a_bounded_part_of_a_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs: list[float] = []
    run = JobSearches.run

    def noted(searches: JobSearches, worker: str, *arguments: Any) -> Row[Any] | None:
        row = run(searches, worker, *arguments)
        costs.append(searches.seconds(worker))
        return row

    monkeypatch.setattr(JobSearches, "run", noted)
    node = NodeIdentity.new("w1")
    async with opened_control_plane(tmp_path) as plane:
        await plane.submit(image_digest="b" * 64)
        await plane.database.writing(fill)
        waking = asyncio.create_task(wake_for_ever(plane))
        started = time.monotonic()
        assert await plane.queue.link.claim(node, REQUEST, WAIT_SECONDS) is None
        waited = time.monotonic() - started
        waking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waking
        # Each search but the last is followed by ten times its processor time; the machine's load only makes it less.
        assert min(costs) > 0
        assert sum(costs[:-1]) <= waited / 10
        # A job that fits is claimed at the next search.
        job = await plane.submit(image_digest="a" * 64)
        assignment = await plane.queue.link.claim(node, REQUEST, 10)
        assert assignment is not None and assignment.job.id == job.id
        assert costs[-1] == 0
