"""How machines come by their networks: whoever owns the slots gives one out for each machine, before it is there.

A machine is told of its network as soon as its agent listens, so that one that waits in the pool has it up already.
What it may reach is nothing to it, and nothing that is decided here: a slot is closed until its owner opens it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

from belljar.node.guest.connection import AgentConnection
from belljar.node.machines.protocol import MachineSpec, NetworkSlot

#: Gives a slot of its own to a machine, for as long as the block lasts; the machine must have ended by then.
SlotFactory = Callable[[], AbstractAsyncContextManager[NetworkSlot]]


async def with_network_slot(spec: MachineSpec, slot_factory: SlotFactory | None, stack: AsyncExitStack) -> MachineSpec:
    """The spec with a slot if its shape has a network, given back when `held` is closed. Raises what `plug` does.

    A spec that has a slot keeps it.
    """
    if not spec.shape.network or spec.slot is not None:
        return spec
    if slot_factory is None:
        raise ValueError("a machine whose shape has a network needs somebody who gives it a slot")
    return replace(spec, slot=await stack.enter_async_context(slot_factory()))


async def configure_network(connection: AgentConnection, slot: NetworkSlot | None) -> None:
    """Have the agent bring the machine's device up. Raises MachineDied."""
    if slot is None:
        return
    nameservers = [IPv4Address(each) for each in slot.nameservers]
    await connection.set_network(IPv4Interface(slot.guest_address), IPv4Address(slot.gateway), nameservers, slot.mtu)
