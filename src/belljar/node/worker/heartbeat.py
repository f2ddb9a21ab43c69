"""Reports of a worker about its node: that it is alive, what it has, and how much of that is free."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from datetime import UTC, datetime

from belljar import __version__
from belljar.link.leases import NodeIdentity
from belljar.link.nodes import NodeReport
from belljar.node.machines.protocol import Hypervisor
from belljar.node.worker.capacity import Capacity
from belljar.node.worker.context import WorkerContext
from belljar.system.background import report_failure


class Heartbeat:
    """Sends the node's report three times in the time of a lease. `run` until cancelled."""

    def __init__(
        self,
        context: WorkerContext,
        node: NodeIdentity,
        capacity: Capacity,
        running_jobs: Callable[[], int],
        hypervisor: Callable[[], Hypervisor | None],
    ) -> None:
        self._context = context
        self._node = node
        self._capacity = capacity
        self._running_jobs = running_jobs
        self._hypervisor = hypervisor
        self._started_at = datetime.now(UTC)
        self._snapshots: tuple[dict[str, object], ...] = ()

    async def run(self) -> None:
        """Raises HostError when the control plane refuses, OSError."""
        while True:
            await self._context.link.heartbeat(self._node, await self._report())
            await asyncio.sleep(self._context.settings.lease_seconds / 3)

    async def _report(self) -> NodeReport:
        capacity, hypervisor, pool = self._capacity, self._hypervisor(), self._context.provisioner.pool
        vcpus_free, memory_free_mb = capacity.free()
        largest = capacity.largest()
        return NodeReport(
            hostname=socket.gethostname(),
            version=__version__,
            started_at=self._started_at,
            hypervisor=hypervisor.name if hypervisor else None,
            accelerator=hypervisor.accelerator if hypervisor else None,
            vcpus=capacity.vcpus,
            memory_mb=capacity.memory_mb,
            largest_memory_mb=largest.memory_mb,
            vcpus_free=vcpus_free,
            memory_free_mb=memory_free_mb,
            largest_disk_mb=largest.disk_mb,
            running_jobs=self._running_jobs(),
            images=tuple(sorted(self._context.images.digests())),
            waiting_clones=sum(pool.counts().values()) if pool is not None else 0,
            waiting_memory_mb=round(pool.memory_mb if pool is not None else 0),
            snapshots=await self._known_snapshots(),
        )

    async def _known_snapshots(self) -> tuple[dict[str, object], ...]:
        """Return the snapshots that there are, or the last known ones when they cannot be read now."""
        if (snapshots := self._context.provisioner.snapshots) is not None:
            try:
                self._snapshots = tuple(await asyncio.to_thread(snapshots.list))
            except OSError as error:
                report_failure("list_snapshots", error)
        return self._snapshots
