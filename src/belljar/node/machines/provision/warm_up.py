"""Prepares machines before any job is known: what runs in a snapshot source, and in its clones before they wait."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from pathlib import Path

from belljar.images.prefork_programs import has_memory_for
from belljar.model.errors import MachineError, MachineTimeout
from belljar.node.guest.command import Command, CommandFailed
from belljar.node.guest.connection import AgentConnection
from belljar.node.guest.wire import Stream
from belljar.node.machines.boot import open_connection
from belljar.node.machines.clone_failure import clone_deaths
from belljar.node.machines.deadline_uses import noted
from belljar.node.machines.deadlines import deadline_factor
from belljar.node.machines.protocol import Machine, SnapshotSource
from belljar.node.machines.racing import run_unless_dead

#: Output limit of a warm-up command; ours print a line.
_MAX_OUTPUT_BYTES = 4096
_WARM_UP_SECONDS = 60.0
#: A clone answers within a tenth of a second; one that needs longer than this is unusable.
_RESUME_SECONDS = 10.0
#: Longer than any snapshot is kept.
_CLOCK_AHEAD_SECONDS = 10 * 365 * 86400


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmUp:
    """The commands that run in a snapshot source and in its clones before any job is known."""

    #: Filesystem image with the programs of the commands.
    disk: Path
    #: Run once in the snapshot source, so that the guest has read their files into its memory.
    preload_commands: tuple[Command, ...] = ()
    #: Processes that wait in the snapshot, such as prefork programs. Each runs twice: for a warm-up and for a job.
    waiting_commands: tuple[Command, ...] = ()
    #: Run in a clone before it waits for a job, so that the hypervisor has translated the guest's code.
    warm_up_commands: tuple[Command, ...] = ()
    #: The same for a clone that a sandbox may take: its commands are started, not forked from a prefork program.
    session_commands: tuple[Command, ...] = ()

    def for_sandbox(self) -> WarmUp:
        """Return the same with what a sandbox's clone needs besides. The snapshot and its pool are the same."""
        return replace(self, warm_up_commands=(*self.warm_up_commands, *self.session_commands))

    def within(self, memory_mb: int) -> WarmUp:
        """Return the same without processes that do not fit in a machine with that memory."""
        fitting = tuple(command for command in self.waiting_commands if has_memory_for(command.prefork, memory_mb))
        return replace(self, waiting_commands=fitting)

    def fingerprint(self) -> list[object]:
        """Return everything that decides the snapshot's contents, as JSON values."""
        commands = (*self.preload_commands, None, *self.waiting_commands)
        return [self.disk.name, *([*each.argv, each.env, each.prefork] if each else None for each in commands)]


class _DiscardOutput:
    """Discards the output of a warm-up command, up to a limit."""

    def __init__(self) -> None:
        self._bytes = 0

    async def write(self, stream: Stream, data: bytes) -> None:
        self._bytes += len(data)

    def full(self, stream: Stream) -> bool:
        return self._bytes > _MAX_OUTPUT_BYTES


async def warm_up(connection: AgentConnection, command: Command) -> None:
    """Run a warm-up command. Raises MachineError when it cannot start or does not succeed."""
    seconds = _WARM_UP_SECONDS * connection.timeout_factor
    try:
        with noted("warm_up", seconds):
            async with asyncio.timeout(seconds):
                exited = await connection.warm_up(command, _DiscardOutput())
    except TimeoutError:
        raise MachineTimeout(f"the warm-up command {command.argv[0]} timed out after {seconds:g} s") from None
    except CommandFailed as failed:
        raise MachineError(f"the warm-up command {command.argv[0]} did not start: {failed}") from None
    if exited.exit_code != 0:
        raise MachineError(f"the warm-up command {command.argv[0]} ended with {exited.exit_code or exited.signal}")


async def prepare_snapshot_source(source: SnapshotSource, warm_up_steps: WarmUp, boot_timeout_seconds: float) -> None:
    """Do everything between the boot of a snapshot source and its freezing. Raises MachineError."""
    connection = await open_connection(source, boot_timeout_seconds)
    await source.attach_script(warm_up_steps.disk)
    for command in warm_up_steps.preload_commands:
        await warm_up(connection, command)
    # A waiting process may have used OpenSSL's generators already. They remember the time of their seed, and seed
    # themselves again when that is in the future (prov_drbg_generate in its drbg.c), as it will be in every clone.
    await connection.set_clock(ahead_seconds=_CLOCK_AHEAD_SECONDS)
    for command in warm_up_steps.waiting_commands:
        for _ in range(2):
            await _start_waiting(connection, command)
    await connection.set_clock()
    with noted("suspend", connection.reply_seconds):
        await connection.suspend()


async def _start_waiting(connection: AgentConnection, command: Command) -> None:
    try:
        with noted("prepare", connection.reply_seconds):
            await connection.prepare(command)
    except CommandFailed as failed:
        name = command.prefork or "the agent's own"
        raise MachineError(f"the process template ({name}) did not become ready: {failed}") from None


async def resume(clone: Machine, boot_timeout_seconds: float, *, silence_seconds: int) -> AgentConnection:
    """Give a clone, or a machine that was thawed, its identity, and return the connection to its agent.

    Raises BadSnapshot, HostError when this host is short of something, MachineError when the reason is unknown.
    """
    started, factor = time.monotonic(), deadline_factor(boot_timeout_seconds)
    connection = AgentConnection(clone.reader, clone.writer, timeout_factor=factor)
    seconds = _RESUME_SECONDS * factor
    with clone_deaths(), noted("resume", seconds):
        await run_unless_dead(clone, connection.resume(seconds, silence_seconds=silence_seconds))
    clone.phases["resume"] = round((time.monotonic() - started) * 1000, 3)
    return connection
