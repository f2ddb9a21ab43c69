"""One Firecracker process as a machine: its streams, its death and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from belljar.model.errors import HostError, MachineDied, MachineTimeout
from belljar.node.frozen.parts import FilePart
from belljar.node.frozen.protocol import PartSource
from belljar.node.machines.deadline_uses import deadline_uses, noted
from belljar.node.machines.disks import ScriptDisk
from belljar.node.machines.firecracker.api import FirecrackerApi
from belljar.node.machines.firecracker.bodies import SnapshotCreate
from belljar.node.machines.firecracker.exit_report import death_from_exit
from belljar.node.machines.firecracker.folder import (
    API,
    FROZEN_MEMORY,
    FROZEN_STATE,
    MEMORY,
    SCRATCH,
    STATE,
    VSOCK,
    Folder,
)
from belljar.node.machines.firecracker.stream import AgentStream, connect_agent, find_listener
from belljar.node.machines.host.cgroup import Group
from belljar.node.machines.host.jail import kill_tree
from belljar.node.machines.host.oom import oom_report
from belljar.node.machines.host.usage import children
from belljar.node.machines.protocol import Console, Death
from belljar.node.machines.racing import MachineDead, run_unless_dead
from belljar.node.machines.stderr_tail import read_tail

_CHUNK = 16 * 1024
_STDERR_BYTES = 8192
_LOG_BYTES = 64 * 1024
#: Console output beyond the kept part is read no faster than this. Firecracker drops output that the pipe cannot take,
#: so neither side spends more on it.
_DROPPED_BYTES_PER_SECOND = 128 * 1024
_REAP_SECONDS = 5.0
_SOCKET_SECONDS = 10.0
_POLL_SECONDS = 0.001
#: A thawed machine's agent listens already; the time is for a host under load.
_THAW_SECONDS = 10.0
_MAX_FILE_BYTES = 1 << 40


@dataclass(frozen=True, kw_only=True, slots=True)
class FirecrackerProcess:
    """A Firecracker that was just spawned."""

    machine_id: str
    process: asyncio.subprocess.Process
    folder: Folder
    group: Group
    #: Descriptor of the pipe that Firecracker and its jailer log to.
    log: int
    console: Console
    phases: dict[str, float]
    #: Factor of the deadlines on this host (deadlines.py).
    deadline_factor: float = 1.0


class FirecrackerMachine:
    """The protocol's Machine. FirecrackerHypervisor makes it, and owns everything around it."""

    def __init__(self, spawned: FirecrackerProcess) -> None:
        self.id = spawned.machine_id
        self.console = spawned.console
        self.phases = spawned.phases
        self._process = spawned.process
        self._folder = spawned.folder
        self._group = spawned.group
        self._log = spawned.log
        self._factor = spawned.deadline_factor
        self._socket_seconds = _SOCKET_SECONDS * self._factor
        self._stream = AgentStream()
        self.reader, self.writer = self._stream.reader, self._stream.writer
        self._stderr = bytearray()
        self._log_text = ""
        self._stderr_task = asyncio.create_task(self._read_stderr())
        self._console_task = asyncio.create_task(self._read_console())
        self._connect_task: asyncio.Task[None] | None = None
        self._death = asyncio.create_task(self._await_death())

    def pids(self) -> list[int]:
        """Implement `Machine.pids`."""
        return [self._process.pid, *children(self._process.pid)] if self._process.returncode is None else []

    def connect_in_background(self) -> None:
        """Connect the streams as soon as the guest's agent listens."""
        self._connect_task = asyncio.create_task(self._connect())

    async def connect(self, timeout_seconds: float) -> None:
        """Wait for the agent to listen, and connect. Raises MachineDead, MachineTimeout."""
        try:
            with noted("connect", timeout_seconds):
                async with asyncio.timeout(timeout_seconds):
                    await run_unless_dead(self, self._connect())
        except TimeoutError:
            raise MachineTimeout(f"the machine's agent did not listen within {timeout_seconds:g} s") from None

    @contextlib.asynccontextmanager
    async def api(self) -> AsyncIterator[FirecrackerApi]:
        """Provide a client of this process as soon as its socket listens.

        Raises MachineDead with the reason when the process ends first, HostError when no socket appears in time.
        """
        started = asyncio.get_running_loop().time()
        deadline = started + self._socket_seconds
        with contextlib.ExitStack() as stack:
            while (path := find_listener(stack, self._folder.descriptor, API)) is None:
                if self._death.done():
                    raise MachineDead(self._death.result())
                if asyncio.get_running_loop().time() > deadline:
                    raise HostError(
                        f"Firecracker opened no API socket within {self._socket_seconds:g} s; is the host overloaded?"
                    )
                await asyncio.sleep(_POLL_SECONDS)
            waited_seconds = asyncio.get_running_loop().time() - started
            deadline_uses.record("api_socket", waited_seconds, self._socket_seconds)
            async with FirecrackerApi(path, timeout_factor=self._factor) as api, self.with_death():
                yield api

    @contextlib.asynccontextmanager
    async def with_death(self) -> AsyncIterator[None]:
        """Add the reason of the process's end to an error of the block: the broken connection does not tell it."""
        try:
            yield
        except MachineDied as error:
            await asyncio.wait({self._death}, timeout=_REAP_SECONDS)
            if self._death.done():
                death = self._death.result()
                raise MachineDead(replace(death, message=f"{error.message}: {death.message}")) from None
            raise

    async def death(self) -> Death:
        """Implement `Machine.death`."""
        return await asyncio.shield(self._death)

    @contextlib.asynccontextmanager
    async def frozen(self) -> AsyncIterator[Collection[PartSource]]:
        """Implement `Machine.frozen`. The files that Firecracker writes are removed at the block's end."""
        with contextlib.ExitStack() as opened:
            opened.callback(self._folder.remove, FROZEN_STATE, FROZEN_MEMORY)
            self._raise_file_limit()
            async with self.api() as api:
                await api.pause()
                await api.create_snapshot(SnapshotCreate(snapshot_path=FROZEN_STATE, mem_file_path=FROZEN_MEMORY))
            names = {STATE: FROZEN_STATE, MEMORY: FROZEN_MEMORY}
            if self._folder.has(SCRATCH):
                names[SCRATCH] = SCRATCH
            yield [FilePart(part, opened.enter_context(self._folder.opened(name))) for part, name in names.items()]

    async def thaw(self) -> None:
        """Implement `Machine.thaw`. The guest's end of the stream was reset by the snapshot: a new one is connected."""
        await self._stream.close()
        self._stream = AgentStream()
        self.reader, self.writer = self._stream.reader, self._stream.writer
        async with self.api() as api:
            await api.resume()
        await self.connect(_THAW_SECONDS * self._factor)

    def _raise_file_limit(self) -> None:
        """Let the process write a file as large as its memory; where there is a limit, belljar is root."""
        for pid in self.pids():
            with contextlib.suppress(OSError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES, _MAX_FILE_BYTES))

    async def kill(self) -> None:
        """Implement `Machine.kill`."""
        if self._process.returncode is None:
            kill_tree(self._process.pid)
        exited = asyncio.create_task(self._process.wait())
        # The removal of the cgroup kills what does not end in time.
        await asyncio.wait({exited, self._console_task}, timeout=_REAP_SECONDS)
        tasks = [exited, self._stderr_task, self._console_task, self._death]
        if self._connect_task is not None:
            tasks.append(self._connect_task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._stream.close()

    async def _connect(self) -> None:
        await self._stream.attach(await connect_agent(self._folder.descriptor, VSOCK))

    async def _await_death(self) -> Death:
        code = await self._process.wait()
        # The last output may still be in the pipes.
        await asyncio.wait({self._stderr_task, self._console_task}, timeout=_REAP_SECONDS)
        if self._connect_task is not None:
            self._connect_task.cancel()
            await asyncio.gather(self._connect_task, return_exceptions=True)
        self._stream.end()
        return death_from_exit(code, bytes(self.console.data), self._output(), oom_report(self._group))

    def _output(self) -> str:
        """Return the output of Firecracker and its jailer so far: the log, at most 64 KiB, and then standard error."""
        with contextlib.suppress(BlockingIOError):
            self._log_text = (self._log_text + os.read(self._log, _LOG_BYTES).decode(errors="replace"))[-_LOG_BYTES:]
        return f"{self._log_text}\n{self._stderr.decode(errors='replace')}"

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        await read_tail(self._process.stderr, self._stderr, _STDERR_BYTES)

    async def _read_console(self) -> None:
        """Read the serial port: Firecracker writes it to standard output, without waiting."""
        assert self._process.stdout is not None
        while chunk := await self._process.stdout.read(_CHUNK):
            kept_bytes = len(self.console.data)
            self.console.add(chunk)
            if kept_bytes == self.console.limit_bytes:
                await asyncio.sleep(len(chunk) / _DROPPED_BYTES_PER_SECOND)


class FirecrackerScriptMachine(FirecrackerMachine):
    """A machine whose script disk is written while it runs."""

    def __init__(self, spawned: FirecrackerProcess, script_disk: ScriptDisk) -> None:
        super().__init__(spawned)
        self._script_disk = script_disk

    def set_foreground(self) -> None:
        """Implement `Clone.set_foreground`."""
        self._group.set_weight(100)

    async def attach_script(self, script_disk: Path) -> None:
        """Implement `Clone.attach_script`."""
        await self._script_disk.write(script_disk)
