"""The host's end of the conversation with an agent: one machine, one job, one stream.

A session reads only inside the operation that expects something, and writes only what the wire protocol allows at that
point. It treats every byte as hostile: frames are bounded and parsed strictly, output and artifacts must have been paid
for with credit, each event may happen once, and frames beyond a rate wait. Its memory does not grow with what the guest
sends: credit is granted again only when a sink has taken the bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal as signals
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

from belljar.model.errors import GuestProtocolError, MachineDied, MachineTimeout
from belljar.node.guest import wire
from belljar.node.guest.command import Command, CommandFailed
from belljar.node.guest.identity import Identity
from belljar.node.guest.sinks import ArtifactSink, OutputSink
from belljar.node.guest.wire import Stream

#: Bytes of one stream that may be under way; the guest's writer waits beyond it.
WINDOW = 512 * 1024
#: A guest that writes many tiny pieces is slowed down to this many frames a second, so that it cannot keep the host's
#: event loop to itself.
FRAMES_PER_SECOND = 20_000
#: How often the host says that it is there, and how long the agent waits for it before it ends the machine.
PING_SECONDS = 5
SILENCE_SECONDS = 30
#: For what the agent does by itself, without a job's help: preparing processes, unmounting.
_AGENT_SECONDS = 30.0


@dataclass(slots=True)
class _Rate:
    """A token bucket over frames."""

    tokens: float = FRAMES_PER_SECOND
    at: float = field(default_factory=time.monotonic)

    async def take(self) -> None:
        self.tokens -= 1
        if self.tokens >= 1:
            return
        now = time.monotonic()
        self.tokens = min(FRAMES_PER_SECOND, self.tokens + (now - self.at) * FRAMES_PER_SECOND)
        self.at = now
        if self.tokens < 1:
            await asyncio.sleep(0.05)


class AgentConnection:
    """A conversation with one agent. Not safe for concurrent operations, except `signal`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, patience: float = 1.0) -> None:
        #: What deadlines are multiplied by, on a host where all takes longer.
        self.patience = patience
        self._reader = reader
        self._writer = writer
        self._rate = _Rate()
        self._owed: dict[Stream, int] = {}
        self._stdin_credit = wire.STDIN_WINDOW
        self._stdin_unacknowledged = 0
        self._stdin_more = asyncio.Event()
        self._pings = 0
        self._frames = 0

    async def open(self, timeout_seconds: float) -> wire.Hello:
        """Wait for the agent of a machine that boots, accept it, and tell it who and when it is.

        Raises MachineTimeout, MachineDied, GuestProtocolError.
        """
        hello = await self._expect_hello(timeout_seconds)
        identity = Identity.fresh()
        await self._send(_welcome() + wire.identity(identity.seed, identity.hostname))
        return hello

    async def resume(self, timeout_seconds: float, *, silence_seconds: int = SILENCE_SECONDS) -> wire.Hello:
        """Begin with the agent of a clone: it learns who it is before anything else runs in its machine.

        It ends the machine when it hears nothing for `silence_seconds` (0: never). Raises MachineTimeout, MachineDied,
        GuestProtocolError.
        """
        identity = Identity.fresh()
        await self._send(wire.identity(identity.seed, identity.hostname))
        hello = await self._expect_hello(timeout_seconds)
        await self._send(_welcome(silence_seconds))
        return hello

    async def _expect_hello(self, timeout_seconds: float) -> wire.Hello:
        try:
            async with asyncio.timeout(timeout_seconds):
                hello = await self._receive()
        except TimeoutError:
            raise MachineTimeout(f"the agent did not answer within {timeout_seconds:g} s") from None
        if not isinstance(hello, wire.Hello):
            raise GuestProtocolError("the guest did not begin with HELLO")
        if hello.version != wire.VERSION:
            raise GuestProtocolError(
                f"the image's agent speaks version {hello.version} of the protocol, this belljar {wire.VERSION}; "
                "build the image again"
            )
        return hello

    async def network(
        self, interface: IPv4Interface, gateway: IPv4Address, nameservers: Sequence[IPv4Address], mtu: int
    ) -> None:
        """Tell the agent what the machine's network device is to be. Before `run`, and in a clone before anything else.

        An agent that cannot ends its machine, saying why on the console. Raises MachineDied.
        """
        await self._send(wire.network(interface, gateway, nameservers, mtu))

    async def layer(self, script_bytes: int, layer_bytes: int, path: str) -> None:
        """Before `run`: the script's disk holds a layer for this folder behind the script. Raises MachineDied."""
        await self._send(wire.layer(script_bytes, layer_bytes, path))

    async def set_clock(self, *, ahead_seconds: int = 0) -> None:
        """Tell the agent the time again, and to end its machine from now on when the host falls silent."""
        await self._send(_welcome(ahead_seconds=ahead_seconds))

    async def prepare(self, command: Command) -> None:
        """Start processes that wait for a command: `command.argv` is what starts its prefork program, if it names one.

        Raises CommandFailed when the program does not start or does not wait, MachineError.
        """
        request = wire.prepare(
            uid=command.uid,
            gid=command.gid,
            max_processes=command.max_processes,
            flags=_flags(command),
            prefork=command.prefork,
        )
        await self._send(_words(command) + request)
        message = await self._answer()
        if isinstance(message, wire.Failed):
            raise CommandFailed(message.stage, message.errno)
        if not isinstance(message, wire.Prepared):
            raise GuestProtocolError(f"the guest sent {type(message).__name__} at the wrong time")

    async def suspend(self) -> None:
        """Get the machine ready to be frozen: from its answer on the agent only waits for `resume`."""
        await self._send(wire.frame(wire.Kind.SUSPEND))
        if not isinstance(await self._answer(), wire.Suspended):
            raise GuestProtocolError("the guest did not suspend itself when it was told to")

    async def warm_up(self, command: Command, sink: OutputSink) -> wire.Exited:
        """Run a command of belljar's own, of which nothing is left in the machine. Raises as `run` does."""
        return await self._command(command, b"", sink, lambda _: None, wire.RunFlag.REHEARSE)

    async def _answer(self) -> wire.Message:
        seconds = _AGENT_SECONDS * self.patience
        try:
            async with asyncio.timeout(seconds):
                return await self._receive()
        except TimeoutError:
            raise MachineTimeout(f"the agent did not answer within {seconds:g} s") from None

    async def run(
        self, command: Command, stdin: bytes, sink: OutputSink, started: Callable[[wire.Started], None]
    ) -> wire.Exited:
        """Run the command to its end; output goes to `sink` as it comes, `started` is called once.

        Raises CommandFailed when the command could not be started, and MachineError when the guest breaks the
        protocol or goes away. There is no deadline here: the caller owns the job's time and says it with `signal`.
        """
        flags = wire.RunFlag.KEEP if command.keep else wire.RunFlag(0)
        return await self._command(command, stdin, sink, started, flags)

    async def _command(
        self,
        command: Command,
        stdin: bytes,
        sink: OutputSink,
        started: Callable[[wire.Started], None],
        flags: wire.RunFlag,
    ) -> wire.Exited:
        await self._send_command(command, _flags(command) | flags)
        async with self._background(self._keep_alive()), self._background(self._feed(stdin)):
            exited = await self._until_exited(sink, started)
        if flags:
            await self._rest()
        return exited

    async def _rest(self) -> None:
        """All of this command has been said: the agent may go back to waiting, and what was granted for it is void."""
        await self._send(wire.frame(wire.Kind.REST))
        if not isinstance(await self._answer(), wire.Rested):
            raise GuestProtocolError("the guest did not rest when it was told to")
        self._owed.clear()
        self._stdin_credit, self._stdin_unacknowledged = wire.STDIN_WINDOW, 0

    async def signal(self, number: signals.Signals) -> None:
        """Send a signal to the entrypoint's process group; SIGKILL ends every process of the job."""
        await self._send(wire.frame(wire.Kind.SIGNAL, bytes([number])))

    async def collect(
        self, globs: Sequence[str], sink: ArtifactSink, *, max_bytes: int, max_count: int
    ) -> wire.Collected:
        """Fetch what the globs match below the working folder, after the command has ended.

        Returns how many files came and how many files and folders were left out: over the limits, unreadable, too deep,
        or of a name that is no UTF-8. A glob that begins with `!` takes out what the others match. Raises MachineError.
        """
        await self._send(wire.collect([glob.encode() for glob in globs], max_bytes=max_bytes, max_count=max_count))
        await self._grant(Stream.ARTIFACTS, WINDOW)
        unnamed = seen = 0
        async with self._background(self._keep_alive()):
            while True:
                message = await self._receive()
                if isinstance(message, wire.Collected):
                    if message.count != seen:
                        raise GuestProtocolError(f"the guest counted {message.count} artifacts and sent {seen}")
                    return wire.Collected(seen - unnamed, message.skipped + unnamed)
                if not isinstance(message, wire.ArtifactStart) or message.size > max_bytes or seen >= max_count:
                    raise GuestProtocolError("the guest sent an artifact that was not asked for")
                seen += 1
                max_bytes -= message.size
                unnamed += not await self._receive_artifact(message, sink)

    # --- what those are made of -----------------------------------------------------------------------------------

    async def _send_command(self, command: Command, flags: wire.RunFlag) -> None:
        request = wire.run(
            uid=command.uid,
            gid=command.gid,
            max_processes=command.max_processes,
            flags=flags,
            cwd=command.cwd.encode(),
            prefork=command.prefork,
        )
        await self._send(_words(command) + request)
        await self._grant(Stream.STDOUT, WINDOW)
        await self._grant(Stream.STDERR, WINDOW)

    async def _until_exited(self, sink: OutputSink, started: Callable[[wire.Started], None]) -> wire.Exited:
        has_started = False
        pending = {Stream.STDOUT: 0, Stream.STDERR: 0}
        discarded: set[Stream] = set()
        while True:
            message = await self._receive()
            match message:
                case wire.Output(stream, data) if has_started:
                    await sink.write(stream, data)
                    pending[stream] += len(data)
                    if stream not in discarded and sink.full(stream):
                        discarded.add(stream)
                        await self._send(wire.frame(wire.Kind.DISCARD, stream=stream))
                    if pending[stream] >= WINDOW // 4:
                        await self._grant(stream, pending[stream])
                        pending[stream] = 0
                case wire.Started() if not has_started:
                    has_started = True
                    started(message)
                case wire.Exited() if has_started:
                    return message
                case wire.Failed(stage, errno) if not has_started:
                    raise CommandFailed(stage, errno)
                case _:
                    raise GuestProtocolError(f"the guest sent {type(message).__name__} at the wrong time")

    async def _receive_artifact(self, artifact: wire.ArtifactStart, sink: ArtifactSink) -> bool:
        try:
            path: str | None = artifact.path.decode()
        except UnicodeDecodeError:
            path = None
        if path is not None:
            await sink.begin(path, artifact.size)
        left = artifact.size
        while left > 0:
            message = await self._receive()
            if not isinstance(message, wire.ArtifactData) or len(message.data) > left:
                raise GuestProtocolError("the guest broke off an artifact")
            left -= len(message.data)
            if path is not None:
                await sink.write(message.data)
            await self._grant(Stream.ARTIFACTS, len(message.data))
        if path is not None:
            await sink.end()
        return path is not None

    async def _receive(self) -> wire.Message:
        """The next message that matters, checked against what was paid for."""
        while True:
            await self._rate.take()
            message = await self._read_frame()
            match message:
                case wire.Output(stream, data):
                    self._pay(stream, len(data))
                case wire.ArtifactData(data):
                    self._pay(Stream.ARTIFACTS, len(data))
                case wire.StdinCredit(size):
                    self._stdin_credited(size)
                    continue
                case wire.Pong():
                    self._pings -= 1
                    if self._pings < 0:
                        raise GuestProtocolError("the guest answered a question that was not asked")
                    continue
                case _:
                    pass
            return message

    async def _read_frame(self) -> wire.Message:
        self._frames += 1
        if self._frames % 64 == 0:
            await asyncio.sleep(0)  # buffered frames come without suspending; the others on this loop want a turn
        try:
            length, kind, stream = wire.parse_header(await self._reader.readexactly(wire.HEADER.size))
            payload = await self._reader.readexactly(length) if length else b""
        except (asyncio.IncompleteReadError, OSError):
            raise MachineDied("the machine went away in the middle of its job") from None
        return wire.parse(kind, stream, payload)

    def _pay(self, stream: Stream, size: int) -> None:
        owed = self._owed.get(stream, 0) - size
        if owed < 0:
            raise GuestProtocolError("the guest sent more than it was granted")
        self._owed[stream] = owed

    async def _grant(self, stream: Stream, size: int) -> None:
        self._owed[stream] = self._owed.get(stream, 0) + size
        await self._send(wire.credit(stream, size))

    def _stdin_credited(self, size: int) -> None:
        if not 0 < size <= self._stdin_unacknowledged:
            raise GuestProtocolError("the guest took more standard input than it was given")
        self._stdin_unacknowledged -= size
        self._stdin_credit += size
        self._stdin_more.set()

    async def _feed(self, stdin: bytes) -> None:
        view = memoryview(stdin)
        while view:
            while self._stdin_credit == 0:
                self._stdin_more.clear()
                await self._stdin_more.wait()
            chunk = view[: self._stdin_credit]
            view = view[len(chunk) :]
            self._stdin_credit -= len(chunk)
            self._stdin_unacknowledged += len(chunk)
            await self._send(wire.frame(wire.Kind.STDIN, bytes(chunk)))
        await self._send(wire.frame(wire.Kind.STDIN))

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            self._pings += 1
            await self._send(wire.frame(wire.Kind.PING))

    async def _send(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError:
            raise MachineDied("the machine went away in the middle of its job") from None

    @contextlib.asynccontextmanager
    async def _background(self, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        """Run a coroutine beside the block; its failure is the reader's to notice, as the stream's end."""
        task = asyncio.create_task(work)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, MachineDied):
                raise error


def _welcome(silence_seconds: int = SILENCE_SECONDS, *, ahead_seconds: int = 0) -> bytes:
    return wire.welcome(silence_seconds, time.time_ns() + ahead_seconds * 1_000_000_000)


def _flags(command: Command) -> wire.RunFlag:
    return wire.RunFlag.ISOLATED if command.isolated else wire.RunFlag(0)


def _words(command: Command) -> bytes:
    """The frames with a command's arguments and environment."""
    frames = [wire.frame(wire.Kind.ARG, arg.encode()) for arg in command.argv]
    frames += [wire.frame(wire.Kind.ENV, f"{name}={text}".encode()) for name, text in command.env.items()]
    return b"".join(frames)
