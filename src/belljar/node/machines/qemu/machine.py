"""One QEMU process as a machine: its streams, its death and its end; and snapshot sources of that kind."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path

from belljar.model.errors import MachineError
from belljar.node.frozen.parts import BytesPart, FilePart
from belljar.node.frozen.protocol import PartSource
from belljar.node.machines.disks import ScriptDisk
from belljar.node.machines.host.cgroup import Group
from belljar.node.machines.host.jail import kill_tree
from belljar.node.machines.host.oom import oom_report
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.host.usage import children
from belljar.node.machines.protocol import Console, Death, DeathCause
from belljar.node.machines.qemu.device_state import read_device_state
from belljar.node.machines.qemu.exit_report import death_from_exit, last_error
from belljar.node.machines.qemu.guest_memory import GuestMemory
from belljar.node.machines.qemu.memory import save, seal
from belljar.node.machines.qemu.monitor import Monitor
from belljar.node.machines.qemu.snapshot_files import MEMORY, SCRATCH, STATE
from belljar.node.machines.stderr_tail import read_tail

_STDERR_BYTES = 8192
_CHUNK = 64 * 1024
#: After a kill the processes in the jail end one by one; the end of the console shows that all have ended.
_REAP_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class QemuProcess:
    """A QEMU that was just spawned, with the host's ends of its channels."""

    machine_id: str
    process: asyncio.subprocess.Process
    monitor: Monitor
    group: Group
    agent: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    console: Console
    console_stream: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    #: The monitor that loads a snapshot; None for a machine that boots.
    restore: socket.socket | None = None
    #: Descriptors of its memory, if that is in a file, and of its scratch disk.
    memory: int | None = None
    scratch: int | None = None
    phases: dict[str, float]


class QemuMachine:
    """The protocol's Machine. QemuHypervisor makes it, and owns everything around it."""

    def __init__(self, spawned: QemuProcess) -> None:
        self.id = spawned.machine_id
        self.reader, self.writer = spawned.agent
        self.console = spawned.console
        self.phases = spawned.phases
        self._process = spawned.process
        self._monitor = spawned.monitor
        self._group = spawned.group
        self._guest_memory, self._scratch_disk = spawned.memory, spawned.scratch
        self._writers = (self.writer, spawned.console_stream[1])
        self._stderr = bytearray()
        self._stderr_task = asyncio.create_task(self._read_stderr())
        self._console_task = asyncio.create_task(self._read_console(spawned.console_stream[0]))
        self._monitor_task = asyncio.create_task(self._monitor.watch())
        self._death = asyncio.create_task(self._await_death())

    def pids(self) -> list[int]:
        """Implement `Machine.pids`."""
        return [self._process.pid, *children(self._process.pid)] if self._process.returncode is None else []

    async def death(self) -> Death:
        """Implement `Machine.death`."""
        return await asyncio.shield(self._death)

    async def kill(self) -> None:
        """Implement `Machine.kill`."""
        if self._process.returncode is None:
            kill_tree(self._process.pid)
        exited = asyncio.create_task(self._process.wait())
        # The removal of the cgroup kills what does not end in time.
        await asyncio.wait({exited, self._console_task, self._monitor_task}, timeout=_REAP_SECONDS)
        tasks = (exited, self._stderr_task, self._console_task, self._monitor_task, self._death)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    @contextlib.asynccontextmanager
    async def frozen(self) -> AsyncIterator[Collection[PartSource]]:
        """Implement `Machine.frozen`."""
        if self._guest_memory is None:
            raise MachineError("this machine was not started to be frozen: its memory is in no file")
        state = await read_device_state(self._monitor.stop)
        parts: list[PartSource] = [BytesPart(STATE, state), GuestMemory(self.pids(), self._guest_memory)]
        if self._scratch_disk is not None:
            parts.append(FilePart(SCRATCH, self._scratch_disk))
        yield parts

    async def thaw(self) -> None:
        """Implement `Machine.thaw`."""
        await self._monitor.thaw()

    async def _await_death(self) -> Death:
        exited = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait({exited, self._monitor_task}, return_when=asyncio.FIRST_COMPLETED)
            if self._monitor_task.done() and (fault := self._monitor_task.result()) is not None:
                error = last_error(self._stderr.decode(errors="replace"))
                return Death(cause=DeathCause.HYPERVISOR, message=f"{fault}: {error}" if error else fault)
            # The last output may still be in the pipes.
            await asyncio.wait({self._stderr_task, self._console_task}, timeout=_REAP_SECONDS)
            return self._death_from_exit(await exited)
        finally:
            exited.cancel()

    def _death_from_exit(self, code: int) -> Death:
        return death_from_exit(
            code,
            self.console.data,
            self._stderr.decode(errors="replace"),
            panicked=self._monitor.panicked,
            shutdown_reason=self._monitor.shutdown_reason,
            oom=oom_report(self._group),
        )

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        await read_tail(self._process.stderr, self._stderr, _STDERR_BYTES)

    async def _read_console(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                self.console.add(chunk)


class QemuScriptMachine(QemuMachine):
    """A machine whose script disk is written while it runs."""

    def __init__(self, spawned: QemuProcess, script_disk: ScriptDisk) -> None:
        super().__init__(spawned)
        self._script_disk = script_disk

    async def attach_script(self, script_disk: Path) -> None:
        """Implement `Clone.attach_script`."""
        await self._script_disk.write(script_disk)

    def set_foreground(self) -> None:
        """Implement `Clone.set_foreground`."""
        self._group.set_weight(100)


class QemuSnapshotSource(QemuScriptMachine):
    """The protocol's SnapshotSource."""

    def __init__(
        self, spawned: QemuProcess, script_disk: ScriptDisk, folder: Path, memory: int, scratch: int | None
    ) -> None:
        """`folder` takes the snapshot; `memory` and `scratch` are the descriptors that the machine writes to."""
        super().__init__(spawned, script_disk)
        self._folder, self._memory, self._scratch = folder, memory, scratch

    async def freeze(self) -> None:
        """Implement `SnapshotSource.freeze`."""
        with (self._folder / STATE).open("xb") as state:
            await self._monitor.freeze(state.fileno())
        await self.kill()  # memory can be sealed only when no process maps it any more
        await in_thread(self._save)

    def _save(self) -> None:
        seal(self._memory)
        save(self._memory, self._folder / MEMORY)
        if self._scratch is not None:
            save(self._scratch, self._folder / SCRATCH)
