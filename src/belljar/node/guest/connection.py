"""The connection to one machine's agent: its handshake, the machine's configuration, and the entry to each operation.

One operation runs at a time. The connection reads only inside an operation and writes only what the protocol allows at
that point. A session is one operation, in which many commands run.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal as signals
import time
from collections.abc import AsyncIterator, Callable, Sequence
from ipaddress import IPv4Address, IPv4Interface

from belljar.model.errors import GuestProtocolError
from belljar.node.guest import artifacts, command, requests, wire
from belljar.node.guest.channel_messages import Usage
from belljar.node.guest.command import Command
from belljar.node.guest.frame_stream import FrameStream
from belljar.node.guest.identity import Identity
from belljar.node.guest.session import Session, SessionRequest
from belljar.node.guest.sinks import ArtifactSink, OutputSink
from belljar.node.guest.wire import FrameType, RunFlag

#: Seconds without a frame from the host after which the agent ends its machine.
SILENCE_SECONDS = 30
#: The field of WELCOME has 16 bits.
_MAX_SILENCE_SECONDS = 0xFFFF
#: Seconds for replies that do not depend on a job's command: preparing processes, unmounting, suspending.
_REPLY_SECONDS = 30.0


class AgentConnection:
    """A connection to one agent. Not safe for concurrent operations, except `signal` and `meter`."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, timeout_factor: float = 1.0
    ) -> None:
        #: Multiplies the deadlines of this connection, for hosts on which everything takes longer.
        self.timeout_factor = timeout_factor
        self._frames = FrameStream(reader, writer)
        self._on_usage: Callable[[Usage], None] | None = None

    async def open(self, timeout_seconds: float) -> wire.Hello:
        """Wait for the agent of a booting machine, accept it, and send the machine its time and identity.

        Raises MachineTimeout, MachineDied, GuestProtocolError.
        """
        hello = await self._receive_hello(timeout_seconds)
        await self._frames.send(self._welcome() + _fresh_identity())
        return hello

    async def resume(self, timeout_seconds: float, *, silence_seconds: int = SILENCE_SECONDS) -> wire.Hello:
        """Connect to the agent of a clone, which gets its own identity before anything else runs in its machine.

        The agent ends the machine after `silence_seconds` (times the factor of this connection; 0: never) without a
        frame. Raises MachineTimeout, MachineDied, GuestProtocolError.
        """
        await self._frames.send(_fresh_identity())
        hello = await self._receive_hello(timeout_seconds)
        await self._frames.send(self._welcome(silence_seconds))
        return hello

    async def set_network(
        self, interface: IPv4Interface, gateway: IPv4Address, nameservers: Sequence[IPv4Address], mtu: int
    ) -> None:
        """Configure the machine's network device, before `run`, and in a clone before anything else.

        An agent that fails to do so logs the reason on the console and ends its machine. Raises MachineDied.
        """
        await self._frames.send(requests.network(interface, gateway, nameservers, mtu))

    async def set_layer(self, script_bytes: int, layer_bytes: int, path: str) -> None:
        """Announce the layer behind the script on its disk, to be mounted over `path`.

        Call it before `run`. Raises MachineDied.
        """
        await self._frames.send(requests.layer(script_bytes, layer_bytes, path))

    async def set_clock(self, *, ahead_seconds: int = 0) -> None:
        """Send the time again; from now on the agent ends its machine when the host is silent. Raises MachineDied."""
        await self._frames.send(self._welcome(ahead_seconds=ahead_seconds))

    async def prepare(self, waiting: Command) -> None:
        """Start processes that wait for a command. Raises as `command.prepare` does."""
        await command.prepare(self._frames, waiting, reply_seconds=self.reply_seconds)

    async def suspend(self) -> None:
        """Get the machine ready to be frozen; after its reply the agent only waits for `resume`.

        Raises MachineError.
        """
        await self._frames.send(wire.frame(FrameType.SUSPEND))
        message = await self._frames.receive(self.reply_seconds)
        if not isinstance(message, wire.Suspended):
            raise GuestProtocolError(f"unexpected {type(message).__name__} from guest agent (expected Suspended)")

    async def warm_up(self, warm_up: Command, sink: OutputSink) -> wire.Exited:
        """Run a command of belljar's own that leaves nothing in the machine. Raises as `run` does."""
        return await self._run(warm_up, b"", sink, lambda _: None, RunFlag.WARM_UP)

    async def run(
        self, job: Command, stdin: bytes, sink: OutputSink, on_started: Callable[[wire.Started], None]
    ) -> wire.Exited:
        """Run a command to its end; write its output to `sink` as it comes, call `on_started` once.

        There is no deadline here: the caller bounds the command's time and ends it with `signal`. Raises CommandFailed
        when the command could not be started, MachineError.
        """
        return await self._run(job, stdin, sink, on_started, RunFlag.KEEP if job.keep else RunFlag(0))

    @contextlib.asynccontextmanager
    async def open_session(self, request: SessionRequest) -> AsyncIterator[Session]:
        """Use the machine as a sandbox: run many commands at once, instead of `run`.

        At the block's end the session is over; its commands run until the machine ends. Raises CommandFailed when the
        session could not be started, MachineError.
        """
        async with Session(self._frames, reply_seconds=self.reply_seconds).run(request) as session:
            yield session

    @contextlib.asynccontextmanager
    async def resume_session(self) -> AsyncIterator[Session]:
        """Continue the session of a machine that was suspended in one, after `resume`. Raises MachineError."""
        async with Session(self._frames, reply_seconds=self.reply_seconds).run(None) as session:
            yield session

    async def signal(self, number: signals.Signals) -> None:
        """Send a signal to the command's process group; SIGKILL ends every process of the job. Raises MachineDied."""
        await self._frames.send(wire.frame(FrameType.SIGNAL, bytes([number])))

    async def meter(self, interval_seconds: float, on_usage: Callable[[Usage], None]) -> None:
        """Have the agent tell the machine's usage at this interval (at least 0.1 s) while a command of `run` runs.

        The first message comes at once. Raises MachineDied.
        """
        self._on_usage = on_usage
        await self._frames.send(requests.meter(round(interval_seconds * 1000)))

    async def collect(
        self, globs: Sequence[str], sink: ArtifactSink, *, max_bytes: int, max_count: int
    ) -> wire.Collected:
        """Fetch the files below the working folder that the globs match, after the command has ended.

        A glob that begins with `!` excludes what the others match. Returns counts as `artifacts.collect` does. Raises
        MachineError.
        """
        return await artifacts.collect(self._frames, globs, sink, max_bytes=max_bytes, max_count=max_count)

    @property
    def reply_seconds(self) -> float:
        """Return the deadline of replies that do not depend on a job's command."""
        return _REPLY_SECONDS * self.timeout_factor

    def _welcome(self, silence_seconds: int = SILENCE_SECONDS, *, ahead_seconds: int = 0) -> bytes:
        silence = min(round(silence_seconds * self.timeout_factor), _MAX_SILENCE_SECONDS)
        return requests.welcome(silence, time.time_ns() + ahead_seconds * 1_000_000_000)

    async def _run(
        self,
        job: Command,
        stdin: bytes,
        sink: OutputSink,
        on_started: Callable[[wire.Started], None],
        flags: RunFlag,
    ) -> wire.Exited:
        return await command.run(
            self._frames,
            job,
            stdin,
            sink,
            on_started,
            flags,
            on_usage=self._take_usage,
            reply_seconds=self.reply_seconds,
        )

    def _take_usage(self, usage: Usage) -> None:
        if self._on_usage is None:
            raise GuestProtocolError("unexpected Usage from guest agent, which nobody asked for")
        self._on_usage(usage)

    async def _receive_hello(self, timeout_seconds: float) -> wire.Hello:
        hello = await self._frames.receive(timeout_seconds)
        if not isinstance(hello, wire.Hello):
            raise GuestProtocolError(f"unexpected {type(hello).__name__} from guest agent (expected Hello)")
        if hello.version != wire.VERSION:
            raise GuestProtocolError(
                f"the image's agent uses protocol version {hello.version}, this belljar needs {wire.VERSION}; "
                "build the image again"
            )
        return hello


def _fresh_identity() -> bytes:
    identity = Identity.fresh()
    return requests.identity(identity.seed, identity.hostname)
