"""Provides clones for jobs: from the pool, else from a snapshot. A failure here never fails the job, which then boots.

A missing snapshot is made in the background for later jobs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import structlog

from belljar.model.errors import HostError, MachineError
from belljar.node.guest.connection import SILENCE_SECONDS
from belljar.node.machines.host.shielded_stack import uninterrupted
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.protocol import SCRIPT_DISK_BYTES
from belljar.node.machines.provision.idle_snapshots import IdleSnapshots
from belljar.node.machines.provision.pool import WarmPool
from belljar.node.machines.provision.request import MachineRequest, ProvisionedMachine
from belljar.node.machines.provision.snapshot_clones import SnapshotClones
from belljar.node.machines.provision.snapshot_maker import SnapshotMaker
from belljar.node.machines.provision.snapshots import Snapshots
from belljar.node.machines.provision.waiting_processes import WaitingProcesses
from belljar.node.machines.provision.warm_clone import WarmClone
from belljar.system.background import supervise
from belljar.system.counters import increment

log = structlog.get_logger()


class CloneSource:
    """Clones of one data folder's snapshots, warm ones if there is a pool."""

    def __init__(self, snapshots: Snapshots, pool: WarmPool | None, waiting: WaitingProcesses | None) -> None:
        self.maker = SnapshotMaker(snapshots, self._fill_pool)
        self._snapshots = snapshots
        self._pool = pool
        self._waiting = waiting
        self._idle = IdleSnapshots(snapshots)
        self._clones = SnapshotClones(snapshots, pool, waiting, self._idle)

    def _fill_pool(self, key: str) -> None:
        if self._pool is not None:
            self._pool.retry(key)

    async def provision(self, request: MachineRequest, stack: AsyncExitStack) -> ProvisionedMachine | None:
        """Return a clone with the script, which ends with `stack`; None when the job has to boot a machine."""
        key = self._key(request)
        if key is None:
            return None
        if self._pool is not None:
            self._pool.record_demand(key, lambda: self._make_warm(request, key))
            warm_clone = await self._pool.take(key)
            increment("belljar_pool_requests", result="miss" if warm_clone is None else "hit")
            if warm_clone is not None and (machine := await self._from_pool(warm_clone, request, stack)) is not None:
                return machine
        if self._snapshots.find(key) is None:
            self.maker.enqueue(key, request)
            return None
        return await self._from_snapshot(request, key, stack)

    def prepare_for(self, request: MachineRequest) -> None:
        """Make the snapshot for such machines if it is missing, and keep clones in a pool of fixed size."""
        spec = request.spec
        key = self._snapshots.key(request.hypervisor, spec.image, spec.shape, request.warm_up_steps)
        if self._snapshots.find(key) is None:
            self.maker.enqueue(key, request)
        if self._pool is not None and self._pool.fixed_size:
            self._pool.record_demand(key, lambda: self._make_warm(request, key), keep=True)

    async def run(self, free_memory_mb: Callable[[], float]) -> None:
        """Make snapshots, release idle ones and fill the pool until cancelled; `free_memory_mb` is what jobs leave.

        Each part that fails is logged and restarted after a pause.
        """
        await supervise("snapshot_cleanup", self._clean_up)
        async with asyncio.TaskGroup() as group:
            group.create_task(supervise("snapshot_maker", self.maker.make_queued))
            group.create_task(supervise("snapshot_idle", self._idle.release_idle))
            if self._pool is not None:
                group.create_task(self._pool.run(free_memory_mb))
            if self._waiting is not None:
                group.create_task(self._waiting.run(lambda: free_memory_mb() - self._pool_memory_mb))

    @property
    def _pool_memory_mb(self) -> float:
        return 0.0 if self._pool is None else self._pool.memory_mb

    async def shrink_to(self, memory_mb: float) -> None:
        """End processes that wait, then clones in the pool, until all use no more than that: a job needs the memory."""
        if self._waiting is not None:
            await self._waiting.shrink_to(memory_mb - self._pool_memory_mb)
        if self._pool is not None:
            await self._pool.shrink_to(memory_mb)

    async def _clean_up(self) -> None:
        await in_thread(self._snapshots.clean_up)

    def _key(self, request: MachineRequest) -> str | None:
        """Return the key of the request's snapshot; None when it cannot have one."""
        spec = request.spec
        try:
            if spec.script_disk is not None and spec.script_disk.stat().st_size > SCRIPT_DISK_BYTES:
                return None
            return self._snapshots.key(request.hypervisor, spec.image, spec.shape, request.warm_up_steps)
        except OSError as error:  # the boot raises it again, if it matters there
            log.warning("snapshot_skipped", image=spec.image.name, error=str(error))
            return None

    async def _from_pool(
        self, warm_clone: WarmClone, request: MachineRequest, stack: AsyncExitStack
    ) -> ProvisionedMachine | None:
        started = time.monotonic()
        try:
            if request.spec.script_disk is not None:
                await warm_clone.clone.attach_script(request.spec.script_disk)
            await warm_clone.connection.set_clock()
        except (MachineError, HostError, OSError) as error:
            log.warning("warm_clone_lost", machine=warm_clone.clone.id, error=str(error))
            await uninterrupted(warm_clone.end())
            return None
        except BaseException:
            await uninterrupted(warm_clone.end())
            raise
        stack.push_async_callback(warm_clone.end)
        phases = {"insert": round((time.monotonic() - started) * 1000, 3)}
        return ProvisionedMachine(warm_clone.clone, warm_clone.connection, "pool", phases, warm_clone.slot)

    async def _from_snapshot(
        self, request: MachineRequest, key: str, stack: AsyncExitStack
    ) -> ProvisionedMachine | None:
        async with AsyncExitStack() as attempt:
            try:
                running = await self._clones.start(request, key, attempt, silence_seconds=SILENCE_SECONDS)
                started = time.monotonic()
                if request.spec.script_disk is not None:
                    await running.clone.attach_script(request.spec.script_disk)
                running.clone.phases["insert"] = round((time.monotonic() - started) * 1000, 3)
            except MachineError:  # logged already
                return None
            except (HostError, OSError) as error:
                log.warning("snapshot_skipped", snapshot=key, error=str(error))
                return None
            await stack.enter_async_context(attempt.pop_all())
            return ProvisionedMachine(running.clone, running.connection, "snapshot", running.clone.phases, running.slot)

    async def _make_warm(self, request: MachineRequest, key: str) -> WarmClone | None:
        """Make a clone for the pool; None while there is no snapshot."""
        if self._snapshots.find(key) is None:
            self.maker.enqueue(key, request)
            return None
        return await self._clones.make_warm(request, key)
