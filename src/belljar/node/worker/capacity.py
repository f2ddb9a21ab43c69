"""The vCPUs, memory and disk that a node has for jobs: what is promised to them, and what they really use."""

from __future__ import annotations

import asyncio
import math
import os
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog

from belljar.model.job import Job, Resources
from belljar.model.resources import NodeLimits
from belljar.settings import Settings
from belljar.settings.disk_space import disk_space_of
from belljar.settings.jobs import JobSettings
from belljar.system.disk_space import MB, DiskSpace
from belljar.system.idle_processors import IdleProcessors

log = structlog.get_logger()

#: What a machine's hypervisor takes on top of the guest's memory (QEMU with its translation cache).
MACHINE_OVERHEAD_MB = 96
#: More than any job may ask for.
_NO_LIMIT_MB = 1 << 30


def host_memory_mb() -> int:
    """Return the memory of this host, in MiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1024 * 1024)


def output_mb(job: Job, settings: JobSettings) -> int:
    """Return how much disk a job's log and artifacts may take, in MiB."""
    artifacts_mb = settings.max_artifacts_mb if job.artifacts else 0
    return math.ceil(2 * settings.max_output_mb + artifacts_mb)


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request for room; `admitted` is set when it has got it."""

    key: str
    resources: Resources
    admitted: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class Capacity:
    """vCPUs and MiB that jobs may hold together, and what is held now.

    Requests that wait hold nothing, and are served in turn before any new job: so none waits for ever.
    """

    vcpus: int
    memory_mb: int
    #: How many times the memory may be promised. Above 1, what machines really use keeps the node from the edge.
    overcommit: float = 1.0
    #: What the machines of jobs really take, MiB, as it was last measured.
    used_mb: float = 0.0
    #: What watches the disk; None: disk is not counted.
    disk: DiskSpace | None = None
    #: Processors that nothing uses, whatever jobs were promised.
    idle_processors: IdleProcessors = field(default_factory=IdleProcessors)
    _watches: list[asyncio.Event] = field(default_factory=list)
    _held: dict[str, Resources] = field(default_factory=dict)
    #: Held no more for now, by jobs that will want it back: no new job is admitted in its place.
    _lent: dict[str, Resources] = field(default_factory=dict)
    _waiting: deque[_Waiting] = field(default_factory=deque)
    #: MiB of disk that each job may still fill besides its scratch disk.
    _outputs_mb: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of_host(cls, settings: Settings) -> Capacity:
        """Return the capacity that the settings name, else twice the cores and 80 % of the memory.

        Jobs wait more than they compute, so there are more vCPUs than cores.
        """
        return cls(
            vcpus=settings.worker_vcpus or 2 * (os.cpu_count() or 1),
            memory_mb=settings.worker_memory_mb or host_memory_mb() * 8 // 10,
            overcommit=settings.memory_overcommit,
            disk=disk_space_of(settings),
        )

    def largest(self) -> NodeLimits:
        """Return the largest job that could ever run here."""
        memory_mb = max(0, self.memory_mb - MACHINE_OVERHEAD_MB)
        return NodeLimits(vcpus=self.vcpus, memory_mb=memory_mb, disk_mb=self._largest_disk_mb())

    def free(self) -> tuple[int, int]:
        """Return vCPUs and MiB of the largest new job that fits now; zeros when none does or requests wait."""
        return (0, 0) if self._waiting else self._left([*self._held.values(), *self._lent.values()])

    def _left(self, held: list[Resources]) -> tuple[int, int]:
        promised_mb = _promised_mb(held)
        memory_mb = self.memory_mb * self.overcommit - promised_mb
        if promised_mb > self.memory_mb:
            memory_mb = min(memory_mb, self.memory_mb - self.used_mb)
        vcpus = self.vcpus - sum(each.vcpus for each in held)
        return max(0, vcpus), max(0, min(int(memory_mb), self.memory_mb) - MACHINE_OVERHEAD_MB)

    def free_disk_mb(self) -> int | None:
        """Return the scratch disk of the largest job that fits now, in MiB; None when no job fits, even without one.

        A scratch disk is a sparse file: what a job was promised is counted in full until it ends, and what it has
        written is missing from the free disk besides. A node that runs nothing always takes a job without a scratch
        disk while the reserve is whole.
        """
        if self.disk is None:
            return _NO_LIMIT_MB
        usable_mb = self._usable_disk_mb()
        if usable_mb is None or self.disk.low() is not None:
            return None
        left_mb = usable_mb - self._promised_disk_mb()
        return None if left_mb < 0 and self._held else max(0, left_mb)

    def _largest_disk_mb(self) -> int | None:
        """Return the largest scratch disk that would fit if nothing ran here; None when that is not known.

        Each scratch disk in use counts as full: so nothing is refused that could fit.
        """
        usable_mb = self._usable_disk_mb()
        return None if usable_mb is None else usable_mb + self._promised_disk_mb()

    def _usable_disk_mb(self) -> int | None:
        try:
            return self.disk.data().usable_bytes // MB if self.disk is not None else None
        except OSError as error:
            log.error("disk_not_read", error=str(error))
            return None

    def _promised_disk_mb(self) -> int:
        promised = [*self._held.values(), *self._lent.values()]
        return sum(each.disk_mb or 0 for each in promised) + sum(self._outputs_mb.values())

    def watch(self) -> asyncio.Event:
        """Return an event that is set whenever what is free has changed. The caller alone clears it."""
        self._watches.append(asyncio.Event())
        return self._watches[-1]

    def has_room(self, resources: Resources) -> bool:
        """Return whether a new job or sandbox with these resources fits now."""
        vcpus, memory_mb = self.free()
        disk_mb = self.free_disk_mb()
        fits = resources.vcpus <= vcpus and resources.memory_mb <= memory_mb
        return fits and disk_mb is not None and (resources.disk_mb or 0) <= disk_mb

    def hold(self, job_id: str, resources: Resources, output_mb: int = 0) -> None:
        self._held[job_id] = resources
        self._outputs_mb[job_id] = output_mb
        self._note_changed()

    def _note_changed(self) -> None:
        for event in self._watches:
            event.set()

    def release(self, job_id: str) -> None:
        self._held.pop(job_id, None)
        self._outputs_mb.pop(job_id, None)
        self._admit()

    async def acquire(self, key: str, resources: Resources, cancel: asyncio.Event) -> bool:
        """Hold these resources as soon as there is room for them; return False when `cancel` is set first.

        A request that is larger than the whole node is admitted when nothing else is held.
        """
        waiting = _Waiting(key, resources)
        self._waiting.append(waiting)
        self._admit()
        admitted, cancelled = asyncio.create_task(waiting.admitted.wait()), asyncio.create_task(cancel.wait())
        try:
            if not waiting.admitted.is_set():
                await asyncio.wait({admitted, cancelled}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if waiting.admitted.is_set():
                self.release(key)
            raise
        finally:
            if not waiting.admitted.is_set():
                self._waiting.remove(waiting)
                self._admit()
            # Nothing is awaited from here on: a cancelled caller would keep resources that are never released.
            for task in (admitted, cancelled):
                task.cancel()
        return waiting.admitted.is_set()

    def _admit(self) -> None:
        """Admit waiting requests in turn, as far as there is room."""
        self._note_changed()
        while self._waiting:
            first = self._waiting[0]
            vcpus, memory_mb = self._left([*self._held.values()])
            fits = first.resources.vcpus <= vcpus and first.resources.memory_mb <= memory_mb
            if self._held and not fits:
                return
            self._waiting.popleft()
            self._held[first.key] = first.resources
            first.admitted.set()

    @asynccontextmanager
    async def lent(self, key: str, cancel: asyncio.Event) -> AsyncIterator[None]:
        """Give up what is held under the key for the block, which uses no machine, and take it back afterwards."""
        resources, output_mb = self._held.get(key), self._outputs_mb.get(key, 0)
        if resources is None:
            yield
            return
        self._lent[key] = resources
        self.release(key)
        self._outputs_mb[key] = output_mb
        try:
            yield
            await self.acquire(key, resources, cancel)
        finally:
            del self._lent[key]

    @asynccontextmanager
    async def held(self, key: str, resources: Resources, cancel: asyncio.Event) -> AsyncIterator[bool]:
        """Hold these resources for the block once there is room; yield False when `cancel` was set first."""
        admitted = await self.acquire(key, resources, cancel)
        try:
            yield admitted
        finally:
            if admitted:
                self.release(key)

    def spare_mb(self) -> float:
        """Return the memory that jobs leave now, in MiB: waiting clones may use it until a job needs it."""
        return max(0.0, self.memory_mb - max(_promised_mb([*self._held.values()]) / self.overcommit, self.used_mb))

    def has_spare_processor(self, used: int) -> bool:
        """Return whether jobs leave a processor beside `used` ones: none holds it, or its holder leaves it idle."""
        processors = os.cpu_count() or 1
        if used + sum(held.vcpus for held in self._held.values()) < processors:
            return True
        return used < processors and self.idle_processors.take()

    @property
    def jobs(self) -> int:
        return len(self._held)


def _promised_mb(held: list[Resources]) -> int:
    return sum(each.memory_mb + MACHINE_OVERHEAD_MB for each in held)
