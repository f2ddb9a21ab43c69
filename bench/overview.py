"""Measures the dashboard's first pages over a database with many ended jobs: `bench/overview.py [JOBS]`.

The jobs end over eight days, with 20 of them a second in the last hour; the project has other jobs that wait and run.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import insert, text

from belljar.control.api.admin_key import ensure_admin_key
from belljar.control.api.app import create_app
from belljar.control.api.services import Services, open_services
from belljar.control.store.counting import TRIGGERS
from belljar.control.store.schema import COUNTING, jobs
from belljar.local_server import read_admin_key
from belljar.model.ids import first_id
from belljar.model.states import TERMINAL
from belljar.settings import Settings

_BATCH = 20_000
_SAMPLES = 15
#: How the migration counts the jobs that have ended.
_COUNT = """
INSERT INTO job_ends (project, minute, status, start_ms, jobs)
SELECT project, finished_at / 60000000, status, (started_at - created_at) / 1000 / 50 * 50, count(*) FROM jobs
GROUP BY 1, 2, 3, 4
"""
_PAGES = {
    "overview, 1 hour": "/?span=1h",
    "overview, 24 hours": "/?span=24h",
    "overview, 7 days": "/?span=7d",
    "jobs, first page": "/jobs",
    "jobs, failed": "/jobs?status=failed",
    "jobs, language that is rare": "/jobs?language=lua",
    "jobs, by label": "/jobs?label=team%3Dred",
}


async def main(number: int) -> None:
    with tempfile.TemporaryDirectory(prefix="belljar-overview-") as folder:
        settings = Settings(data_dir=Path(folder))
        async with open_services(settings) as services:
            await ensure_admin_key(services.keys, settings.data_dir)
            began = time.monotonic()
            await _fill(services, number)
            print(f"{number:,} ended jobs written in {time.monotonic() - began:.0f} s")
            transport = httpx.ASGITransport(create_app(services))
            headers = {"Authorization": f"Bearer {read_admin_key(settings.data_dir)}", "Accept": "text/html"}
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as http:
                for name, path in _PAGES.items():
                    await _measure(name, lambda path=path: http.get(path))


async def _measure(name: str, request: Callable[[], Awaitable[httpx.Response]]) -> None:
    times, size, busy = [], 0, time.process_time()
    for _ in range(_SAMPLES):
        began = time.perf_counter()
        response = await request()
        times.append((time.perf_counter() - began) * 1000)
        assert response.status_code == 200, response.text
        size = len(response.content)
    busy = (time.process_time() - busy) / _SAMPLES * 1000
    middle, highest = statistics.median(times), max(times)
    print(f"{name:30} p50 {middle:6.1f} ms   max {highest:6.1f} ms   CPU {busy:6.1f} ms   {size / 1024:5.1f} KiB")


async def _fill(services: Services, number: int) -> None:
    """Write the jobs without the triggers, and count them at the end as the migration does."""
    names = [trigger.split()[2] for trigger in (*TRIGGERS, *COUNTING)]

    def begin(connection: Any) -> None:
        for name in names:
            connection.execute(text(f"DROP TRIGGER {name}"))

    def end(connection: Any) -> None:
        connection.execute(text(_COUNT))
        for trigger in (*TRIGGERS, *COUNTING):
            connection.execute(text(trigger))

    await services.database.writing(begin)
    rows = _rows(number)
    while batch := [row for _, row in zip(range(_BATCH), rows, strict=False)]:
        await services.database.writing(lambda connection, batch=batch: connection.execute(insert(jobs), batch))
    await services.database.writing(end)


def _rows(number: int) -> Iterator[dict[str, Any]]:
    chosen, now = random.Random(1), datetime.now(UTC)
    recent = min(number // 4, 72_000)
    spec = {"language": "python", "entrypoint": "main.py", "image": "python", "timeout_seconds": 60.0, "labels": {}}
    spec["resources"] = {"vcpus": 1, "memory_mb": 256}
    statuses = sorted(TERMINAL)
    for count in range(number):
        back = (
            (number - count) / recent * 3600 if number - count < recent else 3600 + (number - count) / number * 680_000
        )
        created = now - timedelta(seconds=back + 5)
        yield {
            "id": first_id("job", created)[:-8] + f"{count:08d}",
            "project": "default",
            "script_id": "a" * 64,
            "status": statuses[0] if chosen.random() < 0.02 else "succeeded",
            "attempt": 1,
            "max_attempts": 2,
            "priority": 0,
            "vcpus": 1,
            "memory_mb": 256,
            "created_at": created,
            "started_at": created + timedelta(milliseconds=chosen.lognormvariate(4.5, 0.8)),
            "finished_at": created + timedelta(seconds=chosen.random() * 5),
            "cancel_requested": False,
            "spec": spec,
            "result": {"exit_code": 0},
        }


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if sys.argv[1:] else 1_000_000))
