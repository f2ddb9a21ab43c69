"""Whether a server gives back the memory of its jobs: RSS idle, after many jobs, and idle again.

    .venv/bin/python bench/memory_soak.py [JOBS [AT_ONCE]]

Starts a real API server (no machines) over a temporary data folder. Each job is submitted over HTTP, taken and ended by
a process beside it, as a worker on another host would, while somebody waits for it; then its record, its log and the
list are read. Exits with 1 when more than 50 MB are not given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from belljar.control.blobs.store import Blobs, open_blobs  # noqa: E402
from belljar.control.logs.log import log_blob  # noqa: E402
from belljar.control.store.claims import SqlClaims  # noqa: E402
from belljar.control.store.opening import open_database  # noqa: E402
from belljar.model.outcome import Outcome  # noqa: E402
from belljar.model.states import Status  # noqa: E402
from belljar.settings import Settings  # noqa: E402
from support.registered_images import register  # noqa: E402

_MAX_MB = 50
_SETTLE_SECONDS = 20


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    """The process, its URL and the admin key."""
    command = [sys.executable, "-m", "belljar", "serve", "--no-worker", "--port", "0", "--data-dir", str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        address = folder / "run" / "server.json"
        deadline = time.monotonic() + 60
        while not address.exists():
            assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.1)
        yield process, json.loads(address.read_text())["url"], (folder / "admin.key").read_text().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def resident_mb(process: subprocess.Popen[bytes]) -> float:
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("the server is gone")


async def end_jobs(claims: SqlClaims, blobs: Blobs) -> None:
    """What a worker does: takes every job there is and ends it."""
    while True:
        job = await claims.claim("soak", vcpus=64, memory_mb=1 << 20, lease_seconds=60)
        if job is None:
            await asyncio.sleep(0.02)
            continue
        now = datetime.now(UTC)
        await blobs.put_bytes(log_blob(job.id), b"\x05\0\0\0\x01\0\0\0hello")
        outcome = Outcome(status=Status.SUCCEEDED, started_at=now, finished_at=now, exit_code=0)
        await claims.finish("soak", job, outcome)


async def run_jobs(http: httpx.AsyncClient, number: int) -> None:
    for index in range(number):
        body = {"code": f"print({index % 50})", "language": "python", "env": {"N": str(index)}, "labels": {"a": "b"}}
        answer = await http.post("/v1/jobs", json=body, params={"wait": 60})
        answer.raise_for_status()
        job_id = answer.json()["id"]
        assert answer.json()["status"] == "succeeded", answer.text
        for path in (f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/logs"):
            (await http.get(path)).raise_for_status()
        if index % 50 == 0:
            (await http.get("/v1/jobs", params={"limit": 100})).raise_for_status()
            (await http.get("/metrics")).raise_for_status()


async def soak(folder: Path, number: int, at_once: int) -> float:
    """Returns how much more memory the server takes after the jobs than before them."""
    register(folder, "python")
    with server(folder) as (process, url, key):
        settings = Settings(data_dir=folder)
        database = await open_database(settings)
        ending = asyncio.create_task(end_jobs(SqlClaims(database), open_blobs(settings)))
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as http:
            await run_jobs(http, 100)  # what is loaded once
            await asyncio.sleep(_SETTLE_SECONDS / 4)
            idle_mb = resident_mb(process)
            print(f"idle: {idle_mb:.1f} MB", flush=True)
            started = time.monotonic()
            for tenth in range(10):
                await asyncio.gather(*(run_jobs(http, number // 10 // at_once) for _ in range(at_once)))
                print(f"after {(tenth + 1) * (number // 10)} jobs: {resident_mb(process):.1f} MB", flush=True)
            print(f"{number} jobs in {time.monotonic() - started:.0f} s", flush=True)
            await asyncio.sleep(_SETTLE_SECONDS)
            after_mb = resident_mb(process)
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        await database.close()
    print(f"idle again: {after_mb:.1f} MB, {after_mb - idle_mb:+.1f} MB")
    return after_mb - idle_mb


def main() -> int:
    number, at_once = int((sys.argv[1:] or ["10000"])[0]), int((sys.argv[2:] or ["8"])[0])
    with tempfile.TemporaryDirectory(prefix="belljar-memory-") as name:
        return int(asyncio.run(soak(Path(name), number, at_once)) > _MAX_MB)


if __name__ == "__main__":
    sys.exit(main())
