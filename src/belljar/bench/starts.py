"""Measures the start of a machine from a snapshot, and the memory of its hypervisor beside the guest's.

The targets with KVM and Firecracker are 125 ms for a boot, 10 ms for a restore and 5 MB beside the guest's memory.
Software emulation cannot reach them.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from belljar.model.image import Image
from belljar.node.guest.connection import AgentConnection
from belljar.node.machines.deadlines import deadline_factor
from belljar.node.machines.protocol import Hypervisor, MachineSpec, Shape
from belljar.settings import Settings

_RESUME_SECONDS = 30
_MEMORY_MB = 256

#: Name, unit and samples of a figure.
Measured = tuple[str, str, list[float]]


async def measure_starts(settings: Settings, hypervisor: Hypervisor, image: Image, rounds: int) -> list[Measured]:
    """Freeze a machine and clone it `rounds` times. Raises MachineError, HostError."""
    spec = MachineSpec(image=image, shape=Shape(vcpus=1, memory_mb=_MEMORY_MB), script_disk=None)
    restores, own, loads = [], [], []
    resume_seconds = _RESUME_SECONDS * deadline_factor(settings.boot_timeout_seconds)
    work = settings.paths.run
    work.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=work) as place:
        folder = Path(place) / "snapshot"
        folder.mkdir(mode=0o700)
        async with hypervisor.snapshot_source(spec, folder) as template:
            factor = deadline_factor(settings.boot_timeout_seconds)
            connection = AgentConnection(template.reader, template.writer, timeout_factor=factor)
            await connection.open(settings.boot_timeout_seconds)
            await connection.suspend()
            started = time.monotonic()
            await template.freeze()
            frozen = (time.monotonic() - started) * 1000
        try:
            for _ in range(rounds):
                started = time.monotonic()
                async with hypervisor.clone(spec, folder) as clone:
                    await AgentConnection(clone.reader, clone.writer).resume(resume_seconds)
                    restores.append((time.monotonic() - started) * 1000)
                    loads += [clone.phases["load"]] if "load" in clone.phases else []
                    own.append(own_memory_mb(clone.pids(), _MEMORY_MB))
        finally:
            hypervisor.release_snapshot(folder)
    measured: list[Measured] = [
        ("freeze: suspended → on the disk", "ms", [frozen]),
        ("restore: clone spawned → agent answers", "ms", restores),
    ]
    if loads:
        measured.append(("  of it loading the snapshot", "ms", loads))
    return [*measured, ("memory of a machine beside its guest's", "MB", own)]


def own_memory_mb(pids: Iterable[int], guest_mb: int) -> float:
    """MiB that processes take beside the guest's memory, which is the mapping of at least half its size.

    Source: proc_pid_smaps(5); what is shared with other processes counts in part.
    """
    total_kb = 0
    for pid in pids:
        try:
            mappings = Path(f"/proc/{pid}/smaps").read_text()
        except OSError:
            continue
        for size, pss in re.findall(r"^Size:\s+(\d+) kB\n(?:.*\n)*?Pss:\s+(\d+) kB", mappings, re.M):
            total_kb += int(pss) if int(size) < guest_mb * 512 else 0
    return total_kb / 1024
