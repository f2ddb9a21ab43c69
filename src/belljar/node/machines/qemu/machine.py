"""One QEMU process as a machine: its streams, its death, its end; and how it is frozen, or given its script."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from pathlib import Path

from belljar.model.errors import HostError
from belljar.node.machines.ends import is_the_hosts, killed, panicked, reason_of
from belljar.node.machines.host.cgroup import Group
from belljar.node.machines.host.jail import end, explain
from belljar.node.machines.host.shielded_stack import uninterrupted
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.host.usage import children
from belljar.node.machines.protocol import SCRIPT_DISK_BYTES, Console, Death, DeathCause
from belljar.node.machines.qemu.frozen import MEMORY, SCRATCH, STATE
from belljar.node.machines.qemu.memory import save, seal
from belljar.node.machines.qemu.monitor import Monitor
from belljar.node.machines.stderr_tail import read_last
from belljar.system.host_errors import host_errors

_STDERR_BYTES = 8192
#: Copying less than this takes no longer than handing it to a thread.
_SMALL = 1 << 20
_CHUNK = 64 * 1024
#: After a kill the processes in the jail go down one by one; the console's end tells when the last is gone.
_REAP_SECONDS = 5.0
#: QEMU's words when the state of a snapshot is not what it can go on from (its migration/savevm.c, migration.c).
_NOT_RESTORED = re.compile(r"load of migration failed|savevm|[Mm]igration stream|Not a migration")


class QemuMachine:
    """The protocol's Machine. Made by QemuHypervisor, which also owns everything around it."""

    def __init__(
        self,
        machine_id: str,
        process: asyncio.subprocess.Process,
        monitor: Monitor,
        group: Group,
        *,
        agent: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        console: Console,
        console_stream: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        phases: dict[str, float],
    ) -> None:
        self.id = machine_id
        self.reader, self.writer = agent
        self.console = console
        self.phases = phases
        self._process = process
        self._monitor = monitor
        self._group = group
        self._writers = (self.writer, console_stream[1])
        self._stderr = bytearray()
        self._told = asyncio.create_task(self._read_stderr())
        self._console_read = asyncio.create_task(self._read_console(console_stream[0]))
        self._watched = asyncio.create_task(monitor.watch())
        self._death = asyncio.create_task(self._await_death())

    def pids(self) -> list[int]:
        return [self._process.pid, *children(self._process.pid)] if self._process.returncode is None else []

    async def death(self) -> Death:
        return await asyncio.shield(self._death)

    async def kill(self) -> None:
        if self._process.returncode is None:
            end(self._process.pid)
        ended = asyncio.create_task(self._process.wait())
        # What does not go down in time is left to the removal of its cgroup.
        await asyncio.wait({ended, self._console_read, self._watched}, timeout=_REAP_SECONDS)
        tasks = (ended, self._told, self._console_read, self._watched, self._death)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _await_death(self) -> Death:
        exited = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait({exited, self._watched}, return_when=asyncio.FIRST_COMPLETED)
            if self._watched.done() and (fault := self._watched.result()) is not None:
                return Death(cause=DeathCause.HYPERVISOR, message=fault)
            # What was said last is still on its way through the pipes.
            await asyncio.wait({self._told, self._console_read}, timeout=_REAP_SECONDS)
            return self._cause(await exited)
        finally:
            exited.cancel()

    def _cause(self, code: int) -> Death:
        """Why the process ended: from the guest's last words, QMP's reason, and the exit code, in this order."""
        if (death := panicked(self.console.data, otherwise=self._monitor.panicked)) is not None:
            return death
        if code == 0:
            reason = self._monitor.shutdown_reason or "powered off"
            return Death(cause=DeathCause.GUEST_EXIT, message=f"the guest ended its machine ({reason})")
        if (death := killed("QEMU", code)) is not None:
            return death
        words = self._stderr.decode(errors="replace").strip()
        last = words.splitlines()[-1] if words else ""
        cause = DeathCause.HYPERVISOR
        if is_the_hosts(words):
            cause = DeathCause.HOST
        elif _NOT_RESTORED.search(words):
            cause = DeathCause.SNAPSHOT
        said = f": {explain(last)}" if last else ""
        return Death(cause=cause, message=f"QEMU failed: {reason_of(code)}{said}")

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        await read_last(self._process.stderr, self._stderr, _STDERR_BYTES)

    async def _read_console(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                self.console.add(chunk)


class QemuClone(QemuMachine):
    """The protocol's Clone."""

    def reads(self, script: int) -> None:
        """The descriptor of its script disk."""
        self._script = script

    async def insert(self, script_disk: Path) -> None:
        with host_errors("give a machine its script"):
            size = script_disk.stat().st_size
            if size > SCRIPT_DISK_BYTES:
                raise HostError(f"the script's disk has {size} bytes, a clone has room for {SCRIPT_DISK_BYTES}")
            if size <= _SMALL:
                self._write(script_disk)
            else:
                await uninterrupted(in_thread(self._write, script_disk))

    def _write(self, script_disk: Path) -> None:
        with script_disk.open("rb") as file:
            at = 0
            while sent := os.sendfile(self._script, file.fileno(), at, 1 << 30):
                at += sent
        os.lseek(self._script, 0, os.SEEK_SET)

    def set_foreground(self) -> None:
        self._group.set_weight(100)


class QemuTemplate(QemuClone):
    """The protocol's Template."""

    def keeps(self, folder: Path, memory: int, scratch: int | None) -> None:
        """Where its parts go, and the descriptors of what it writes to."""
        self._folder, self._memory, self._scratch = folder, memory, scratch

    async def freeze(self) -> None:
        with (self._folder / STATE).open("xb") as state:
            await self._monitor.freeze(state.fileno())
        await self.kill()
        # Only now has nobody the memory mapped any more.
        await in_thread(self._keep)

    def _keep(self) -> None:
        seal(self._memory)
        save(self._memory, self._folder / MEMORY)
        if self._scratch is not None:
            save(self._scratch, self._folder / SCRATCH)
