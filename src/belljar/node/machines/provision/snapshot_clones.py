"""Starts clones of snapshots, and discards snapshots from which no clone can run.

A snapshot stays when the host is short of something or the clone was killed from outside. It goes when the hypervisor
refuses it, or when clones of it fail repeatedly for unknown reasons.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import structlog

from belljar.model.errors import MachineError
from belljar.node.guest.connection import AgentConnection
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.host.usage import resident_mb
from belljar.node.machines.protocol import (
    BadSnapshot,
    Clone,
    DeathCause,
    Hypervisor,
    NetworkSlot,
    WaitingProcess,
)
from belljar.node.machines.provision.idle_snapshots import IdleSnapshots
from belljar.node.machines.provision.network_slot import configure_network, with_network_slot
from belljar.node.machines.provision.pool import WarmPool
from belljar.node.machines.provision.request import MachineRequest
from belljar.node.machines.provision.snapshots import Snapshots
from belljar.node.machines.provision.waiting_processes import StartedProcess, WaitingProcesses
from belljar.node.machines.provision.warm_clone import WarmClone
from belljar.node.machines.provision.warm_up import resume, warm_up
from belljar.node.machines.racing import MachineDead

log = structlog.get_logger()

#: A snapshot is discarded after this many clones in a row that failed for unknown reasons.
_MAX_UNEXPLAINED_FAILURES = 2


@dataclass(slots=True)
class _Failures:
    """Clones of a snapshot that failed in a row for unknown reasons."""

    count: int = 0
    last_at: float = 0.0

    def add(self, started_at: float) -> int:
        """Count a clone that was started then, and return the count.

        Clones that were started beside each other count once: whatever happened to this host met all of them.
        """
        if started_at >= self.last_at:
            self.count += 1
        self.last_at = time.monotonic()
        return self.count


@dataclass(frozen=True, slots=True)
class RunningClone:
    """A clone whose agent has its identity and its network."""

    clone: Clone
    connection: AgentConnection
    slot: NetworkSlot | None


class SnapshotClones:
    """Clones of the snapshots of one data folder; `pool` and `waiting` hold what goes with its snapshot."""

    def __init__(
        self, snapshots: Snapshots, pool: WarmPool | None, waiting: WaitingProcesses | None, idle: IdleSnapshots
    ) -> None:
        self._snapshots = snapshots
        self._pool = pool
        self._waiting = waiting
        self._idle = idle
        #: By snapshot, since its last clone that was made.
        self._failures: dict[str, _Failures] = {}

    async def start(
        self,
        request: MachineRequest,
        key: str,
        stack: AsyncExitStack,
        *,
        silence_seconds: int,
        background: bool = False,
    ) -> RunningClone:
        """Start a clone, which ends with `stack`.

        Its agent powers off when the host is silent for `silence_seconds`; 0: never.

        Raises MachineError, after which the snapshot may be discarded, and HostError.
        """
        self._idle.record_use(key, request.hypervisor)
        made_at, started_at = self._snapshots.made_at(key), time.monotonic()
        try:
            process, slot = await self._take_process(request, key, made_at, stack)
            spec = replace(request.spec, script_disk=None, background=background, slot=slot or request.spec.slot)
            spec = await with_network_slot(spec, request.slot_factory, stack)
            making = request.hypervisor.clone(spec, self._snapshots.folder / key, process)
            clone = await stack.enter_async_context(making)
            connection = await resume(clone, request.boot_timeout_seconds, silence_seconds=silence_seconds)
            await configure_network(connection, spec.slot)
        except MachineError as error:
            await self._handle_failure(request.hypervisor, key, made_at, started_at, error)
            raise
        self._failures.pop(key, None)
        return RunningClone(clone, connection, spec.slot)

    async def _take_process(
        self, request: MachineRequest, key: str, made_at: int | None, stack: AsyncExitStack
    ) -> tuple[WaitingProcess | None, NetworkSlot | None]:
        """Return a process that waits for this snapshot, with the slot of its clone, both released with `stack`."""
        if self._waiting is None or request.spec.slot is not None:
            return None, None
        started = self._waiting.take(key, lambda: self._start_process(request, key), made_at)
        if started is None:
            return None, None
        stack.push_async_callback(started.end)
        return started.process, started.slot

    async def _start_process(self, request: MachineRequest, key: str) -> StartedProcess | None:
        """Start a process that waits for this snapshot; None while there is no snapshot. Raises as `start` does."""
        made_at, started_at = self._snapshots.made_at(key), time.monotonic()
        if made_at is None:
            return None
        async with AsyncExitStack() as stack:
            spec = replace(request.spec, script_disk=None, background=True)
            spec = await with_network_slot(spec, request.slot_factory, stack)
            folder = self._snapshots.folder / key
            try:
                process = await stack.enter_async_context(request.hypervisor.waiting_process(spec, folder))
            except BadSnapshot as error:
                await self._handle_failure(request.hypervisor, key, made_at, started_at, error)
                raise
            memory_mb = await in_thread(resident_mb, process.pids())
            return StartedProcess(process, stack.pop_all(), memory_mb, spec.slot, made_at)

    async def make_warm(self, request: MachineRequest, key: str) -> WarmClone:
        """Start a clone for the pool and run the warm-up commands in it. Raises as `start` does."""
        made_at, started_at = self._snapshots.made_at(key), time.monotonic()
        async with AsyncExitStack() as stack:
            # Without a limit of silence: no message is sent to a waiting clone. It dies with this process all the same.
            running = await self.start(request, key, stack, silence_seconds=0, background=True)
            clone = running.clone
            try:
                if request.warm_up_steps.warm_up_commands:
                    await clone.attach_script(request.warm_up_steps.disk)
                for command in request.warm_up_steps.warm_up_commands:
                    await warm_up(running.connection, command)
            except MachineError as error:
                await self._handle_failure(request.hypervisor, key, made_at, started_at, error)
                raise
            clone.set_foreground()
            memory_mb = await in_thread(resident_mb, clone.pids())
            return WarmClone(clone, running.connection, stack.pop_all(), memory_mb, running.slot)

    async def _handle_failure(
        self, hypervisor: Hypervisor, key: str, made_at: int | None, started_at: float, error: MachineError
    ) -> None:
        """Discard the snapshot if it made the clone fail, or if clones failed before and no reason is known."""
        if made_at is None or self._snapshots.made_at(key) != made_at:
            return  # it was discarded or replaced meanwhile
        was_killed = isinstance(error, MachineDead) and error.death.cause is DeathCause.KILLED
        count = 0 if was_killed else self._failures.setdefault(key, _Failures()).add(started_at)
        if was_killed or (not isinstance(error, BadSnapshot) and count < _MAX_UNEXPLAINED_FAILURES):
            log.warning("clone_failed", snapshot=key, error=error.message)
            return
        await self._invalidate_snapshot(hypervisor, key, error.message)

    async def _invalidate_snapshot(self, hypervisor: Hypervisor, key: str, reason: str) -> None:
        """Discard a snapshot and the clones of it that wait in the pool."""
        self._failures.pop(key, None)
        await in_thread(self._snapshots.discard, key, reason)
        hypervisor.release_snapshot(self._snapshots.folder / key)
        if self._waiting is not None:
            await self._waiting.drop(key)
        if self._pool is not None:
            await self._pool.drop(key)
