"""The machine provisioner of the settings: with snapshots, with a pool, or with neither."""

from __future__ import annotations

from belljar.node.machines.provision.pool import WarmPool
from belljar.node.machines.provision.provisioner import MachineProvisioner
from belljar.node.machines.provision.snapshots import Snapshots
from belljar.node.worker.capacity import Capacity
from belljar.settings import Settings


def open_provisioner(settings: Settings, capacity: Capacity) -> MachineProvisioner:
    """Return the provisioner of the settings. The pool may use memory that the capacity has to spare."""
    if settings.snapshots == "off":
        return MachineProvisioner(None)
    if settings.pool == "off":
        return MachineProvisioner(Snapshots(settings))
    memory_mb = capacity.memory_mb // 4 if settings.pool_memory_mb is None else settings.pool_memory_mb
    pool = WarmPool(
        fixed_size=settings.pool_size if settings.pool == "fixed" else None,
        max_size=settings.pool_size,
        memory_mb=memory_mb,
        has_spare_processor=capacity.has_spare_processor,
    )
    return MachineProvisioner(Snapshots(settings), pool)
