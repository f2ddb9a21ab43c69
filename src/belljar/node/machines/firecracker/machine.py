"""One Firecracker process as a machine: its streams, its death, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from belljar.model.errors import HostError, MachineDied, MachineTimeout
from belljar.node.machines.firecracker.api import FirecrackerApi
from belljar.node.machines.firecracker.death import cause_of
from belljar.node.machines.firecracker.folder import API, VSOCK, Folder
from belljar.node.machines.firecracker.stream import AgentStream, connect_agent, listening
from belljar.node.machines.host.jail import end
from belljar.node.machines.host.usage import children
from belljar.node.machines.protocol import Console, Death
from belljar.node.machines.racing import run_unless_dead
from belljar.node.machines.stderr_tail import read_last

_CHUNK = 16 * 1024
_STDERR_BYTES = 8192
_LOG_BYTES = 64 * 1024
#: What a guest prints beyond what is kept is read no faster than this: Firecracker drops what finds no room, so that
#: neither side spends more on it.
_DROPPED_BYTES_PER_SECOND = 128 * 1024
_REAP_SECONDS = 5.0
_SOCKET_SECONDS = 10.0
_POLL_SECONDS = 0.001


class FirecrackerMachine:
    """The protocol's Machine. Made by FirecrackerHypervisor, which also owns everything around it."""

    def __init__(
        self,
        machine_id: str,
        process: asyncio.subprocess.Process,
        folder: Folder,
        *,
        log: int,
        console: Console,
        phases: dict[str, float],
        patience: float = 1.0,
    ) -> None:
        self.id = machine_id
        self._socket_seconds = _SOCKET_SECONDS * patience
        self.console = console
        self.phases = phases
        self._process = process
        self._folder = folder
        self._log = log
        self._stream = AgentStream()
        self.reader, self.writer = self._stream.reader, self._stream.writer
        self._stderr = bytearray()
        self._words: str | None = None
        self._told = asyncio.create_task(self._read_stderr())
        self._console_read = asyncio.create_task(self._read_console())
        self._connecting: asyncio.Task[None] | None = None
        self._death = asyncio.create_task(self._await_death())

    def pids(self) -> list[int]:
        return [self._process.pid, *children(self._process.pid)] if self._process.returncode is None else []

    def connect_later(self) -> None:
        """Put a connection under the streams as soon as the guest's agent listens."""
        self._connecting = asyncio.create_task(self._connect())

    async def connect(self, timeout_seconds: float) -> None:
        """Wait for the agent to listen, and connect. Raises MachineDead, MachineTimeout."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await run_unless_dead(self, self._connect())
        except TimeoutError:
            raise MachineTimeout(f"the machine's agent did not listen within {timeout_seconds:g} s") from None

    @contextlib.asynccontextmanager
    async def api(self) -> AsyncIterator[FirecrackerApi]:
        """A client of this process, as soon as its socket is there.

        Raises MachineDied with the reason when the process ends first, HostError when no socket appears in time.
        """
        deadline = asyncio.get_running_loop().time() + self._socket_seconds
        with contextlib.ExitStack() as stack:
            while (path := listening(stack, self._folder.descriptor, API)) is None:
                if self._death.done():
                    raise MachineDied(self._death.result().message)
                if asyncio.get_running_loop().time() > deadline:
                    raise HostError(
                        f"Firecracker opened no API socket within {self._socket_seconds:g} s; is the host overloaded?"
                    )
                await asyncio.sleep(_POLL_SECONDS)
            async with FirecrackerApi(path) as api:
                try:
                    yield api
                except MachineDied as error:
                    # The process's own end says more than the broken connection.
                    await asyncio.wait({self._death}, timeout=_REAP_SECONDS)
                    if self._death.done():
                        raise MachineDied(f"{error.message}: {self._death.result().message}") from None
                    raise

    async def death(self) -> Death:
        return await asyncio.shield(self._death)

    async def kill(self) -> None:
        if self._process.returncode is None:
            end(self._process.pid)
        ended = asyncio.create_task(self._process.wait())
        # What does not go down in time is left to the removal of its cgroup.
        await asyncio.wait({ended, self._console_read}, timeout=_REAP_SECONDS)
        tasks = [ended, self._told, self._console_read, self._death, *([self._connecting] if self._connecting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._stream.close()

    async def _connect(self) -> None:
        await self._stream.attach(await connect_agent(self._folder.descriptor, VSOCK))

    async def _await_death(self) -> Death:
        code = await self._process.wait()
        # What was said last is still on its way through the pipes.
        await asyncio.wait({self._told, self._console_read}, timeout=_REAP_SECONDS)
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        self._stream.end()
        return cause_of(code, bytes(self.console.data), self.words())

    def words(self) -> str:
        """What Firecracker and its jailer said so far: the log, at most 64 KiB, and then standard error."""
        if self._words is None:
            self._words = ""
        with contextlib.suppress(BlockingIOError):
            self._words = (self._words + os.read(self._log, _LOG_BYTES).decode(errors="replace"))[-_LOG_BYTES:]
        return f"{self._words}\n{self._stderr.decode(errors='replace')}"

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        await read_last(self._process.stderr, self._stderr, _STDERR_BYTES)

    async def _read_console(self) -> None:
        """The serial port is Firecracker's standard output, which it writes to without waiting."""
        assert self._process.stdout is not None
        while chunk := await self._process.stdout.read(_CHUNK):
            kept = len(self.console.data)
            self.console.add(chunk)
            if kept == self.console.limit_bytes:
                await asyncio.sleep(len(chunk) / _DROPPED_BYTES_PER_SECOND)
