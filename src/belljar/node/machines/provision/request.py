"""A request for a machine, and the machine that fulfils it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from belljar.node.guest.connection import AgentConnection
from belljar.node.machines.protocol import Hypervisor, Machine, MachineSpec, NetworkSlot
from belljar.node.machines.provision.network_slot import SlotFactory
from belljar.node.machines.provision.warm_up import WarmUp

Source = Literal["pool", "snapshot", "boot"]


@dataclass(frozen=True, slots=True)
class MachineRequest:
    """A machine that a job needs, and everything needed to make more of its kind for the pool."""

    hypervisor: Hypervisor
    spec: MachineSpec
    warm_up_steps: WarmUp
    boot_timeout_seconds: float
    #: Makes a slot for each machine of this request, if its shape has a network.
    slot_factory: SlotFactory | None = None


@dataclass(frozen=True, slots=True)
class ProvisionedMachine:
    """A machine for one job, whose agent is ready for commands."""

    machine: Machine
    connection: AgentConnection
    source: Source
    #: Milliseconds of each step of the provisioning, in order.
    phases: dict[str, float]
    #: Its network slot, still closed; None without a network.
    slot: NetworkSlot | None = None
