"""Where a job's machine comes from: the pool, else a snapshot, else a boot. What is quicker never fails the job.

A snapshot that is missing is made in the background for the jobs to come. One that does not restore is discarded and
the job boots; when it is the host that has too little of something, the snapshot stays. Snapshots, clones and pool
belong to this object; `run` is its background.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import structlog

from belljar.model.errors import HostError, MachineError
from belljar.node.guest.connection import SILENCE_SECONDS, AgentConnection
from belljar.node.machines.boot import NoClock, open_connection
from belljar.node.machines.host.shielded_stack import uninterrupted
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.host.usage import resident_mb
from belljar.node.machines.protocol import (
    SCRIPT_DISK_BYTES,
    BadSnapshot,
    Clone,
    DeathCause,
    Hypervisor,
    Machine,
    MachineSpec,
    NetworkSlot,
)
from belljar.node.machines.provision.network_slot import SlotFactory, configure_network, with_network_slot
from belljar.node.machines.provision.pool import WarmClone, WarmPool
from belljar.node.machines.provision.snapshots import Snapshots
from belljar.node.machines.provision.warm_up import WarmUp, wake, warm_up
from belljar.node.machines.racing import MachineDead
from belljar.system.background import supervise

log = structlog.get_logger()

#: A snapshot that could not be made is not tried again for this long.
_TROUBLE_SECONDS = 300.0
#: What a snapshot's clones are made from is kept in memory until it was not needed for this long.
_IDLE_SECONDS = 900.0
#: So many clones in a row that fail for reasons that are not clear, and the snapshot is taken to be bad.
_MAX_DOUBTS = 2

Source = Literal["pool", "snapshot", "boot"]


@dataclass(frozen=True, slots=True)
class ProvisionedMachine:
    """A machine for one job, whose agent waits for words."""

    machine: Machine
    connection: AgentConnection
    source: Source
    #: Milliseconds of what was done on the way, in order.
    phases: dict[str, float]
    #: Where it is plugged in; nothing has been opened for it there. None without a network.
    slot: NetworkSlot | None = None


@dataclass(frozen=True, slots=True)
class _Order:
    hypervisor: Hypervisor
    spec: MachineSpec
    warm_up_steps: WarmUp
    boot_timeout_seconds: float
    #: Gives a slot to each machine of this order, if its shape has a network.
    slot_factory: SlotFactory | None = None


class MachineProvisioner:
    """Machines, as quickly as this host can give them. Without a pool it only uses the snapshots that there are."""

    def __init__(self, snapshots: Snapshots | None, pool: WarmPool | None = None) -> None:
        self.snapshots = snapshots
        self.pool = pool
        self._to_make: asyncio.Queue[tuple[str, _Order]] = asyncio.Queue(maxsize=16)
        self._making: set[str] = set()
        #: By snapshot: clones in a row that failed and nobody knows why.
        self._doubts: Counter[str] = Counter()
        self._not_before: dict[str, float] = {}
        self._used: dict[str, tuple[float, Hypervisor]] = {}
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
        """A machine with the spec's script in it, whose agent waits for words, ended with the block.

        `plug` gives it a slot, and others of its kind that are made for the pool. Raises MachineError, HostError, and
        what `plug` does.
        """
        async with AsyncExitStack() as stack:
            ready = await self._quick(
                _Order(hypervisor, spec, warm_up_steps, boot_timeout_seconds, slot_factory), stack
            )
            if ready is None:
                place = await with_network_slot(spec, slot_factory, stack)
                ready = await booted(lambda: hypervisor.machine(place), boot_timeout_seconds, stack)
                await configure_network(ready.connection, place.slot)
                ready = replace(ready, slot=place.slot)
            self._in_use.add(ready.machine)
            stack.callback(self._in_use.discard, ready.machine)
            yield ready

    def pids(self) -> list[int]:
        """The hypervisors' processes of the machines that jobs have now."""
        return [pid for machine in self._in_use for pid in machine.pids()]

    async def _quick(self, order: _Order, stack: AsyncExitStack) -> ProvisionedMachine | None:
        """A machine from the pool or a snapshot; None when the job has to boot one."""
        key = self._key(order)
        if key is None:
            return None
        assert self.snapshots is not None and order.spec.script_disk is not None
        if self.pool is not None:
            self.pool.ask(key, lambda: self._exercised(order, key))
            waiting = await self.pool.take(key)
            if waiting is not None and (ready := await self._from_pool(waiting, order.spec.script_disk, stack)):
                return ready
        if self.snapshots.find(key) is None:
            self._want(order, key)
            return None
        return await self._from_snapshot(order, key, stack)

    def _key(self, order: _Order) -> str | None:
        """The name of the order's snapshot; None when it cannot have one."""
        if self.snapshots is None or order.spec.script_disk is None:
            return None
        try:
            if order.spec.script_disk.stat().st_size > SCRIPT_DISK_BYTES:
                return None
            return self.snapshots.key(order.hypervisor, order.spec.image, order.spec.shape, order.warm_up_steps)
        except OSError as error:  # the boot says what is wrong, if it is of any matter there
            log.warning("snapshot_not_used", image=order.spec.image.name, error=str(error))
            return None

    async def _from_pool(
        self, waiting: WarmClone, script_disk: Path, stack: AsyncExitStack
    ) -> ProvisionedMachine | None:
        started = time.monotonic()
        try:
            await waiting.clone.insert(script_disk)
            await waiting.connection.set_clock()
        except (MachineError, HostError, OSError) as error:
            log.warning("waiting_clone_lost", machine=waiting.clone.id, error=str(error))
            await uninterrupted(waiting.end())
            return None
        except BaseException:
            await uninterrupted(waiting.end())
            raise
        stack.push_async_callback(waiting.end)
        phases = {"insert": round((time.monotonic() - started) * 1000, 3)}
        return ProvisionedMachine(waiting.clone, waiting.connection, "pool", phases, waiting.slot)

    async def _from_snapshot(self, order: _Order, key: str, stack: AsyncExitStack) -> ProvisionedMachine | None:
        assert order.spec.script_disk is not None
        async with AsyncExitStack() as trying:
            try:
                clone, connection, slot = await self._clone(order, key, trying, SILENCE_SECONDS)
                started = time.monotonic()
                await clone.insert(order.spec.script_disk)
                clone.phases["insert"] = round((time.monotonic() - started) * 1000, 3)
            except MachineError:
                return None
            except (HostError, OSError) as error:
                log.warning("snapshot_not_used", snapshot=key, error=str(error))
                return None
            await stack.enter_async_context(trying.pop_all())
            return ProvisionedMachine(clone, connection, "snapshot", clone.phases, slot)

    async def _clone(
        self, order: _Order, key: str, stack: AsyncExitStack, silence_seconds: int, *, background: bool = False
    ) -> tuple[Clone, AgentConnection, NetworkSlot | None]:
        """A clone that runs. Raises MachineError, after which the snapshot may be gone, and HostError."""
        assert self.snapshots is not None
        self._used[key] = time.monotonic(), order.hypervisor
        made_at = self.snapshots.made_at(key)
        try:
            spec = await with_network_slot(
                replace(order.spec, script_disk=None, background=background), order.slot_factory, stack
            )
            clone = await stack.enter_async_context(order.hypervisor.clone(spec, self.snapshots.folder / key))
            connection = await wake(clone, order.boot_timeout_seconds, silence_seconds=silence_seconds)
            await configure_network(connection, spec.slot)
        except MachineError as error:
            await self._judge(order.hypervisor, key, made_at, error)
            raise
        del self._doubts[key]
        return clone, connection, spec.slot

    async def _judge(self, hypervisor: Hypervisor, key: str, made_at: int | None, error: MachineError) -> None:
        """A clone failed: discard the snapshot if that is why, or if it happened before and nobody knows why."""
        assert self.snapshots is not None
        if made_at is None or self.snapshots.made_at(key) != made_at:
            return  # another did so, or it was made again meanwhile
        if isinstance(error, MachineDead) and error.death.cause is DeathCause.KILLED:
            log.warning("clone_failed", snapshot=key, error=error.message)
            return
        self._doubts[key] += 1
        if not isinstance(error, BadSnapshot) and self._doubts[key] < _MAX_DOUBTS:
            log.warning("clone_failed", snapshot=key, error=error.message)
            return
        del self._doubts[key]
        await in_thread(self.snapshots.discard, key, error.message)
        hypervisor.forget(self.snapshots.folder / key)
        if self.pool is not None:
            await self.pool.drop(key)

    async def _exercised(self, order: _Order, key: str) -> WarmClone | None:
        """A clone for the pool; None while there is no snapshot."""
        assert self.snapshots is not None
        if self.snapshots.find(key) is None:
            self._want(order, key)
            return None
        made_at = self.snapshots.made_at(key)
        async with AsyncExitStack() as trying:
            # Nobody speaks to it while it waits, and it dies with this process all the same.
            clone, connection, slot = await self._clone(order, key, trying, 0, background=True)
            try:
                if order.warm_up_steps.rehearsals:
                    await clone.insert(order.warm_up_steps.disk)
                for rehearsal in order.warm_up_steps.rehearsals:
                    await warm_up(connection, rehearsal)
            except MachineError as error:
                await self._judge(order.hypervisor, key, made_at, error)
                raise
            clone.set_foreground()
            memory_mb = await in_thread(resident_mb, clone.pids())
            return WarmClone(clone, connection, trying.pop_all(), memory_mb, slot)

    def prefer(self, hypervisor: Hypervisor, spec: MachineSpec, warm_up_steps: WarmUp) -> None:
        """Jobs will want machines like this: have the snapshot ready, and in a fixed pool clones of it."""
        if self.snapshots is None:
            return
        order = _Order(hypervisor, spec, warm_up_steps, self.snapshots.boot_timeout_seconds)
        key = self.snapshots.key(hypervisor, spec.image, spec.shape, warm_up_steps)
        if self.snapshots.find(key) is None:
            self._want(order, key)
        if self.pool is not None and self.pool.fixed:
            self.pool.ask(key, lambda: self._exercised(order, key), keep=True)

    def _want(self, order: _Order, key: str) -> None:
        """Have the snapshot made in the background, unless it is being made or failed lately."""
        now = time.monotonic()
        self._not_before = {each: until for each, until in self._not_before.items() if until > now}
        if key in self._making or key in self._not_before or self._to_make.full():
            return
        self._making.add(key)
        self._to_make.put_nowait((key, order))

    async def run(self, room_mb: Callable[[], float]) -> None:
        """The background: makes what is wanted, keeps the pool. `room_mb`: memory that jobs leave now.

        Each part that fails is logged and started again after a pause; only being cancelled ends it.
        """
        if self.snapshots is None:
            return
        await supervise("snapshot_cleanup", self._clean_up)
        async with asyncio.TaskGroup() as group:
            group.create_task(supervise("snapshot_maker", self._make_wanted))
            group.create_task(supervise("snapshot_idle", self._forget_idle))
            if self.pool is not None:
                group.create_task(self.pool.run(room_mb))

    async def _clean_up(self) -> None:
        assert self.snapshots is not None
        await in_thread(self.snapshots.clean_up)

    async def _forget_idle(self) -> None:
        assert self.snapshots is not None
        while True:
            await asyncio.sleep(_IDLE_SECONDS / 10)
            for key, (at, hypervisor) in list(self._used.items()):
                if time.monotonic() - at > _IDLE_SECONDS:
                    del self._used[key]
                    hypervisor.forget(self.snapshots.folder / key)

    async def _make_wanted(self) -> None:
        while True:
            key, order = await self._to_make.get()
            try:
                await self.make(order.hypervisor, order.spec, order.warm_up_steps)
            finally:
                self._making.discard(key)

    async def make(self, hypervisor: Hypervisor, spec: MachineSpec, warm_up_steps: WarmUp) -> bool:
        """Make the snapshot for machines of that spec now; False, and a word in the log, when it cannot be made."""
        assert self.snapshots is not None
        key = None
        try:
            key = self.snapshots.key(hypervisor, spec.image, spec.shape, warm_up_steps)
            return await self.snapshots.make(hypervisor, spec.image, spec.shape, warm_up_steps) is not None
        except (MachineError, HostError, OSError) as error:
            log.warning("snapshot_failed", image=spec.image.name, error=str(error))
            if key is not None:
                self._not_before[key] = time.monotonic() + _TROUBLE_SECONDS
            return False


async def booted(
    start: Callable[[], AbstractAsyncContextManager[Machine]], boot_timeout_seconds: float, stack: AsyncExitStack
) -> ProvisionedMachine:
    """Boot a machine, which ends with `held`. One whose clock does not go is replaced, twice. Raises MachineError."""
    for tries in range(3):
        async with AsyncExitStack() as trying:
            machine = await trying.enter_async_context(start())
            started = time.monotonic()
            try:
                connection = await open_connection(machine, boot_timeout_seconds)
            except NoClock as error:
                if tries == 2:
                    raise
                log.warning("machine_replaced", machine=machine.id, reason=error.message)
                continue
            machine.phases["boot"] = round((time.monotonic() - started) * 1000, 3)
            await stack.enter_async_context(trying.pop_all())
            return ProvisionedMachine(machine, connection, "boot", machine.phases)
    raise AssertionError("the last try returns or raises")
