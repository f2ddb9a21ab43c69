"""The server that a benchmark measures: `belljar serve` in a folder of its own, with this data folder's images."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from belljar.bench.peers import HELLO
from belljar.data_dir import DataDir
from belljar.local_server import read_admin_key
from belljar.model.errors import HostError
from belljar.node.machines.deadlines import deadline_factor
from belljar.node.machines.host.usage import children, resident_mb
from belljar.settings import Settings

_SNAPSHOT_SECONDS = 120
_START_SECONDS = 60
_REQUEST_SECONDS = 120
#: Clones that a server with a pool of fixed size keeps.
WAITING = 4


class BenchServer:
    """The server under measurement."""

    def __init__(self, http: httpx.AsyncClient, pid: int, data_dir: Path, factor: float) -> None:
        self.http = http
        self.pid = pid
        self.data_dir = data_dir
        self.timeout_factor = factor

    async def job(self) -> tuple[float, dict[str, Any]]:
        """Run a hello job; return the milliseconds from request to answer, and the job."""
        started = time.monotonic()
        request = {"code": HELLO, "language": "python", "timeout_seconds": 60}
        response = await self.http.post("/v1/jobs", params={"wait": 100}, json=request)
        took = (time.monotonic() - started) * 1000
        job = response.json()
        if job.get("status") != "succeeded":
            raise HostError(f"a benchmark job did not succeed: {job.get('error') or job.get('detail')}")
        return took, job

    async def until_frozen(self) -> None:
        """Wait until there is a snapshot. Raises HostError."""
        await _until(lambda: _has_snapshot(self.data_dir), self.timeout_factor)

    async def until_waiting(self) -> None:
        """Wait until the pool is full, by a heartbeat that is newer than this call. Raises HostError."""
        since = datetime.now(UTC)
        await _until(lambda: self._full(since), self.timeout_factor)

    async def _full(self, since: datetime) -> bool:
        nodes = (await self.http.get("/v1/nodes")).json()["nodes"]
        fresh = [node for node in nodes if datetime.fromisoformat(node["heartbeat_at"]) > since]
        return sum(int(node["waiting_clones"]) for node in fresh) >= WAITING

    async def waiting_mb(self) -> float:
        """Return the memory of the waiting machines in MiB (PSS: shared pages divided)."""
        return await asyncio.to_thread(resident_mb, children(self.pid))


async def _has_snapshot(data_dir: Path) -> bool:
    return any(DataDir(data_dir).snapshots.glob("*/snapshot.json"))


async def _until(condition: Callable[[], Awaitable[bool]], factor: float) -> None:
    seconds = _SNAPSHOT_SECONDS * factor
    for _ in range(round(seconds * 10)):
        if await condition():
            return
        await asyncio.sleep(0.1)
    raise HostError(f"the server made no clones within {seconds:g} s; repeat when the host is less busy")


async def _address(stderr: asyncio.StreamReader) -> str:
    """Return the address in a server's first lines. Raises HostError with its last line when it ends first."""
    last = ""
    async for line in stderr:
        last = line.decode(errors="replace").strip()
        if found := re.search(r"serves on (http://\S+),", last):
            return found[1]
    raise HostError(f"the server did not start: {last}")


async def _started(stderr: asyncio.StreamReader, seconds: float) -> str:
    """Return the address of a server that starts. Raises HostError."""
    try:
        async with asyncio.timeout(seconds):
            return await _address(stderr)
    except TimeoutError:
        raise HostError(f"the server did not start within {seconds:g} s; repeat when the host is less busy") from None


@contextlib.asynccontextmanager
async def bench_server(
    settings: Settings,
    accelerator: str,
    *options: str,
    environment: Mapping[str, str] | None = None,
    python: Path | None = None,
) -> AsyncIterator[BenchServer]:
    """Run `belljar serve` in a folder of its own, with this folder's images. `python`: that of another version."""
    factor = deadline_factor(settings.boot_timeout_seconds)
    with tempfile.TemporaryDirectory(prefix="belljar-bench-") as folder:
        data_dir = Path(folder)
        DataDir(data_dir).images.symlink_to(settings.paths.images)
        arguments = ["-P", "-m", "belljar", "serve", "--port", "0", "--data-dir", folder, *options]
        process = await asyncio.create_subprocess_exec(
            python or sys.executable,
            *arguments,
            env={**os.environ, "BELLJAR_ACCELERATOR": accelerator, **(environment or {})},
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        rest = None
        try:
            url = await _started(process.stderr, _START_SECONDS * factor)
            rest = asyncio.create_task(_discard(process.stderr))  # a full pipe would stop it
            headers = {"Authorization": f"Bearer {read_admin_key(data_dir)}"}
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=_REQUEST_SECONDS * factor) as http:
                yield BenchServer(http, process.pid, data_dir, factor)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
            if rest is not None:
                await rest


async def _discard(stream: asyncio.StreamReader) -> None:
    while await stream.read(1 << 16):
        pass
