"""Pauses and resumes one sandbox many times, forks it, and checks each time what must go on and what must differ.

Usage: .venv/bin/python bench/pause_cycles.py DATA_DIR [CYCLES] [FORKS]    (default: 100 and 20)
DATA_DIR has the image python. Prints the milliseconds of each operation, and exits with 1 at the first difference.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from belljar.app.worker import open_queue, open_worker
from belljar.control.api.services import Services, open_services
from belljar.control.sandboxes.request import ForkRequest
from belljar.link.sandboxes import SandboxMachine
from belljar.model.ids import new_id
from belljar.model.job import Resources
from belljar.model.sandbox import Sandbox, SandboxSpec, SandboxStatus
from belljar.model.sandbox_values import ProcessExit, ProcessRequest
from belljar.settings import Settings

PROJECT = "default"
COUNTER = """
import os, socket, threading, time
server = socket.create_server(("127.0.0.1", 7000))
secret, count = os.urandom(16).hex(), 0
def answer():
    while True:
        client, _ = server.accept()
        client.sendall(f"{count} {secret} {time.time()} {time.monotonic()}".encode())
        client.close()
threading.Thread(target=answer, daemon=True).start()
while True:
    count += 1
    time.sleep(0.05)
"""
NAMES = "head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; cat /proc/sys/kernel/random/uuid; hostname"


@asynccontextmanager
async def node(images: Path) -> AsyncIterator[Services]:
    with tempfile.TemporaryDirectory(prefix="belljar-pauses-") as folder:
        (Path(folder) / "images").symlink_to(images)
        settings = Settings(
            data_dir=Path(folder),
            pool="off",
            lease_seconds=60,
            worker_vcpus=64,
            worker_memory_mb=16384,
            max_sandbox_lifetime_seconds=86_400,
        )
        async with open_services(settings) as services:
            queue = open_queue(services)
            worker = open_worker(services, queue, "pauses", with_sandboxes=True)
            tasks = [asyncio.create_task(each.run()) for each in (queue, services.sandbox_queue, worker)]
            try:
                yield services
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


async def create(services: Services) -> Sandbox:
    image = services.images.get("python")
    now = datetime.now(UTC)
    sandbox = Sandbox(
        id=new_id("sb"),
        project=PROJECT,
        status=SandboxStatus.CREATING,
        created_at=now,
        expires_at=now + timedelta(days=1),
        spec=SandboxSpec(
            image="python",
            image_digest=image.manifest.digest,
            resources=Resources(vcpus=1, memory_mb=256),
            lifetime_seconds=86_400,
        ),
    )
    await services.sandbox_queue.store.insert(sandbox)
    services.sandbox_queue.changes.waiting.notify()
    return sandbox


async def running(services: Services, sandbox: Sandbox) -> SandboxMachine:
    found = await services.sandboxes.wait(
        PROJECT,
        sandbox.id,
        180,
        lambda it: it.status not in (SandboxStatus.CREATING, SandboxStatus.RESUMING),
    )
    if found.status is not SandboxStatus.RUNNING:
        sys.exit(f"{found.id} is {found.status}: {found.problem or found.end}")
    return services.sandbox_queue.machines.get(found)


async def run(machine: SandboxMachine, text: str) -> str:
    process = await machine.start(ProcessRequest(args=("sh", "-c", text), stdin=b""))
    out = b""
    async for piece in machine.output(process.id):
        if isinstance(piece, ProcessExit):
            check(piece.exit_code == 0, f"{text} exited with {piece}")
            return out.decode().strip()
        out += piece.data
    sys.exit("an output had no end")


async def count_of(machine: SandboxMachine) -> tuple[int, str, float]:
    async with machine.connect(7000) as stream:
        count, secret, now, _ = b"".join([data async for data in stream]).decode().split()
    return int(count), secret, float(now)


def check(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(what)


def show(what: str, took_ms: list[float]) -> None:
    ordered = sorted(took_ms)
    print(
        f"{what:8} p50 {statistics.median(ordered):7.1f} ms   p99 {ordered[int(len(ordered) * 0.99)]:7.1f} ms   "
        f"max {ordered[-1]:7.1f} ms   of {len(ordered)}"
    )


async def main(data_dir: Path, cycles: int, forks: int) -> None:
    pauses: list[float] = []
    resumes: list[float] = []
    async with node(data_dir / "images") as services:
        sandbox = await create(services)
        machine = await running(services, sandbox)
        await run(machine, "echo kept > /tmp/f")
        await machine.start(ProcessRequest(args=("python3", "-c", COUNTER), background=True))
        while 7000 not in {port.port for port in await machine.ports()}:
            await asyncio.sleep(0.1)
        count, secret, _ = await count_of(machine)
        names = {await run(machine, NAMES)}
        for cycle in range(1, cycles + 1):
            started = time.monotonic()
            await services.freezing.pause(PROJECT, sandbox.id)
            pauses.append((time.monotonic() - started) * 1000)
            started = time.monotonic()
            await services.freezing.request_resume(PROJECT, sandbox.id)
            machine = await running(services, sandbox)
            resumes.append((time.monotonic() - started) * 1000)
            now_count, now_secret, now = await count_of(machine)
            check(now_secret == secret and now_count >= count, f"cycle {cycle}: the counter began anew")
            check(abs(now - time.time()) < 2, f"cycle {cycle}: the clock is {now - time.time():.1f} s off")
            count = now_count
            names.add(await run(machine, NAMES))
            check(len(names) == cycle + 1, f"cycle {cycle}: a name or a random number came twice")
            check(await run(machine, "cat /tmp/f") == "kept", f"cycle {cycle}: a file is lost")
        size = sum(path.stat().st_size for path in (services.settings.data_dir / "frozen").rglob("*.pack"))
        show("pause", pauses)
        show("resume", resumes)
        print(f"kept     {size >> 20} MB on the disk")

        started = time.monotonic()
        made = await services.freezing.fork(PROJECT, sandbox.id, ForkRequest(count=forks))
        machines = [await running(services, each) for each in made]
        print(f"fork     {forks} copies in {(time.monotonic() - started) * 1000:.0f} ms")
        found = [line.split() for line in [await run(each, NAMES) for each in machines]]
        for column, name in enumerate(("random bytes", "UUIDs", "host names")):
            check(len({line[column] for line in found}) == forks, f"two copies have the same {name}")
        for each in machines:
            check((await count_of(each))[1] == secret, "a copy has another memory")
        for each in (*made, sandbox):
            await services.sandboxes.delete(PROJECT, each.id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(60):
                while await services.sandbox_queue.store.counts():
                    await asyncio.sleep(0.1)
    print("all as it must be")


if __name__ == "__main__":
    given = sys.argv[1:]
    asyncio.run(main(Path(given[0]), *(int(each) for each in (given[1:] + ["100", "20"][len(given) - 1 :])[:2])))
