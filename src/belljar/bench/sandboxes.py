"""Measures sandboxes where a node offers them: without HTTP, over the real link, in machines from the pool."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from belljar.app.worker import open_queue, open_worker
from belljar.bench.starts import Measured
from belljar.control.api.services import Services, open_services
from belljar.control.sandboxes.queue import SandboxQueue
from belljar.control.sandboxes.request import ForkRequest
from belljar.data_dir import DataDir
from belljar.link.sandboxes import SandboxMachine
from belljar.model.errors import HostError
from belljar.model.ids import new_id
from belljar.model.image import Image
from belljar.model.job import Resources
from belljar.model.sandbox import EndReason, Sandbox, SandboxSpec, SandboxStatus
from belljar.model.sandbox_values import ProcessExit, ProcessRequest
from belljar.node.machines.deadlines import deadline_factor
from belljar.node.machines.host.usage import resident_mb
from belljar.node.worker.worker import Worker
from belljar.settings import Settings

_MEMORY_MB = 256
_LIFETIME_SECONDS = 3600
_START_SECONDS = 120
_FILE_MB = 100
_PIECE = bytes(1024 * 1024)
_TRUE = ProcessRequest(args=("true",), stdin=b"")
#: Clones that wait in the pool.
_WAITING = 2
_IDLE_SECONDS = 10.0
_CONNECTIONS = 50
_PORT = 7000
#: A program that answers each connection with what it reads, and one that measures it from inside.
_ECHO = f"""
import socket
listener = socket.create_server(("127.0.0.1", {_PORT}), backlog=100)
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    connection.sendall(connection.recv(100))
    connection.close()
"""
_INSIDE = f"""
import socket, statistics, time
took = []
for _ in range({_CONNECTIONS}):
    started = time.perf_counter()
    with socket.create_connection(("127.0.0.1", {_PORT})) as connection:
        connection.sendall(b"x")
        while connection.recv(100):
            pass
    took.append((time.perf_counter() - started) * 1000)
print(statistics.median(took))
"""


async def measure_sandboxes(settings: Settings, image: Image, rounds: int) -> list[Measured]:
    """Create, use and end sandboxes. Raises HostError when a sandbox does not start."""
    seconds = _START_SECONDS * deadline_factor(settings.boot_timeout_seconds)
    async with _node(settings) as (services, worker):
        queue = services.sandbox_queue
        first = await _running(queue, image, seconds)  # has the snapshot made
        await _until_waiting(worker, seconds)
        await _end(queue, first, seconds)
        creates = [await _create(queue, worker, image, seconds) for _ in range(rounds)]
        sandbox = await _running(queue, image, seconds)
        machine = queue.machines.get(sandbox)
        execs = [await _timed(machine) for _ in range(10 * rounds)]
        write, read = await _file(machine)
        inside, ports = await _ports(machine)
        memory_mb, idle_percent = await _idle(worker)
        forks = [await _fork(services, sandbox, seconds) for _ in range(rounds)]
        pauses, resumes = await _pauses(services, sandbox, rounds, seconds)
        await _end(queue, sandbox, seconds)
    return [
        ("sandbox: created → first output, from the pool", "ms", creates),
        ("sandbox: exec of true → its exit", "ms", execs),
        (f"sandbox of {_MEMORY_MB} MB: pause → its machine is gone", "ms", pauses),
        (f"sandbox of {_MEMORY_MB} MB: resume → takes commands", "ms", resumes),
        (f"sandbox of {_MEMORY_MB} MB: fork → the copy takes commands", "ms", forks),
        (f"sandbox: file of {_FILE_MB} MB written", "MB/s", [write]),
        (f"sandbox: file of {_FILE_MB} MB read", "MB/s", [read]),
        ("sandbox: connection to a port, a byte and its echo", "ms", ports),
        ("  of it in the sandbox itself", "ms", [inside]),
        ("sandbox: memory while it is idle (PSS)", "MB", [memory_mb]),
        ("sandbox: processor while it is idle", "% of one", [idle_percent]),
    ]


@asynccontextmanager
async def _node(settings: Settings) -> AsyncIterator[tuple[Services, Worker]]:
    """Run a control plane and a worker in a folder of their own, with this folder's images."""
    with tempfile.TemporaryDirectory(prefix="belljar-bench-") as folder:
        own = settings.model_copy(
            update={"data_dir": Path(folder), "pool": "fixed", "pool_size": _WAITING, "lease_seconds": 30.0}
        )
        DataDir(own.data_dir).images.symlink_to(settings.paths.images)
        async with open_services(own) as services:
            queue = open_queue(services)
            worker = open_worker(services, queue, "bench", with_sandboxes=True)
            tasks = [asyncio.create_task(each.run()) for each in (queue, services.sandbox_queue, worker)]
            try:
                yield services, worker
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


async def _running(queue: SandboxQueue, image: Image, seconds: float) -> Sandbox:
    now = datetime.now(UTC)
    spec = SandboxSpec(
        image=image.name,
        image_digest=image.manifest.digest,
        resources=Resources(vcpus=1, memory_mb=_MEMORY_MB),
        lifetime_seconds=_LIFETIME_SECONDS,
    )
    sandbox = Sandbox(
        id=new_id("sb"),
        project="default",
        status=SandboxStatus.CREATING,
        created_at=now,
        expires_at=now + timedelta(seconds=_LIFETIME_SECONDS),
        spec=spec,
    )
    await queue.store.insert(sandbox)
    queue.changes.waiting.notify()
    return await _until_running(queue, sandbox.id, seconds)


async def _until_running(queue: SandboxQueue, sandbox_id: str, seconds: float) -> Sandbox:
    with queue.changes.watching(sandbox_id) as topic:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            count = topic.count
            found = await queue.store.get(None, sandbox_id)
            if found is not None and found.status is SandboxStatus.RUNNING:
                return found
            if found is not None and found.end is not None:
                raise HostError(f"a sandbox of the benchmark did not start: {found.end.message}")
            if found is not None and found.problem is not None:
                raise HostError(f"a sandbox of the benchmark was not resumed: {found.problem.message}")
            await topic.wait_beyond(count, 1.0)
    raise HostError(f"a sandbox of the benchmark did not start within {seconds:g} s; repeat when the host is less busy")


async def _fork(services: Services, sandbox: Sandbox, seconds: float) -> float:
    started = time.monotonic()
    (fork,) = await services.freezing.fork(sandbox.project, sandbox.id, ForkRequest())
    fork = await _until_running(services.sandbox_queue, fork.id, seconds)
    took_ms = (time.monotonic() - started) * 1000
    await _end(services.sandbox_queue, fork, seconds)
    return took_ms


async def _pauses(services: Services, sandbox: Sandbox, rounds: int, seconds: float) -> tuple[list[float], list[float]]:
    """Pause and resume; return the milliseconds of each. Between two pauses something is written and run."""
    queue, pauses, resumes = services.sandbox_queue, [], []
    for _ in range(rounds):
        started = time.monotonic()
        await services.freezing.pause(sandbox.project, sandbox.id)
        pauses.append((time.monotonic() - started) * 1000)
        started = time.monotonic()
        await services.freezing.request_resume(sandbox.project, sandbox.id)
        running = await _until_running(queue, sandbox.id, seconds)
        resumes.append((time.monotonic() - started) * 1000)
        await _timed(queue.machines.get(running))
    return pauses, resumes


async def _end(queue: SandboxQueue, sandbox: Sandbox, seconds: float) -> None:
    await queue.store.request_end(None, sandbox.id, EndReason.DELETED, "it was deleted")
    queue.changes.orders.notify()
    with queue.changes.watching(sandbox.id) as topic:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            count = topic.count
            found = await queue.store.get(None, sandbox.id)
            if found is None or found.status.terminal:
                return
            await topic.wait_beyond(count, 1.0)


async def _until_waiting(worker: Worker, seconds: float) -> None:
    """Wait until clones wait in the pool. Raises HostError."""
    pool, deadline = worker.pool, time.monotonic() + seconds
    while pool is not None and sum(pool.counts().values()) < _WAITING:
        if time.monotonic() > deadline:
            raise HostError(f"no clones waited within {seconds:g} s; repeat when the host is less busy")
        await asyncio.sleep(0.05)


async def _create(queue: SandboxQueue, worker: Worker, image: Image, seconds: float) -> float:
    await _until_waiting(worker, seconds)
    started = time.monotonic()
    sandbox = await _running(queue, image, seconds)
    machine = queue.machines.get(sandbox)
    process = await machine.start(ProcessRequest(args=("echo", "hello"), stdin=b""))
    async for _ in machine.output(process.id):
        break
    took_ms = (time.monotonic() - started) * 1000
    await _end(queue, sandbox, seconds)
    return took_ms


async def _timed(machine: SandboxMachine) -> float:
    started = time.monotonic()
    process = await machine.start(_TRUE)
    async for piece in machine.output(process.id):
        if isinstance(piece, ProcessExit):
            break
    took_ms = (time.monotonic() - started) * 1000
    await machine.forget(process.id)
    return took_ms


async def _ports(machine: SandboxMachine) -> tuple[float, list[float]]:
    """Return the time of a connection as a program in the sandbox sees it (median), and as callers do."""
    server = await machine.start(ProcessRequest(args=("python3", "-c", _ECHO), stdin=b"", background=True))
    async for _ in machine.output(server.id):
        break  # it listens
    client = await machine.start(ProcessRequest(args=("python3", "-c", _INSIDE), stdin=b""))
    text = b"".join([each.data async for each in machine.output(client.id) if not isinstance(each, ProcessExit)])
    took = []
    for _ in range(_CONNECTIONS):
        started = time.monotonic()
        async with machine.connect(_PORT) as stream:
            await stream.write(b"x")
            async for _ in stream:
                break
            took.append((time.monotonic() - started) * 1000)
    await machine.kill(server.id)
    return float(text), took


async def _idle(worker: Worker) -> tuple[float, float]:
    """Return the MiB and the share of a processor, in percent, that the machine takes while nothing is done in it."""
    pids = worker.pids()
    await asyncio.sleep(1)  # what was begun before ends
    before = _cpu_seconds(pids)
    await asyncio.sleep(_IDLE_SECONDS)
    return resident_mb(pids), (_cpu_seconds(pids) - before) / _IDLE_SECONDS * 100


def _cpu_seconds(pids: list[int]) -> float:
    """Return the processor time of processes. Source: proc_pid_stat(5)."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def _file(machine: SandboxMachine) -> tuple[float, float]:
    """Return the rates of writing and reading a file, in MB (10^6 bytes) per second."""
    size = 0

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(_FILE_MB):
            yield _PIECE

    started = time.monotonic()
    await machine.files.write("/work/large", pieces())
    write_seconds = time.monotonic() - started
    started = time.monotonic()
    async with machine.files.read("/work/large") as content:
        async for piece in content:
            size += len(piece)
    return len(_PIECE) * _FILE_MB / 1e6 / write_seconds, size / 1e6 / (time.monotonic() - started)
