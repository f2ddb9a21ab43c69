"""Figures of a benchmark: medians and tails with their units, and the host that they were measured on."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belljar.node.machines.protocol import Hypervisor
from belljar.node.worker.capacity import host_memory_mb


@dataclass(frozen=True, slots=True)
class Figure:
    """The median and the tail of one measurement, in its unit."""

    name: str
    unit: str
    p50: float
    p90: float
    p99: float
    samples: int


def figure(name: str, unit: str, values: Sequence[float]) -> Figure:
    """Summarise samples; there must be at least one."""
    ordered = sorted(values)

    def quantile(part: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 2)

    return Figure(name, unit, round(statistics.median(ordered), 2), quantile(0.9), quantile(0.99), len(ordered))


def machine_facts(hypervisor: Hypervisor) -> dict[str, Any]:
    """Describe the host that figures are measured on."""
    return {
        "cpus": os.cpu_count(),
        "cpu": _cpu_name(),
        "memory_mb": host_memory_mb(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "hypervisor": f"{hypervisor.name} {hypervisor.version}",
        "accelerator": hypervisor.accelerator,
        "load": os.getloadavg()[0],
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
