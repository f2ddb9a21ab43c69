"""Gives machines their network slots: the owner of the slots makes one for each machine, before the machine exists.

The agent configures the network as soon as it listens, so a machine in the pool has its network up already. A slot is
closed until its owner opens it; nothing here decides what a machine may reach.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

from belljar.node.guest.connection import AgentConnection
from belljar.node.machines.protocol import MachineSpec, NetworkSlot

#: Makes a slot for one machine, for as long as the block lasts; the machine must have ended by then.
SlotFactory = Callable[[], AbstractAsyncContextManager[NetworkSlot]]


async def with_network_slot(spec: MachineSpec, slot_factory: SlotFactory | None, stack: AsyncExitStack) -> MachineSpec:
    """Return the spec with a slot if its shape has a network; closing `stack` releases it. Raises as the factory does.

    A spec that has a slot keeps it.
    """
    if not spec.shape.network or spec.slot is not None:
        return spec
    if slot_factory is None:
        raise ValueError("no network slot factory given, but the machine's shape has a network")
    return replace(spec, slot=await stack.enter_async_context(slot_factory()))


async def configure_network(connection: AgentConnection, slot: NetworkSlot | None) -> None:
    """Have the agent configure the machine's network device for its slot, if it has one. Raises MachineDied."""
    if slot is None:
        return
    nameservers = [IPv4Address(each) for each in slot.nameservers]
    await connection.set_network(IPv4Interface(slot.guest_address), IPv4Address(slot.gateway), nameservers, slot.mtu)
