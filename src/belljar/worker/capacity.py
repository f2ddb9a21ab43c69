"""What this node has for jobs: vCPUs and memory, counted as they are promised, and watched as they are used."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from belljar.jobs.model import Resources
from belljar.jobs.resolve import Largest
from belljar.settings import Settings

#: What a machine's hypervisor takes on top of the guest's memory (QEMU with its translation cache).
MACHINE_OVERHEAD_MB = 96


def host_memory_mb() -> int:
    """All memory of this host, in MiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1024 * 1024)


@dataclass(slots=True, eq=False)
class _Waiting:
    """One that waits for room; `admitted` is set when it has it."""

    key: str
    resources: Resources
    admitted: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class Capacity:
    """vCPUs and MiB that jobs may hold together, and what is held now.

    Who waits for room holds none, and is served in turn before any new job: so nobody waits for ever.
    """

    vcpus: int
    memory_mb: int
    #: How many times the memory may be promised. Above 1, what machines really use keeps the node from the edge.
    overcommit: float = 1.0
    #: What the machines of jobs really take, MiB, as it was last measured.
    used_mb: float = 0.0
    _held: dict[str, Resources] = field(default_factory=dict)
    #: Held no more for now, by jobs that will want it back: no new job is admitted in its place.
    _lent: dict[str, Resources] = field(default_factory=dict)
    _waiting: deque[_Waiting] = field(default_factory=deque)

    @classmethod
    def of_host(cls, settings: Settings) -> Capacity:
        """From the settings, else twice the cores (jobs wait more than they compute) and 80 % of the memory."""
        return cls(
            vcpus=settings.worker_vcpus or 2 * (os.cpu_count() or 1),
            memory_mb=settings.worker_memory_mb or host_memory_mb() * 8 // 10,
            overcommit=settings.memory_overcommit,
        )

    def largest(self) -> Largest:
        """The largest job that could ever run here."""
        return Largest(vcpus=self.vcpus, memory_mb=max(0, self.memory_mb - MACHINE_OVERHEAD_MB))

    def free(self) -> tuple[int, int]:
        """vCPUs and memory of the largest new job that fits now; zeros when none does, or others wait for room."""
        return (0, 0) if self._waiting else self._left([*self._held.values(), *self._lent.values()])

    def _left(self, held: list[Resources]) -> tuple[int, int]:
        promised_mb = _promised_mb(held)
        memory_mb = self.memory_mb * self.overcommit - promised_mb
        if promised_mb > self.memory_mb:
            memory_mb = min(memory_mb, self.memory_mb - self.used_mb)
        vcpus = self.vcpus - sum(each.vcpus for each in held)
        return max(0, vcpus), max(0, min(int(memory_mb), self.memory_mb) - MACHINE_OVERHEAD_MB)

    def hold(self, job_id: str, resources: Resources) -> None:
        self._held[job_id] = resources

    def release(self, job_id: str) -> None:
        self._held.pop(job_id, None)
        self._admit()

    async def acquire(self, key: str, resources: Resources, cancel: asyncio.Event) -> bool:
        """Hold these resources as soon as there is room for them; False when `cancel` is set first.

        What is larger than all that there is gets it when nothing else is held.
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
            for task in (admitted, cancelled):
                task.cancel()
            await asyncio.gather(admitted, cancelled, return_exceptions=True)
        return waiting.admitted.is_set()

    def _admit(self) -> None:
        """Give room to those who wait, in turn, as far as it goes."""
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
        """Give up what is held under the key for the block, which has no machine under it, and have it back after."""
        resources = self._held.get(key)
        if resources is None:
            yield
            return
        self._lent[key] = resources
        self.release(key)
        try:
            yield
            await self.acquire(key, resources, cancel)
        finally:
            del self._lent[key]

    @asynccontextmanager
    async def held(self, key: str, resources: Resources, cancel: asyncio.Event) -> AsyncIterator[bool]:
        """Hold these resources for the block, whenever there is room; False when `cancel` was set first."""
        admitted = await self.acquire(key, resources, cancel)
        try:
            yield admitted
        finally:
            if admitted:
                self.release(key)

    def spare_mb(self) -> float:
        """Memory that jobs leave now, MiB: waiting clones may have it until a job wants it."""
        return max(0.0, self.memory_mb - max(_promised_mb([*self._held.values()]) / self.overcommit, self.used_mb))

    def is_busy(self) -> bool:
        """Whether jobs want every processor of this host."""
        return sum(held.vcpus for held in self._held.values()) >= (os.cpu_count() or 1)

    @property
    def jobs(self) -> int:
        return len(self._held)


def _promised_mb(held: list[Resources]) -> int:
    return sum(each.memory_mb + MACHINE_OVERHEAD_MB for each in held)
