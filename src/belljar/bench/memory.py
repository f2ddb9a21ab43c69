"""Measures the memory of what waits on this host, by cause: clones in the pool, and hypervisor processes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from belljar.bench.figures import Figure, figure, machine_facts
from belljar.images.catalog import Images
from belljar.model.errors import HostError
from belljar.model.image import Image
from belljar.node.machines.host.memory_by_cause import memory_by_cause
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.protocol import Hypervisor, MachineSpec, Shape
from belljar.node.machines.provision.idle_snapshots import IdleSnapshots
from belljar.node.machines.provision.request import MachineRequest
from belljar.node.machines.provision.snapshot_clones import SnapshotClones
from belljar.node.machines.provision.snapshots import Snapshots
from belljar.node.machines.selector import HypervisorSelector
from belljar.node.worker.warm_ups import WarmUps
from belljar.settings import Settings

#: Memory that is shared counts in part, so the figures are those of this many at once.
_WAITING = 4
_SHAPE = Shape(vcpus=1, memory_mb=256)


async def measure_memory(settings: Settings) -> dict[str, Any]:
    """Return the memory of a waiting clone and of a waiting process by cause, in MiB, and the host.

    Raises UnknownImage when no image is built, HostError, MachineError.
    """
    image = Images(settings.data_dir).get("python")
    hypervisor = await HypervisorSelector(settings).hypervisor(image)
    facts = machine_facts(hypervisor)
    settings.paths.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=settings.paths.run) as place:
        own = settings.model_copy(update={"data_dir": Path(place)})
        figures = await _measure(own, hypervisor, image)
    return {"machine": facts, "figures": [asdict(each) for each in figures]}


async def _measure(settings: Settings, hypervisor: Hypervisor, image: Image) -> list[Figure]:
    snapshots, warm_up_steps = Snapshots(settings), await WarmUps(settings).of(image)
    folder = await snapshots.make(hypervisor, image, _SHAPE, warm_up_steps)
    if folder is None:
        raise HostError("the snapshot of the benchmark is locked by another process; repeat the command")
    clones = SnapshotClones(snapshots, None, None, IdleSnapshots(snapshots))
    spec = MachineSpec(image=image, shape=_SHAPE, script_disk=None)
    request = MachineRequest(hypervisor, spec, warm_up_steps, settings.boot_timeout_seconds)
    on_disk_mb = sum(path.stat().st_blocks * 512 for path in folder.iterdir()) / (1 << 20)
    figures = [figure(f"snapshot of {_SHAPE.memory_mb} MB, on the disk", "MB", [on_disk_mb])]
    try:
        async with AsyncExitStack() as stack:
            pids = []
            for _ in range(_WAITING):
                warm = await clones.make_warm(request, folder.name)
                stack.push_async_callback(warm.end)
                pids.append(warm.clone.pids())
            figures += await in_thread(_figures, "waiting clone", pids)
        async with AsyncExitStack() as stack:
            pids = []
            for _ in range(_WAITING):
                process = await stack.enter_async_context(hypervisor.waiting_process(spec, folder))
                pids.append(process.pids())
            figures += await in_thread(_figures, "waiting process", pids)
    finally:
        hypervisor.release_snapshot(folder)
    return figures


def _figures(what: str, machines: Iterable[list[int]]) -> list[Figure]:
    found = [memory_by_cause(pids, _SHAPE.memory_mb) for pids in machines]
    whole = figure(f"memory of a {what} (PSS)", "MB", [sum(each.values()) for each in found])
    parts = [figure(f"  {cause}", "MB", [each[cause] for each in found]) for cause in found[0]]
    return [whole, *sorted(parts, key=lambda part: -part.p50)]
