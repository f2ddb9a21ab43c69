"""Rounds the sizes of machines up to a few shapes, so that many jobs share a snapshot."""

from __future__ import annotations

from belljar.node.machines.protocol import Shape

#: Powers of two and one step between each two: rounding adds half of the requested memory at most.
_MEMORY_MB = tuple(sorted(step for power in range(6, 31) for step in (1 << power, 3 << (power - 1)) if step >= 64))
_DISK_MB = tuple(1 << power for power in range(6, 31))


def round_up_shape(
    vcpus: int,
    memory_mb: int,
    disk_mb: int | None,
    *,
    network: bool = False,
    disk_mb_per_second: float | None = None,
    disk_iops: int | None = None,
    network_mbit_per_second: float | None = None,
) -> Shape:
    """Return the smallest shape with at least that much memory (MiB) and disk (MiB), and the rest as requested."""
    return Shape(
        vcpus=vcpus,
        memory_mb=next(step for step in _MEMORY_MB if step >= memory_mb),
        disk_mb=None if disk_mb is None else next(step for step in _DISK_MB if step >= disk_mb),
        network=network,
        disk_mb_per_second=disk_mb_per_second,
        disk_iops=disk_iops,
        network_mbit_per_second=network_mbit_per_second if network else None,
    )
