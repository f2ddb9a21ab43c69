"""Provides a job's machine: from the pool, else from a snapshot, else by a boot.

The pool and snapshots only make it quicker: when they fail, the machine boots. Snapshots, clones and the pool belong to
this object; `run` is its background task.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from belljar.model.errors import BelljarError
from belljar.node.frozen.protocol import FrozenParts
from belljar.node.guest.connection import SILENCE_SECONDS
from belljar.node.machines.protocol import Hypervisor, Machine, MachineSpec
from belljar.node.machines.provision.clone_source import CloneSource
from belljar.node.machines.provision.cold_boot import boot_machine
from belljar.node.machines.provision.network_slot import SlotFactory, configure_network, with_network_slot
from belljar.node.machines.provision.pool import WarmPool
from belljar.node.machines.provision.request import MachineRequest, ProvisionedMachine
from belljar.node.machines.provision.snapshots import Snapshots
from belljar.node.machines.provision.waiting_processes import WaitingProcesses
from belljar.node.machines.provision.warm_up import WarmUp, resume
from belljar.system.counters import increment
from belljar.system.histograms import observe


class MachineProvisioner:
    """Provides machines as quickly as this host can. Without a pool it only uses snapshots; without those it boots."""

    def __init__(
        self, snapshots: Snapshots | None, pool: WarmPool | None = None, waiting: WaitingProcesses | None = None
    ) -> None:
        """`waiting`: processes that are started ahead for clones; None: each clone starts its own."""
        self.snapshots = snapshots
        self.pool = pool
        self.waiting = waiting
        self._clone_source = None if snapshots is None else CloneSource(snapshots, pool, waiting)
        self._in_use: set[Machine] = set()

    @asynccontextmanager
    async def machine(
        self,
        hypervisor: Hypervisor,
        spec: MachineSpec,
        warm_up_steps: WarmUp,
        boot_timeout_seconds: float,
        slot_factory: SlotFactory | None = None,
    ) -> AsyncIterator[ProvisionedMachine]:
        """Provide a machine with the spec's script, if any, whose agent is ready for commands; end it with the block.

        `slot_factory` makes its network slot, and those of clones of its kind for the pool. Raises MachineError,
        HostError, and what `slot_factory` raises.
        """
        request = MachineRequest(hypervisor, spec, warm_up_steps, boot_timeout_seconds, slot_factory)
        async with AsyncExitStack() as stack:
            started = time.monotonic()
            try:
                provisioned = await self._provision(request, stack)
            except BelljarError as error:
                increment("belljar_machine_start_failures", code=error.code)
                raise
            increment("belljar_machines", source=provisioned.source)
            observe("belljar_machine_seconds", time.monotonic() - started, source=provisioned.source)
            self._in_use.add(provisioned.machine)
            stack.callback(self._in_use.discard, provisioned.machine)
            yield provisioned

    @asynccontextmanager
    async def restored(
        self,
        hypervisor: Hypervisor,
        spec: MachineSpec,
        parts: FrozenParts,
        boot_timeout_seconds: float,
        slot_factory: SlotFactory | None = None,
    ) -> AsyncIterator[ProvisionedMachine]:
        """Provide a machine that continues from a frozen one, whose session can be resumed; end it with the block.

        Raises SnapshotUnusable, MachineError, HostError, and what `slot_factory` raises.
        """
        async with AsyncExitStack() as stack:
            spec = await with_network_slot(spec, slot_factory, stack)
            clone = await stack.enter_async_context(hypervisor.restored(spec, parts))
            connection = await resume(clone, boot_timeout_seconds, silence_seconds=SILENCE_SECONDS)
            await configure_network(connection, spec.slot)
            self._in_use.add(clone)
            stack.callback(self._in_use.discard, clone)
            yield ProvisionedMachine(clone, connection, "snapshot", clone.phases, spec.slot)

    async def _provision(self, request: MachineRequest, stack: AsyncExitStack) -> ProvisionedMachine:
        if self._clone_source is not None:
            clone = await self._clone_source.provision(request, stack)
            if clone is not None:
                return clone
        return await self._boot(request, stack)

    async def _boot(self, request: MachineRequest, stack: AsyncExitStack) -> ProvisionedMachine:
        spec = await with_network_slot(request.spec, request.slot_factory, stack)
        if spec.script_disk is None:  # a sandbox mounts none, but a machine boots with one: this has no tenant's data
            spec = replace(spec, script_disk=request.warm_up_steps.disk)
        booted = await boot_machine(lambda: request.hypervisor.machine(spec), request.boot_timeout_seconds, stack)
        await configure_network(booted.connection, spec.slot)
        return replace(booted, slot=spec.slot)

    def pids(self) -> list[int]:
        """Return the ids of the hypervisors' processes of machines that jobs use now."""
        return [pid for machine in self._in_use for pid in machine.pids()]

    def prepare_for(self, hypervisor: Hypervisor, spec: MachineSpec, warm_up_steps: WarmUp) -> None:
        """Prepare for jobs that need machines like this: make the snapshot, and clones in a pool of fixed size."""
        if self._clone_source is not None and self.snapshots is not None:
            boot_timeout_seconds = self.snapshots.boot_timeout_seconds
            self._clone_source.prepare_for(MachineRequest(hypervisor, spec, warm_up_steps, boot_timeout_seconds))

    async def make_snapshot(self, hypervisor: Hypervisor, spec: MachineSpec, warm_up_steps: WarmUp) -> bool:
        """Make the snapshot for machines of that spec now; return False and log the reason if it cannot be made."""
        assert self._clone_source is not None
        return await self._clone_source.maker.make(hypervisor, spec, warm_up_steps)

    async def shrink_to(self, memory_mb: float) -> None:
        """End what waits, processes before clones, until it uses no more than that: a job needs the memory."""
        if self._clone_source is not None:
            await self._clone_source.shrink_to(memory_mb)

    async def run(self, free_memory_mb: Callable[[], float]) -> None:
        """Make missing snapshots and fill the pool until cancelled; `free_memory_mb` is what jobs leave now."""
        if self._clone_source is not None:
            await self._clone_source.run(free_memory_mb)
