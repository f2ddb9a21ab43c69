"""How a machine is got ready to be frozen, and how its clones are exercised: with nothing of any job's."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from pathlib import Path

from belljar.images.prefork_programs import has_room
from belljar.model.errors import HostError, MachineError, MachineTimeout
from belljar.node.guest.command import Command, CommandFailed
from belljar.node.guest.connection import AgentConnection
from belljar.node.guest.wire import Stream
from belljar.node.machines.boot import open_connection
from belljar.node.machines.deadlines import patience
from belljar.node.machines.protocol import BadSnapshot, Clone, DeathCause, Template
from belljar.node.machines.racing import MachineDead, run_unless_dead

#: Most bytes that a rehearsal may print; it is our own, and prints a line.
_MAX_OUTPUT = 4096
_REHEARSAL_SECONDS = 60.0
#: A clone answers within a tenth of a second; one that does not within this is no use.
_WAKE_SECONDS = 10.0
#: Longer than any snapshot is kept.
_AHEAD_SECONDS = 10 * 365 * 86400


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmUp:
    """What is run in a template and its clones before any job is known."""

    #: Filesystem image with what the rehearsals run.
    disk: Path
    #: Each run once in the template, so that what the guest reads from its disk lies in its memory.
    warm: tuple[Command, ...] = ()
    #: Sets of processes that wait, prefork programs among them; each is made twice: one for a rehearsal, one for a job.
    waiting: tuple[Command, ...] = ()
    #: Run in a clone before it is given to a job: afterwards the hypervisor knows the guest's code.
    rehearsals: tuple[Command, ...] = ()

    def within(self, memory_mb: int) -> WarmUp:
        """Less the processes that have no room to wait in a machine of so much memory."""
        return replace(self, waiting=tuple(each for each in self.waiting if has_room(each.prefork, memory_mb)))

    def words(self) -> list[object]:
        """All that decides what the template becomes, as JSON values."""
        commands = (*self.warm, None, *self.waiting)
        return [self.disk.name, *([*each.argv, each.env, each.prefork] if each else None for each in commands)]


class _Dropped:
    """Takes what a rehearsal prints, a little of it."""

    def __init__(self) -> None:
        self.size = 0

    async def write(self, stream: Stream, data: bytes) -> None:
        self.size += len(data)

    def full(self, stream: Stream) -> bool:
        return self.size > _MAX_OUTPUT


async def warm_up(connection: AgentConnection, command: Command) -> None:
    """Run a command that must succeed. Raises MachineError when it does not, or cannot be started."""
    seconds = _REHEARSAL_SECONDS * connection.patience
    try:
        async with asyncio.timeout(seconds):
            exited = await connection.warm_up(command, _Dropped())
    except TimeoutError:
        raise MachineTimeout(f"the rehearsal {command.argv[0]} did not end within {seconds:g} s") from None
    except CommandFailed as failed:
        raise MachineError(f"the rehearsal {command.argv[0]} did not start: {failed}") from None
    if exited.exit_code != 0:
        raise MachineError(f"the rehearsal {command.argv[0]} ended with {exited.exit_code or exited.signal}")


async def prepare_template(template: Template, warm_up_steps: WarmUp, boot_timeout_seconds: float) -> None:
    """Everything between the boot of a template and its freezing. Raises MachineError."""
    connection = await open_connection(template, boot_timeout_seconds)
    await template.insert(warm_up_steps.disk)
    for command in warm_up_steps.warm:
        await warm_up(connection, command)
    # OpenSSL's generators, which a waiting process may have used already, remember when they were seeded, and seed
    # themselves again where that lies in the future (prov_drbg_generate in its drbg.c). In a clone it will.
    await connection.set_clock(ahead_seconds=_AHEAD_SECONDS)
    for command in warm_up_steps.waiting:
        for _ in range(2):
            try:
                await connection.prepare(command)
            except CommandFailed as failed:
                raise MachineError(f"{command.prefork or 'the reaper'} does not wait: {failed}") from None
    await connection.set_clock()
    await connection.suspend()


async def wake(clone: Clone, boot_timeout_seconds: float, *, silence_seconds: int) -> AgentConnection:
    """Return the session with a clone that knows who it is now.

    Raises BadSnapshot, HostError when this host has too little of something, MachineError when it is not clear why.
    """
    started, factor = time.monotonic(), patience(boot_timeout_seconds)
    connection = AgentConnection(clone.reader, clone.writer, patience=factor)
    try:
        await run_unless_dead(clone, connection.resume(_WAKE_SECONDS * factor, silence_seconds=silence_seconds))
    except MachineDead as error:
        if error.death.cause is DeathCause.SNAPSHOT:
            raise BadSnapshot(error.message) from None
        if error.death.cause is DeathCause.HOST:
            raise HostError(f"a machine cannot be cloned: {error.message}; run fewer jobs at once") from None
        raise
    clone.phases["resume"] = round((time.monotonic() - started) * 1000, 3)
    return connection
