"""Machines that die while they boot: one without a clock is replaced, any other is an error."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from belljar.model.errors import MachineDied, MachineTimeout
from belljar.node.machines.boot import NoClock
from belljar.node.machines.protocol import Machine
from belljar.node.machines.provision.cold_boot import boot_machine
from support.agent_process import ProcessHypervisor, ProcessMachine


class Boots:
    """Machines that are processes of a shell, each with the given console."""

    def __init__(self, *consoles: bytes, ends: bool = True) -> None:
        self.left = list(consoles)
        self.ends = ends
        self.ended = 0

    @asynccontextmanager
    async def start(self) -> AsyncIterator[Machine]:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                "true" if self.ends else "cat", stdin=asyncio.subprocess.PIPE
            )
            reader, writer = await asyncio.open_connection(sock=ours)
            if not self.ends:
                theirs = theirs.dup()
        machine = ProcessMachine(process, reader, writer, ProcessHypervisor(Path("none")))
        machine.console.add(self.left.pop(0))
        try:
            yield machine
        finally:
            writer.close()
            theirs.close()
            await machine.kill()
            self.ended += 1


async def test_a_machine_without_a_clock_is_replaced_twice_at_most() -> None:
    boots = Boots(*[b"belljar-agent: no clock\n"] * 5)
    with pytest.raises(NoClock):
        async with AsyncExitStack() as stack:
            await boot_machine(boots.start, 10, stack)
    assert (len(boots.left), boots.ended) == (2, 3)


async def test_any_other_death_is_raised_at_once() -> None:
    boots = Boots(b"Kernel panic\n", b"")
    with pytest.raises(MachineDied, match="process ended") as caught:
        async with AsyncExitStack() as stack:
            await boot_machine(boots.start, 10, stack)
    assert not isinstance(caught.value, NoClock)
    assert (len(boots.left), boots.ended) == (1, 1)


async def test_a_silent_machine_times_out() -> None:
    boots = Boots(b"", ends=False)
    with pytest.raises(MachineTimeout):
        async with AsyncExitStack() as stack:
            await boot_machine(boots.start, 0.2, stack)
    assert boots.ended == 1
