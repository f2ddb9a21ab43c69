"""Measures this host: latency, throughput and memory of jobs, beside other runtimes in the same run.

Nothing is simulated: machines boot, a server runs in a folder of its own, jobs go through HTTP.
"""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import asdict
from datetime import datetime
from typing import Any

import httpx

from belljar.bench.figures import Figure, figure, machine_facts
from belljar.bench.peers import HELLO, once, peers
from belljar.bench.sandboxes import measure_sandboxes
from belljar.bench.server import WAITING, BenchServer, bench_server
from belljar.bench.starts import measure_starts
from belljar.images.catalog import Images
from belljar.model.errors import HostError, MachineError
from belljar.model.image import Image
from belljar.node.guest.command import Command
from belljar.node.guest.connection import AgentConnection
from belljar.node.guest.wire import Stream
from belljar.node.machines.host.usage import resident_mb
from belljar.node.machines.protocol import Hypervisor, MachineSpec, Shape
from belljar.node.machines.selector import HypervisorSelector
from belljar.node.worker.plan import DEFAULT_ENV
from belljar.settings import Settings

_OUTPUT_MB = 200
_SUBMITS = 1000


async def measure(settings: Settings, rounds: int, sustained_seconds: float) -> dict[str, Any]:
    """Return all figures and the host. Raises UnknownImage when no image is built, HostError."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # so that the servers end too
    image = Images(settings.data_dir).get("python")
    hypervisor = await HypervisorSelector(settings).hypervisor(image)
    facts, seconds = machine_facts(hypervisor), settings.boot_timeout_seconds
    figures = [figure("boot: machine spawned → agent ready", "ms", await _boots(hypervisor, image, rounds, seconds))]
    figures += [figure(*each) for each in await measure_starts(settings, hypervisor, image, rounds)]
    figures += [figure(*each) for each in await measure_sandboxes(settings, image, rounds)]
    figures.append(figure("output of a program, guest → host", "MB/s", [await _output(hypervisor, image, seconds)]))
    accelerator = hypervisor.accelerator
    async with bench_server(settings, accelerator, environment={"BELLJAR_SNAPSHOTS": "off"}) as server:
        figures += await _latency(server, "boot", rounds)
    async with bench_server(settings, accelerator, environment={"BELLJAR_POOL": "off"}) as server:
        await server.until_frozen()
        figures += await _latency(server, "snapshot", rounds)
        for callers in (1, 2, 4, 8):
            figures.append(await _throughput(server, callers, sustained_seconds))
    pool = {"BELLJAR_POOL": "fixed", "BELLJAR_POOL_SIZE": str(WAITING), "BELLJAR_LEASE_SECONDS": "3"}
    async with bench_server(settings, accelerator, environment=pool) as server:
        await server.until_waiting()
        each_mb = await server.waiting_mb() / WAITING
        figures.append(figure("memory of a waiting clone (PSS)", "MB", [each_mb]))
        figures += await _pool_beside_peers(server, rounds)
        figures.append(figure("API process, after these jobs", "MB", [resident_mb([server.pid])]))
    async with bench_server(settings, accelerator, "--no-worker") as server:
        figures.append(figure("API process, idle", "MB", [resident_mb([server.pid])]))
        figures.append(figure(f"{_SUBMITS} jobs submitted over HTTP", "s", [await _submits(server.http)]))
    return {"machine": facts, "figures": [asdict(each) for each in figures]}


def _spec(image: Image) -> MachineSpec:
    return MachineSpec(image=image, shape=Shape(vcpus=1, memory_mb=256), script_disk=image.root)


async def _boots(hypervisor: Hypervisor, image: Image, rounds: int, boot_seconds: float) -> list[float]:
    times = []
    for _ in range(rounds):
        started = time.monotonic()
        async with hypervisor.machine(_spec(image)) as machine:
            await AgentConnection(machine.reader, machine.writer).open(boot_seconds)
            times.append((time.monotonic() - started) * 1000)
    return times


class _Counter:
    """Counts output and discards it."""

    size = 0

    async def write(self, stream: Stream, data: bytes) -> None:
        self.size += len(data)

    def full(self, stream: Stream) -> bool:
        return False


async def _output(hypervisor: Hypervisor, image: Image, boot_seconds: float) -> float:
    """Return the rate, in MB/s, of a program that writes zeros as fast as it can."""
    sink = _Counter()
    command = Command(argv=["head", "-c", f"{_OUTPUT_MB}M", "/dev/zero"], env=DEFAULT_ENV)
    async with hypervisor.machine(_spec(image)) as machine:
        connection = AgentConnection(machine.reader, machine.writer)
        await connection.open(boot_seconds)
        started = time.monotonic()
        exited = await connection.run(command, b"", sink, lambda _: None)
        took = time.monotonic() - started
    if exited.exit_code != 0:
        raise MachineError("the program that writes output failed; build the image again")
    return sink.size / 1e6 / took


async def _latency(server: BenchServer, source: str, rounds: int) -> list[Figure]:
    """Measure jobs through HTTP, one after the other, and belljar's own part of their time."""
    whole, added = [], []
    await server.job()  # packs its script and imports what is imported late
    for _ in range(rounds):
        took, job = await server.job()
        if job["machine"]["source"] == source:
            whole.append(took)
            added.append(_added(job))
    if not whole:
        raise HostError(f"no job of the benchmark had a machine from {source}; see the server's log")
    return [
        figure(f"job, POST /v1/jobs?wait → ended, from {source}", "ms", whole),
        figure("  of it not the machine's start or the script", "ms", added),
    ]


def _added(job: dict[str, Any]) -> float:
    took = datetime.fromisoformat(job["finished_at"]) - datetime.fromisoformat(job["created_at"])
    return took.total_seconds() * 1000 - sum(float(phase) for phase in job["timings"]["phases"].values())


async def _throughput(server: BenchServer, callers: int, seconds: float) -> Figure:
    """Measure jobs per second; each caller sends its next job when its last has ended."""
    deadline = time.monotonic() + seconds
    done = 0

    async def caller() -> None:
        nonlocal done
        while time.monotonic() < deadline:
            await server.job()
            done += 1

    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    rate = done / (time.monotonic() - started)
    return figure(f"jobs a second, {callers} at a time for {seconds:g} s, no pool", "1/s", [rate])


async def _pool_beside_peers(server: BenchServer, rounds: int) -> list[Figure]:
    """Measure jobs from the pool and other runtimes in turns, so that the state of the host is the same for all.

    Nothing is timed while the pool refills, because that would slow down the next measurement.
    """
    pooled: list[float] = []
    others: dict[str, list[float]] = {name: [] for name in peers()}
    await server.job()  # as in _latency
    for _ in range(rounds):
        await server.until_waiting()
        took, job = await server.job()
        if job["machine"]["source"] == "pool":
            pooled.append(took)
        await server.until_waiting()
        for name, command in peers().items():
            if (milliseconds := await once(command)) is not None:
                others[name].append(milliseconds)
    if not pooled:
        raise HostError("no job of the benchmark had a machine from the pool; see the server's log")
    figures = [figure("job, POST /v1/jobs?wait → ended, from pool", "ms", pooled)]
    return figures + [figure(name, "ms", values) for name, values in others.items() if values]


async def _submits(http: httpx.AsyncClient) -> float:
    """Return the seconds until ten concurrent callers have queued 1,000 jobs."""
    script = await http.post("/v1/scripts", files={"script": ("hello.py", HELLO.encode())})
    request = {"script_id": script.json()["script_id"]}

    async def some(count: int) -> None:
        for _ in range(count):
            (await http.post("/v1/jobs", json=request)).raise_for_status()

    started = time.monotonic()
    await asyncio.gather(*(some(_SUBMITS // 10) for _ in range(10)))
    return time.monotonic() - started
