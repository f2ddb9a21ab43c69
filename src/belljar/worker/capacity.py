"""What this node has for jobs: vCPUs and memory, counted as they are promised, and watched as they are used."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from belljar.jobs.model import Resources
from belljar.jobs.resolve import Largest
from belljar.settings import Settings

#: What a machine's hypervisor takes on top of the guest's memory (QEMU with its translation cache).
MACHINE_OVERHEAD_MB = 96


def host_memory_mb() -> int:
    """All memory of this host, in MiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1024 * 1024)


@dataclass(slots=True)
class Capacity:
    """vCPUs and MiB that jobs may hold together, and what is held now."""

    vcpus: int
    memory_mb: int
    #: How many times the memory may be promised. Above 1, what machines really use keeps the node from the edge.
    overcommit: float = 1.0
    #: What the machines of jobs really take, MiB, as it was last measured.
    used_mb: float = 0.0
    _held: dict[str, Resources] = field(default_factory=dict)

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
        """vCPUs and memory of the largest job that fits now; zeros when none does."""
        vcpus = self.vcpus - sum(held.vcpus for held in self._held.values())
        promised_mb = self._promised_mb()
        memory_mb = self.memory_mb * self.overcommit - promised_mb
        if promised_mb > self.memory_mb:
            memory_mb = min(memory_mb, self.memory_mb - self.used_mb)
        return max(0, vcpus), max(0, min(int(memory_mb), self.memory_mb) - MACHINE_OVERHEAD_MB)

    def _promised_mb(self) -> int:
        return sum(held.memory_mb + MACHINE_OVERHEAD_MB for held in self._held.values())

    def hold(self, job_id: str, resources: Resources) -> None:
        self._held[job_id] = resources

    def release(self, job_id: str) -> None:
        self._held.pop(job_id, None)

    def spare_mb(self) -> float:
        """Memory that jobs leave now, MiB: waiting clones may have it until a job wants it."""
        return max(0.0, self.memory_mb - max(self._promised_mb() / self.overcommit, self.used_mb))

    def is_busy(self) -> bool:
        """Whether jobs want every processor of this host."""
        return sum(held.vcpus for held in self._held.values()) >= (os.cpu_count() or 1)

    @property
    def jobs(self) -> int:
        return len(self._held)
