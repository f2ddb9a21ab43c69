"""A sandbox whose machine runs here, as its callers use it: the `SandboxMachine` of the link."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal as signals
from collections.abc import AsyncGenerator, AsyncIterator, Collection

from belljar.link.sandboxes import FreezeRequest
from belljar.model.errors import BelljarError, InvalidOption, MachineDied
from belljar.model.log_stream import LogStream
from belljar.model.sandbox import FrozenState
from belljar.model.sandbox_errors import StreamBroken
from belljar.model.sandbox_values import (
    ListeningPort,
    ProcessExit,
    ProcessInfo,
    ProcessOutput,
    ProcessRequest,
    SandboxActivity,
    SandboxUsage,
    TerminalSize,
)
from belljar.model.usage_series import UsageSeries
from belljar.node.guest import process
from belljar.node.guest.channel import ChannelBroken
from belljar.node.guest.channel_messages import Usage
from belljar.node.guest.files import Files
from belljar.node.guest.port_stream import PortStream
from belljar.node.guest.session import Session
from belljar.node.guest.usage_sampler import MachineLimits, UsageSampler
from belljar.node.sandboxes.calls import Calls
from belljar.node.sandboxes.files import GuestFiles
from belljar.node.sandboxes.freezes import Freezes
from belljar.node.sandboxes.process import MachineSize
from belljar.node.sandboxes.process_table import CommandDefaults, ProcessTable
from belljar.node.sandboxes.saved import SavedProcess, encode_processes
from belljar.node.sandboxes.use import Use

_SIGNAL = re.compile(r"(SIG)?([A-Z0-9+-]{1,12})\Z")
_SHORTEST_INTERVAL_SECONDS = 0.1
#: How long a suspension waits for answers of the guest that are under way; then their calls break off.
_ANSWERS_SECONDS = 0.2


class PortConnection:
    """A connection to a port in a sandbox: `ByteStream`."""

    def __init__(self, stream: PortStream, calls: Calls) -> None:
        self._stream = stream
        self._calls = calls

    async def write(self, data: bytes) -> None:
        with self._calls.translated():
            await self._stream.write(data)

    async def close_write(self) -> None:
        with self._calls.translated():
            await self._stream.close_write()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with self._calls.translated():
            async for piece in self._stream:
                yield piece


class HeldMachine:
    """One session's commands, files and ports. Its holder closes it before the session ends."""

    def __init__(
        self, session: Session, defaults: CommandDefaults, size: MachineSize, saved: Collection[SavedProcess] = ()
    ) -> None:
        """`saved`: the commands of a machine that was frozen."""
        self._session = session
        #: Set when another session replaces this one.
        self._attached = asyncio.Event()
        self._user = defaults.user
        self._calls = Calls()
        self._processes = ProcessTable(session, defaults, size, self._calls.use, saved)
        self._files = GuestFiles(session, self._calls, defaults.user)
        #: What its holder is requested to do.
        self.freezes = Freezes()
        limits = MachineLimits(vcpus=size.vcpus, memory_mb=size.memory_mb, disk_mb=size.disk_mb, network=size.network)
        self._sampler = UsageSampler(limits)

    @property
    def use(self) -> Use:
        """How it is used."""
        return self._calls.use

    @property
    def files(self) -> GuestFiles:
        """Its files."""
        return self._files

    async def close(self, reason: BelljarError) -> None:
        """Take no more calls, for this reason, and end the tasks of its commands."""
        self._calls.close(reason)
        self.freezes.close(reason)
        await self._processes.stop(reason.message)

    async def suspend(self) -> None:
        """End the session so that the machine can be frozen; its commands go on when that continues.

        Calls wait from now on, until `attach` or `close`. Raises MachineError; then the machine is of no more use.
        """
        await self._calls.hold(_ANSWERS_SECONDS)
        self._processes.suspend()
        await self._session.suspend()
        await self._processes.suspended()

    def saved(self) -> bytes:
        """Return what is kept of the suspended session beside the machine."""
        return encode_processes(self._processes.saved())

    def attach(self, session: Session) -> None:
        """Go on in a new session of the same machine."""
        self._session = session
        self._attached.set()
        self._attached = asyncio.Event()
        self._files.attach(session)
        self._processes.attach(session)
        self._calls.release()

    async def freeze(self, request: FreezeRequest) -> FrozenState:
        with self._calls.call():
            return await self.freezes.request(request)

    # --- commands ---------------------------------------------------------------------------------------------------

    async def start(self, request: ProcessRequest) -> ProcessInfo:
        async with self._calls.answered():
            return (await self._processes.start(request)).info()

    async def processes(self) -> tuple[ProcessInfo, ...]:
        with self._calls.call():
            return tuple(each.info() for each in self._processes.all())

    async def process(self, process_id: int) -> ProcessInfo:
        with self._calls.call():
            return self._processes.get(process_id).info()

    async def output(
        self, process_id: int, *, stdout_from: int | None = None, stderr_from: int | None = None
    ) -> AsyncGenerator[ProcessOutput | ProcessExit, None]:
        first = {LogStream.STDOUT: stdout_from or 0, LogStream.STDERR: stderr_from or 0}
        with self._calls.call():
            async with contextlib.aclosing(self._processes.get(process_id).output.read(first)) as pieces:
                async for piece in pieces:
                    yield piece

    async def wait(self, process_id: int, timeout_seconds: float | None = None) -> ProcessInfo:
        with self._calls.call():
            found = self._processes.get(process_id)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await found.output.wait_end()
            return found.info()

    async def discard_output(self, process_id: int) -> None:
        with self._calls.call():
            self._processes.get(process_id).detach()

    async def write_input(self, process_id: int, data: bytes) -> None:
        async with self._calls.admitted():
            found = self._processes.get(process_id)
            try:
                await found.process.write(data)
            except ValueError as error:
                raise InvalidOption(f"the input of command {process_id} has ended", option="stdin") from error

    async def end_input(self, process_id: int) -> None:
        async with self._calls.admitted():
            found = self._processes.get(process_id)
            if not found.process.has_terminal:
                with contextlib.suppress(process.ProcessEnded):
                    await found.process.end_input()

    async def resize(self, process_id: int, size: TerminalSize) -> None:
        async with self._calls.answered():
            found = self._processes.get(process_id)
            if not found.process.has_terminal:
                raise InvalidOption(f"the command {process_id} has no terminal; start it with one", option="terminal")
            await found.process.resize(process.TerminalSize(size.columns, size.rows))

    async def signal(self, process_id: int, name: str) -> None:
        number = _signal(name)
        async with self._calls.answered():
            await self._processes.get(process_id).process.signal(number)

    async def kill(self, process_id: int) -> None:
        async with self._calls.answered():
            await self._processes.get(process_id).kill()

    async def forget(self, process_id: int) -> None:
        async with self._calls.answered():
            await self._processes.forget(process_id)

    async def restart(self, process_id: int) -> ProcessInfo:
        async with self._calls.answered():
            return (await self._processes.restart(process_id)).info()

    # --- ports and usage --------------------------------------------------------------------------------------------

    async def ports(self) -> tuple[ListeningPort, ...]:
        async with self._calls.answered():
            found = await Files(self._session, uid=self._user.uid, gid=self._user.gid).ports()
            return tuple(ListeningPort(port=each.port, address=each.address, uid=each.uid) for each in found)

    @contextlib.asynccontextmanager
    async def connect(self, port: int) -> AsyncIterator[PortConnection]:
        if not 0 < port < 1 << 16:
            raise InvalidOption(f"{port} is no port; give 1 to 65535", option="port")
        async with self._calls.admitted(), self._session.open_port(port) as stream:
            yield PortConnection(stream, self._calls)

    async def usage(self) -> SandboxUsage:
        async with self._calls.answered():
            async with contextlib.aclosing(self._session.usage(_SHORTEST_INTERVAL_SECONDS)) as messages:
                async for message in messages:
                    return _usage(message)
            raise StreamBroken("the machine told no usage")

    async def usage_series(self) -> UsageSeries:
        return self._sampler.series()

    async def sample(self) -> None:
        """Keep the machine's usage as a series, also across sessions, until it is cancelled. That is no use."""
        while True:
            session, attached = self._session, self._attached
            with contextlib.suppress(ChannelBroken, MachineDied):
                await self._sample(session)
            await attached.wait()

    async def _sample(self, session: Session) -> None:
        while True:
            interval_seconds = self._sampler.interval_seconds
            async with contextlib.aclosing(session.usage(interval_seconds)) as messages:
                async for message in messages:
                    if self._sampler.add(message):
                        break  # the interval has doubled

    async def activity(self) -> SandboxActivity:
        return self._calls.use.activity()


def _usage(message: Usage) -> SandboxUsage:
    return SandboxUsage(
        uptime_seconds=message.time_us / 1_000_000,
        cpu_seconds=message.cpu_us / 1_000_000,
        memory_bytes=message.memory_bytes,
        memory_limit_bytes=message.memory_limit_bytes,
        cache_bytes=message.cache_bytes,
        disk_bytes=message.disk_bytes,
        disk_limit_bytes=message.disk_limit_bytes,
        received_bytes=message.received_bytes,
        sent_bytes=message.sent_bytes,
        processes=message.processes,
    )


def _signal(name: str) -> signals.Signals:
    match = _SIGNAL.match(name.upper())
    found = getattr(signals.Signals, f"SIG{match[2]}", None) if match else None
    if not isinstance(found, signals.Signals):
        raise InvalidOption(f"{name[:32]!r} is no signal; give a name such as SIGTERM", option="signal")
    return found
