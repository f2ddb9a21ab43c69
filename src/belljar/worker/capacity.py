"""What this node has for jobs: vCPUs, memory and disk, counted as they are promised, and watched as they are used."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

import structlog

from belljar.disk_space import MB, DiskSpace
from belljar.jobs.model import Job, Resources
from belljar.jobs.resolve import Largest
from belljar.settings import Settings

log = structlog.get_logger()

#: What a machine's hypervisor takes on top of the guest's memory (QEMU with its translation cache).
MACHINE_OVERHEAD_MB = 96
#: More than any job may ask for.
_NO_LIMIT_MB = 1 << 30


def host_memory_mb() -> int:
    """All memory of this host, in MiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1024 * 1024)


def output_mb(job: Job, settings: Settings) -> int:
    """Disk that a job's log and artifacts may take at most, in MiB."""
    artifacts_mb = settings.max_artifacts_mb if job.artifacts else 0
    return math.ceil(2 * settings.max_output_mb + artifacts_mb)


@dataclass(slots=True)
class Capacity:
    """vCPUs and MiB that jobs may hold together, and what is held now."""

    vcpus: int
    memory_mb: int
    #: How many times the memory may be promised. Above 1, what machines really use keeps the node from the edge.
    overcommit: float = 1.0
    #: What the machines of jobs really take, MiB, as it was last measured.
    used_mb: float = 0.0
    #: What watches the disk; None: disk is not counted.
    disk: DiskSpace | None = None
    _held: dict[str, Resources] = field(default_factory=dict)
    #: MiB of disk that each of those may still fill besides its scratch disk.
    _outputs_mb: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of_host(cls, settings: Settings) -> Capacity:
        """From the settings, else twice the cores (jobs wait more than they compute) and 80 % of the memory."""
        return cls(
            vcpus=settings.worker_vcpus or 2 * (os.cpu_count() or 1),
            memory_mb=settings.worker_memory_mb or host_memory_mb() * 8 // 10,
            overcommit=settings.memory_overcommit,
            disk=DiskSpace(settings),
        )

    def largest(self) -> Largest:
        """The largest job that could ever run here."""
        memory_mb = max(0, self.memory_mb - MACHINE_OVERHEAD_MB)
        return Largest(vcpus=self.vcpus, memory_mb=memory_mb, disk_mb=self._largest_disk_mb())

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

    def free_disk_mb(self) -> int | None:
        """Scratch disk of the largest job that fits now, in MiB; None when no job fits, not even one without any.

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
        """The largest scratch disk that there could be room for if nothing ran here; None when that is not known.

        Each scratch disk that runs is taken for full: so nothing is refused that could fit.
        """
        usable_mb = self._usable_disk_mb()
        return None if usable_mb is None else usable_mb + self._promised_disk_mb()

    def _usable_disk_mb(self) -> int | None:
        try:
            return self.disk.data().usable_bytes // MB if self.disk is not None else None
        except OSError as error:
            log.error("disk_not_readable", error=str(error))
            return None

    def _promised_disk_mb(self) -> int:
        return sum(held.disk_mb or 0 for held in self._held.values()) + sum(self._outputs_mb.values())

    def hold(self, job_id: str, resources: Resources, output_mb: int = 0) -> None:
        self._held[job_id] = resources
        self._outputs_mb[job_id] = output_mb

    def release(self, job_id: str) -> None:
        self._held.pop(job_id, None)
        self._outputs_mb.pop(job_id, None)

    def spare_mb(self) -> float:
        """Memory that jobs leave now, MiB: waiting clones may have it until a job wants it."""
        return max(0.0, self.memory_mb - max(self._promised_mb() / self.overcommit, self.used_mb))

    def is_busy(self) -> bool:
        """Whether jobs want every processor of this host."""
        return sum(held.vcpus for held in self._held.values()) >= (os.cpu_count() or 1)

    @property
    def jobs(self) -> int:
        return len(self._held)
