"""`belljar bench`: figures of this machine, each beside the raw part that it stands on, taken in the same run.

What is measured is real: machines boot, a server of its own is started in a folder of its own, jobs go through HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from belljar.cli.printing import print_json, print_table
from belljar.errors import HostError, MachineError
from belljar.guest.command import Command
from belljar.guest.session import Session
from belljar.guest.wire import Stream
from belljar.images.catalog import Images
from belljar.images.manifest import Image
from belljar.local import read_admin_key
from belljar.machines.choose import Chooser
from belljar.machines.protocol import Hypervisor, MachineSpec, Shape
from belljar.settings import Settings
from belljar.worker.capacity import host_memory_mb
from belljar.worker.plan import DEFAULT_ENV

_BOOT_SECONDS = 60
_OUTPUT_MB = 200
_SUBMITS = 1000
_HELLO = "print('hello')\n"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line: the median and the tail, in its unit."""

    name: str
    unit: str
    p50: float
    p90: float
    p99: float
    samples: int


def _figure(name: str, unit: str, values: Sequence[float]) -> Figure:
    ordered = sorted(values)

    def quantile(part: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 2)

    return Figure(name, unit, round(statistics.median(ordered), 2), quantile(0.9), quantile(0.99), len(ordered))


async def measure(settings: Settings, rounds: int) -> dict[str, Any]:
    """All figures and the machine they were taken on. Raises UnknownImage when no image is built, HostError."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # so that the servers end too
    image = Images(settings.data_dir).get("python")
    hypervisor = await Chooser(settings).hypervisor(image)
    figures = [_figure("boot: machine spawned → agent ready", "ms", await _boots(hypervisor, image, rounds))]
    figures.append(_figure("output of a program, guest → host", "MB/s", [await _output(hypervisor, image)]))
    async with _server(settings) as (http, pid):
        figures.append(_figure("API process, idle", "MB", [_resident_mb(pid)]))
        figures += await _jobs(http, rounds)
        figures.append(_figure("bare python3 here, the same script", "ms", [await _bare() for _ in range(rounds)]))
        figures.append(_figure("API process, after these jobs", "MB", [_resident_mb(pid)]))
    async with _server(settings, "--no-worker") as (http, pid):
        figures.append(_figure(f"{_SUBMITS} jobs submitted over HTTP", "s", [await _submits(http)]))
        figures.append(_figure("API process, after the submits", "MB", [_resident_mb(pid)]))
    machine = {
        "cpus": os.cpu_count(),
        "cpu": _cpu_name(),
        "memory_mb": host_memory_mb(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "hypervisor": f"{hypervisor.name} {hypervisor.version}",
        "accelerator": hypervisor.accelerator,
        "load": os.getloadavg()[0],
    }
    return {"machine": machine, "figures": [asdict(figure) for figure in figures]}


def _spec(image: Image) -> MachineSpec:
    return MachineSpec(image=image, shape=Shape(vcpus=1, memory_mb=256), script_disk=image.root)


async def _boots(hypervisor: Hypervisor, image: Image, rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        started = time.monotonic()
        async with hypervisor.machine(_spec(image)) as machine:
            await Session(machine.reader, machine.writer).open(_BOOT_SECONDS)
            times.append((time.monotonic() - started) * 1000)
    return times


class _Counted:
    """Takes output and keeps nothing of it."""

    size = 0

    async def write(self, stream: Stream, data: bytes) -> None:
        self.size += len(data)

    def full(self, stream: Stream) -> bool:
        return False


async def _output(hypervisor: Hypervisor, image: Image) -> float:
    """MB/s of a program that writes zeros as fast as it is let."""
    sink = _Counted()
    command = Command(argv=["head", "-c", f"{_OUTPUT_MB}M", "/dev/zero"], env=DEFAULT_ENV)
    async with hypervisor.machine(_spec(image)) as machine:
        session = Session(machine.reader, machine.writer)
        await session.open(_BOOT_SECONDS)
        started = time.monotonic()
        exited = await session.run(command, b"", sink, lambda _: None)
        took = time.monotonic() - started
    if exited.exit_code != 0:
        raise MachineError("the program that writes output failed; is the image whole?")
    return sink.size / 1e6 / took


@contextlib.asynccontextmanager
async def _server(settings: Settings, *options: str) -> AsyncIterator[tuple[httpx.AsyncClient, int]]:
    """`belljar serve` in a folder of its own, with this folder's images."""
    with tempfile.TemporaryDirectory(prefix="belljar-bench-") as folder:
        data_dir = Path(folder)
        (data_dir / "images").symlink_to(settings.data_dir / "images")
        arguments = ["-m", "belljar", "serve", "--port", "0", "--data-dir", folder, *options]
        environment = {**os.environ, "BELLJAR_ACCELERATOR": (await _accelerator(settings))}
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, env=environment, stderr=asyncio.subprocess.PIPE
        )
        try:
            assert process.stderr is not None
            async with asyncio.timeout(30):
                words = (await process.stderr.readline()).decode().split()
            url = next((word.rstrip(",") for word in words if word.startswith("http")), None)
            if url is None:
                raise HostError(f"the server did not start: {' '.join(words)}")
            headers = {"Authorization": f"Bearer {read_admin_key(data_dir)}"}
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as http:
                yield http, process.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.communicate()


async def _accelerator(settings: Settings) -> str:
    return (await Chooser(settings).choose(Images(settings.data_dir).get("python"))).accelerator


async def _jobs(http: httpx.AsyncClient, rounds: int) -> list[Figure]:
    """Whole jobs through HTTP, one after the other, and what of their time is belljar's own."""
    whole, added = [], []
    for _ in range(rounds):
        started = time.monotonic()
        response = await http.post("/v1/jobs", params={"wait": 60}, json={"code": _HELLO, "language": "python"})
        whole.append((time.monotonic() - started) * 1000)
        job = response.json()
        if job.get("status") != "succeeded":
            raise HostError(f"a job of the benchmark did not succeed: {job.get('error') or job.get('detail')}")
        phases = job["timings"]["phases"]
        took = datetime.fromisoformat(job["finished_at"]) - datetime.fromisoformat(job["created_at"])
        guest = sum(phases[name] for name in ("boot", "start", "run"))
        added.append(took.total_seconds() * 1000 - guest)
    return [
        _figure("job: POST /v1/jobs?wait → ended, Python hello", "ms", whole),
        _figure("  of it added by belljar to boot and script", "ms", added),
    ]


async def _bare() -> float:
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec("python3", "-c", _HELLO, stdout=asyncio.subprocess.DEVNULL)
    await process.wait()
    return (time.monotonic() - started) * 1000


async def _submits(http: httpx.AsyncClient) -> float:
    """Seconds until so many jobs are queued, ten callers beside each other."""
    script = await http.post("/v1/scripts", files={"script": ("hello.py", _HELLO.encode())})
    request = {"script_id": script.json()["script_id"]}

    async def some(count: int) -> None:
        for _ in range(count):
            (await http.post("/v1/jobs", json=request)).raise_for_status()

    started = time.monotonic()
    await asyncio.gather(*(some(_SUBMITS // 10) for _ in range(10)))
    return time.monotonic() - started


def _resident_mb(pid: int) -> float:
    """Proportional set size: what is shared with other processes counts in part (proc_pid_smaps_rollup)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def print_figures(measured: dict[str, Any], *, as_json: bool) -> None:
    """A table with the machine above it."""
    if as_json:
        print_json(measured)
        return
    machine = measured["machine"]
    print(
        f"{machine['cpus']} × {machine['cpu']}, {machine['memory_mb']} MB, Linux {machine['kernel']}, "
        f"{machine['hypervisor']} with {machine['accelerator']}, load {machine['load']:.1f}"
    )
    rows = [
        (figure["name"], figure["unit"], figure["p50"], figure["p90"], figure["p99"], figure["samples"])
        for figure in measured["figures"]
    ]
    print_table(("WHAT", "UNIT", "P50", "P90", "P99", "SAMPLES"), rows)
