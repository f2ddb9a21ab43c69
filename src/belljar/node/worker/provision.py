"""The machine provisioner of the settings: with snapshots, with a pool, or with neither."""

from __future__ import annotations

from belljar.node.machines.provision.pool import WarmPool
from belljar.node.machines.provision.provisioner import MachineProvisioner
from belljar.node.machines.provision.snapshots import Snapshots
from belljar.node.machines.provision.waiting_processes import WaitingProcesses
from belljar.node.worker.capacity import Capacity
from belljar.settings import Settings


def open_provisioner(settings: Settings, capacity: Capacity) -> MachineProvisioner:
    """Return the provisioner of the settings. The pool may use memory that the capacity has to spare."""
    if settings.snapshots == "off":
        return MachineProvisioner(None)
    waiting = _waiting_processes(settings, capacity)
    if settings.pool == "off":
        return MachineProvisioner(Snapshots(settings), waiting=waiting)
    memory_mb = capacity.memory_mb // 4 if settings.pool_memory_mb is None else settings.pool_memory_mb
    pool = WarmPool(
        fixed_size=settings.pool_size if settings.pool == "fixed" else None,
        max_size=settings.pool_size,
        memory_mb=memory_mb,
        has_spare_processor=capacity.has_spare_processor,
    )
    return MachineProvisioner(Snapshots(settings), pool, waiting)


def _waiting_processes(settings: Settings, capacity: Capacity) -> WaitingProcesses | None:
    """Return the processes that wait, which leave most of the machines' user ids to jobs; None for none."""
    max_size = min(settings.waiting_processes, settings.jail_uid_count // 4)
    if max_size == 0:
        return None
    return WaitingProcesses(max_size=max_size, has_spare_processor=capacity.has_spare_processor)
