"""A machine that is only the agent's process: attempts end to end without booting anything."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from belljar.node.frozen.parts import BytesPart
from belljar.node.frozen.protocol import FrozenParts
from belljar.node.guest.wire import Stream
from belljar.node.machines.protocol import Console, Death, DeathCause, Machine, MachineSpec
from belljar.node.machines.provision.cold_boot import boot_machine
from belljar.node.machines.provision.request import ProvisionedMachine, Source
from belljar.node.worker.attempt_end import AttemptEnd
from belljar.node.worker.observer import AttemptObserver


@dataclass(eq=False)
class ProcessMachine:
    """The protocol's Machine over one agent process."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    hypervisor: ProcessHypervisor
    id: str = "process"
    #: Whether the process is kept for `restored`, as a frozen machine's memory is.
    is_kept: bool = False
    console: Console = field(default_factory=lambda: Console(1000))
    phases: dict[str, float] = field(default_factory=dict)

    def pids(self) -> list[int]:
        return [self.process.pid]

    async def death(self) -> Death:
        await self.process.wait()
        return Death(cause=DeathCause.GUEST_EXIT, message="the agent's process ended")

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[list[BytesPart]]:
        """Its memory is the number under which the hypervisor keeps the process."""
        self.is_kept = True
        self.hypervisor.kept[self.process.pid] = self
        yield [BytesPart("memory", b"%d" % self.process.pid)]

    async def thaw(self) -> None:
        self.is_kept = False
        del self.hypervisor.kept[self.process.pid]

    async def kill(self) -> None:
        if self.is_kept:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


@dataclass
class ProcessHypervisor:
    """Makes agent processes; counts what it made and what is left."""

    agent: Path
    name: str = "process"
    accelerator: str = "none"
    version: str = "0"
    alive: int = 0
    made: list[ProcessMachine] = field(default_factory=list)
    identity: str = "process 0"
    #: Frozen machines by their process.
    kept: dict[int, ProcessMachine] = field(default_factory=dict)

    @asynccontextmanager
    async def ready(self, spec: MachineSpec) -> AsyncIterator[ProvisionedMachine]:
        """As a supply without snapshots gives it."""
        async with AsyncExitStack() as stack:
            yield await boot_machine(lambda: self.machine(spec), 10, stack)

    @asynccontextmanager
    async def machine(self, spec: MachineSpec) -> AsyncIterator[Machine]:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                command = [*_jail(), str(self.agent), "--fd", str(theirs.fileno()), "/nonexistent"]
                process = await asyncio.create_subprocess_exec(*command, pass_fds=[theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        machine = ProcessMachine(process, reader, writer, self)
        machine.console.add(b"booted\n")
        self.made.append(machine)
        self.alive += 1
        async with self._running(machine):
            yield machine

    @asynccontextmanager
    async def restored(self, spec: MachineSpec, parts: FrozenParts) -> AsyncIterator[Machine]:
        descriptor = os.memfd_create("memory")
        try:
            parts.copy("memory", descriptor)
            kept = self.kept.pop(int(os.pread(descriptor, 100, 0)))
        finally:
            os.close(descriptor)
        machine = ProcessMachine(kept.process, kept.reader, kept.writer, self)
        self.alive += 1
        async with self._running(machine):
            yield machine

    @asynccontextmanager
    async def _running(self, machine: ProcessMachine) -> AsyncIterator[None]:
        try:
            yield
        finally:
            if not machine.is_kept:
                machine.writer.close()
            await machine.kill()
            self.alive -= 1

    async def end_kept(self) -> None:
        """End the processes that no sandbox wants back."""
        for machine in self.kept.values():
            machine.is_kept = False
            machine.writer.close()
            await machine.kill()
        self.kept.clear()


def _jail() -> list[str]:
    """Before the agent's command: what makes its processes die with it, and it with this process, as a machine does."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        return []
    # The shell is the first process of the namespace: with it all others end.
    inside = ["sh", "-c", '"$@"; exit $?', "sh"]
    return ["setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--pid", "--kill-child=KILL", *inside]


@dataclass
class Listener(AttemptObserver):
    """An observer that keeps what it observes."""

    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    files: dict[str, bytearray] = field(default_factory=dict)
    started_count: int = 0
    console_text: bytes = b""
    source: str | None = None
    over: bool = False

    def __post_init__(self) -> None:
        self.output = self
        self.artifacts = _Files(self.files)

    async def write(self, stream: Stream, data: bytes) -> None:
        (self.stdout if stream is Stream.STDOUT else self.stderr).extend(data)

    def full(self, stream: Stream) -> bool:
        return False

    def on_machine(self, source: Source) -> None:
        self.source = source

    def on_started(self) -> None:
        self.started_count += 1

    def on_script_ended(self, end: AttemptEnd) -> None:
        self.over = end.is_over

    def on_console(self, data: bytes, dropped_bytes: int) -> None:
        self.console_text = data


@dataclass
class _Files:
    files: dict[str, bytearray]
    current: str = ""

    async def begin(self, path: str, size: int) -> None:
        self.current = path
        self.files[path] = bytearray()

    async def write(self, data: bytes) -> None:
        self.files[self.current] += data

    async def end(self) -> None:
        pass
