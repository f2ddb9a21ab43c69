"""Pictures of the dashboard's pages over example data: `script/screenshots FOLDER [PAGE…]`."""

from __future__ import annotations

import asyncio
import math
import random
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from belljar.control.jobs.blob_names import artifact_blob
from belljar.control.store.nodes import Node
from belljar.control.store.schema import job_ends
from belljar.link.leases import LeaseKey, NodeIdentity
from belljar.link.nodes import NodeReport
from belljar.local_server import read_admin_key
from belljar.model.job import Artifact, Job, JobError, NetworkUse, Refusal, Timings, Usage
from belljar.model.states import Status
from belljar.model.usage_series import UsageSeries
from support.chromium import chromium, new_page
from support.example_project import project_pages
from support.live import keep_output, listening, write_output
from support.registered_images import register
from support.served import Served, served

SIZES = {"wide": {"width": 1360, "height": 900}, "phone": {"width": 390, "height": 844}}
SCHEMES = ("light", "dark")
#: Plots and output are drawn after a page has been loaded.
_SETTLED_MILLISECONDS = 700

_OUTPUT = b"""\x1b[1mCollecting\x1b[0m 3 files
\x1b[32mPASSED\x1b[0m tests/test_model.py \x1b[90m(12 tests)\x1b[0m
\x1b[32mPASSED\x1b[0m tests/test_store.py \x1b[90m(48 tests)\x1b[0m
\x1b[31mFAILED\x1b[0m tests/test_api.py::test_limits
\x1b[33mwarning:\x1b[0m 2 deprecated calls
  File "tests/test_api.py", line 41, in test_limits
    assert response.status == 429
\x1b[31mAssertionError\x1b[0m: 200 != 429
\x1b[1;31m1 failed\x1b[0m, \x1b[32m60 passed\x1b[0m in 1.84 s
"""
_LABELS = ({"team": "search"}, {"team": "ads", "run": "nightly"}, {"ci": "main"}, {})
_CSV = b"name,exams,mean\nAda,2,95.5\nGrace,3,91.0\nLinus,1,78.0\n"


async def main(arguments: list[str]) -> None:
    """Take the pictures of all pages, or of those that are named, into a folder."""
    out = Path(arguments[0])
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="belljar-screenshots-"))
    try:
        for name in ("python", "scripting", "shell"):
            register(folder, name)
        async with (
            served(folder) as api,
            project_pages(api, folder / "box") as of_project,
            listening(api.services) as url,
            chromium() as browser,
        ):
            pages = await example_pages(api) | of_project
            key = read_admin_key(folder)
            assert key is not None
            for scheme in SCHEMES:
                for size, viewport in SIZES.items():
                    options: dict[str, Any] = {"color_scheme": scheme, "viewport": viewport}
                    async with new_page(browser, url, key, **options) as page:
                        for name in arguments[1:] or pages:
                            await page.goto(pages[name])
                            await page.wait_for_timeout(_SETTLED_MILLISECONDS)
                            await page.screenshot(path=out / f"{name}-{size}-{scheme}.png", full_page=True)
    finally:
        shutil.rmtree(folder)


async def example_pages(api: Served) -> dict[str, str]:
    """Make example data, and return the addresses of the pages by name."""
    await _report_node(api)
    await _count_ends(api)
    chosen = random.Random(7)
    for number in range(14):
        await _ended(api, chosen, number)
    await api.submit(code="import time; time.sleep(9)", labels={"team": "search"})
    running = await api.begin()
    write_output(api, running, b"step 1 of 5\nstep 2 of 5\n")
    failed = await _failed(api)
    await api.submit(labels={"team": "ads"})
    await api.submit()
    return {
        "overview": "/",
        "overview-7d": "/?span=7d",
        "jobs": "/jobs",
        "jobs-none": "/jobs?status=lost",
        "job": f"/jobs/{failed.id}",
        "job-running": f"/jobs/{running.id}",
        "playground": "/playground",
        "again": f"/playground?job={failed.id}",
        "account": "/account",
        "signin": "/signin",
        "not-found": "/jobs/job_00000000000000000000000000",
    }


async def _report_node(api: Served) -> None:
    digests = tuple(image.manifest.digest for image in api.services.images.list())
    report = NodeReport(
        hostname="node-1",
        version="0.2.0",
        started_at=datetime.now(UTC),
        hypervisor="firecracker",
        accelerator="kvm",
        vcpus=16,
        memory_mb=65_536,
        largest_memory_mb=32_768,
        vcpus_free=0,
        memory_free_mb=21_000,
        running_jobs=12,
        waiting_clones=4,
        waiting_memory_mb=820,
        images=digests,
    )
    await api.services.nodes.heartbeat(Node.of_report("node-1", report))


async def _count_ends(api: Served) -> None:
    """Write what ended during the last week, as the trigger would have."""
    chosen, now = random.Random(3), int(datetime.now(UTC).timestamp()) // 60
    rows = []
    for back in range(1, 10_080, 1):
        busy = 1 + (back // 37) % 5
        for status, number in (("succeeded", chosen.randint(2, 9) * busy), ("failed", chosen.choice((0, 0, 1, 2)))):
            for start in chosen.sample((40, 45, 50, 55, 65, 80, 150, 250), 3):
                if number:
                    rows.append(("default", now - back, status, start, number))
    columns = [column.name for column in job_ends.columns]
    values = [dict(zip(columns, row, strict=True)) for row in rows]
    await api.services.database.writing(lambda connection: connection.execute(insert(job_ends), values))


async def _ended(api: Served, chosen: random.Random, number: int) -> None:
    await api.submit(code=f"print({number % 5})", labels=dict(_LABELS[number % 4]))
    job = await api.begin()
    status = chosen.choice((Status.SUCCEEDED, Status.SUCCEEDED, Status.SUCCEEDED, Status.TIMED_OUT))
    await api.end(job, status, exit_code=0 if status is Status.SUCCEEDED else None)


async def _failed(api: Served) -> Job:
    """Return a job with everything that a page can show."""
    await api.submit(
        files={"test_report.py": "print('…')\n"},
        code=None,
        language="python",
        entrypoint="test_report.py",
        args=["--verbose"],
        env={"MODE": "ci"},
        egress=["pypi.org", "files.pythonhosted.org"],
        artifacts=["out/**"],
        labels={"ci": "main", "commit": "4f1c9e2"},
    )
    job = await api.begin()
    write_output(api, job, _OUTPUT * 6)
    lease = LeaseKey(job.id, job.attempt, NodeIdentity("w1", ""))
    assert await api.services.usage_series.put_of_job(lease, _usage())
    await keep_output(api, job)
    files = {"out/grades.csv": _CSV, "out/report.txt": b"All of it.\n", "out/coverage.json": b"{}\n"}
    for number, content in enumerate(files.values()):
        await api.services.blobs.put_bytes(artifact_blob(job.id, number), content)
    await api.end(
        job,
        Status.FAILED,
        exit_code=1,
        error=JobError(code="exit_code", message="the script exited with 1"),
        timings=Timings(
            queue_ms=12,
            machine_ms=94,
            run_ms=1840,
            phases={"clone": 21, "network": 18, "resume": 39, "script": 16, "run": 1840, "artifacts": 61},
        ),
        usage=Usage(cpu_seconds=1.62, max_memory_mb=148, rx_bytes=1_204_224, tx_bytes=48_210),
        network=NetworkUse(
            refused_count=3,
            refused=(
                Refusal(name="telemetry.example.com", protocol="dns", count=2),
                Refusal(address="169.254.169.254", port=80, protocol="tcp", always_blocked=True),
            ),
        ),
        kept_artifacts=tuple(Artifact(path=path, size_bytes=len(content)) for path, content in files.items()),
    )
    return job


def _usage() -> UsageSeries:
    """Return what a machine may have used in two minutes."""
    chosen, points = random.Random(5), range(120)
    return UsageSeries(
        seconds=tuple(1.0 + point for point in points),
        cpu=tuple(min(1.0, max(0.0, 0.7 + 0.3 * math.sin(point / 9) + chosen.uniform(-0.1, 0.1))) for point in points),
        memory_bytes=tuple(int((40 + point * 0.8 + chosen.uniform(0, 6)) * 2**20) for point in points),
        disk_bytes=tuple(point * 2**17 for point in points),
        processes=tuple(2 + point % 3 for point in points),
        received_bytes=tuple(min(point, 40) * 30_000 for point in points),
        sent_bytes=tuple(point * 400 for point in points),
        vcpus=1,
        memory_limit_bytes=256 * 2**20,
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
