"""Opens the connection to the agent of a machine that boots, and recognises a machine whose kernel found no clock."""

from __future__ import annotations

from belljar.model.errors import MachineDied
from belljar.node.guest.connection import AgentConnection
from belljar.node.machines.deadline_uses import noted
from belljar.node.machines.deadlines import deadline_factor
from belljar.node.machines.protocol import Machine
from belljar.node.machines.racing import run_unless_dead

#: The agent prints this before it ends a machine without a timer (check_clock in guest/agent/boot.c).
_NO_CLOCK = b"belljar-agent: no clock"


class NoClock(MachineDied):
    """The guest's kernel found no timer that it trusts. Another boot will find one."""


async def open_connection(machine: Machine, timeout_seconds: float) -> AgentConnection:
    """Wait for the agent and return the connection to it.

    Raises NoClock, MachineDied with the reason of the death, MachineTimeout, GuestProtocolError.
    """
    connection = AgentConnection(machine.reader, machine.writer, timeout_factor=deadline_factor(timeout_seconds))
    try:
        with noted("boot", timeout_seconds):
            await run_unless_dead(machine, connection.open(timeout_seconds))
    except MachineDied:
        if _NO_CLOCK in machine.console.data:
            raise NoClock("the guest's kernel found no reliable timer; this happens on a busy host") from None
        raise
    return connection
