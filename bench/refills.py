"""What a clone for the pool costs, and how much it slows down a job that runs beside it.

    .venv/bin/python bench/refills.py DATA_DIR [ROUNDS]

DATA_DIR holds the image python. Prints JSON: processor milliseconds of each step of a refill (median and lowest), in
the hypervisor and in this process; and the time of a job alone and beside refills, in turns. Runs under the
interpreter of the tree that it measures, so two trees can be compared in turns:

    for tree in OLD NEW OLD NEW; do $tree/.venv/bin/python bench/refills.py DATA_DIR; done
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from belljar.images.catalog import Images
from belljar.node.guest.command import Command
from belljar.node.guest.connection import SILENCE_SECONDS
from belljar.node.guest.wire import Stream
from belljar.node.machines.protocol import MachineSpec, Shape
from belljar.node.machines.provision.idle_snapshots import IdleSnapshots
from belljar.node.machines.provision.request import MachineRequest
from belljar.node.machines.provision.snapshot_clones import SnapshotClones
from belljar.node.machines.provision.snapshots import Snapshots
from belljar.node.machines.provision.warm_up import warm_up
from belljar.node.machines.qemu.hypervisor import QemuHypervisor
from belljar.node.worker.plan import DEFAULT_ENV
from belljar.node.worker.warm_ups import WarmUps
from belljar.scripts.pack import pack_tree
from belljar.settings import Settings

#: Half a second of an emulated processor.
SCRIPT = "total = 0\nfor number in range(700_000): total += number\nprint(total)\n"


@dataclass
class Lab:
    clones: SnapshotClones
    request: MachineRequest
    key: str
    disk: Path


class Sink:
    async def write(self, stream: Stream, data: bytes) -> None: ...

    def full(self, stream: Stream) -> bool:
        return False


def hypervisor_ms(pids: list[int]) -> float:
    """Processor time of all threads (proc_pid_schedstat), in milliseconds."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            total += int(task.read_text().split()[0])
    return total / 1e6


def own_ms() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return (usage.ru_utime + usage.ru_stime) * 1000


@asynccontextmanager
async def lab(data_dir: Path) -> AsyncIterator[Lab]:
    settings = Settings(data_dir=data_dir)
    image = Images(data_dir).get("python")
    hypervisor = QemuHypervisor(settings, "tcg")
    steps = await WarmUps(settings).of(image)
    snapshots, shape = Snapshots(settings), Shape(vcpus=1, memory_mb=128)
    await snapshots.make(hypervisor, image, shape, steps)
    key = snapshots.key(hypervisor, image, shape, steps)
    request = MachineRequest(hypervisor, MachineSpec(image=image, shape=shape, script_disk=None), steps, 60)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        (tree / "main.py").write_text(SCRIPT)
        await pack_tree(tree, Path(folder) / "disk")
        yield Lab(SnapshotClones(snapshots, None, IdleSnapshots(snapshots)), request, key, Path(folder) / "disk")
    hypervisor.release_snapshot(snapshots.folder / key)


async def refill_steps(lab: Lab) -> dict[str, float]:
    """Make a clone for the pool step by step; return the milliseconds of processor time."""
    before = own_ms()
    async with AsyncExitStack() as stack:
        running = await lab.clones.start(lab.request, lab.key, stack, silence_seconds=0, background=True)
        pids = running.clone.pids()
        resumed = hypervisor_ms(pids)
        await running.clone.attach_script(lab.request.warm_up_steps.disk)
        for command in lab.request.warm_up_steps.warm_up_commands:
            await warm_up(running.connection, command)
        warmed = hypervisor_ms(pids)
        own = own_ms() - before
    return {"spawn and resume": resumed, "warm-up": warmed - resumed, "this process": own, "all": warmed + own}


async def job_ms(lab: Lab) -> tuple[float, float]:
    """Run the script in a clone; return milliseconds from its start to its end, and of processor time."""
    async with AsyncExitStack() as stack:
        running = await lab.clones.start(lab.request, lab.key, stack, silence_seconds=SILENCE_SECONDS)
        await running.clone.attach_script(lab.disk)
        command = Command(argv=["python3", "/work/main.py"], env=DEFAULT_ENV, prefork="python")
        pids = running.clone.pids()
        before, started = hypervisor_ms(pids), time.monotonic()
        await running.connection.run(command, b"", Sink(), lambda _: None)
        return (time.monotonic() - started) * 1000, hypervisor_ms(pids) - before


@asynccontextmanager
async def refilling(lab: Lab) -> AsyncIterator[list[int]]:
    """Make one clone after the other for the pool, in the background."""
    made = [0]

    async def refill() -> None:
        while True:
            clone = await lab.clones.make_warm(lab.request, lab.key)
            await clone.end()
            made[0] += 1

    task = asyncio.create_task(refill())
    try:
        await asyncio.sleep(0.1)
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def main() -> None:
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    async with lab(Path(sys.argv[1])) as here:
        await job_ms(here)
        costs = [await refill_steps(here) for _ in range(rounds)]
        alone, beside, refills = [], [], 0
        for _ in range(rounds):
            alone.append(await job_ms(here))
            async with refilling(here) as made:
                beside.append(await job_ms(here))
            refills += made[0]
    print(json.dumps({"refill_ms": {name: middle([each[name] for each in costs]) for name in costs[0]},
                      "job_ms": slowdown(alone, beside), "refills": refills}))  # fmt: skip


def middle(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 1), "lowest": round(min(values), 1)}


def slowdown(alone: list[tuple[float, float]], beside: list[tuple[float, float]]) -> dict[str, Any]:
    """Compare times and processor times by their medians and by the median of the pairs."""
    found: dict[str, Any] = {}
    for number, name in enumerate(("elapsed", "processor")):
        pairs = [with_refill[number] / without[number] - 1 for without, with_refill in zip(alone, beside, strict=True)]
        found[name] = {
            "alone": middle([each[number] for each in alone]),
            "beside refills": middle([each[number] for each in beside]),
            "slower by": round(statistics.median(pairs), 3),
        }
    return found


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    asyncio.run(main())
