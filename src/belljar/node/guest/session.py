"""A session: many commands, file operations and connections at once in one machine.

One task reads every frame and hands it to its channel, without ever waiting for a reader: each channel holds at most
what it granted. A frame that may not come ends the conversation, and with it the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from belljar.model.errors import BelljarError, GuestProtocolError, MachineDied, MachineTimeout
from belljar.model.secrets import SecretValue
from belljar.node.guest import requests, wire
from belljar.node.guest.channel import Channel, ChannelBroken, SessionState, TooManyChannels
from belljar.node.guest.channel_messages import ChannelState, Serving, Usage
from belljar.node.guest.command import Command, CommandFailed
from belljar.node.guest.frame_stream import FrameStream
from belljar.node.guest.port_stream import PortStream
from belljar.node.guest.process import Process, TerminalSize
from belljar.node.guest.usage_meter import UsageMeter
from belljar.node.guest.wire import ExecFlag, FrameType, RunFlag
from belljar.system.background import report_failure

#: Commands (with file operations) and connections that run at a time, and channels with commands that have ended.
MAX_COMMANDS = 256
MAX_CONNECTIONS = 128
MAX_CHANNELS = 1024
#: For a frame that tells the agent that nobody needs a channel any more, when it does not read.
_ABANDON_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionRequest:
    """What a machine is started with as a sandbox."""

    uid: int = 1000
    gid: int = 1000
    #: Processes of the whole sandbox.
    max_processes: int = 512
    #: Whether the machine has a script's disk; without one the working folder is empty.
    script: bool = False
    #: Secrets that are files below /run/secrets, by their names.
    secret_files: Mapping[str, SecretValue] = field(default_factory=dict)
    #: False only in tests that run the agent as an ordinary process.
    isolated: bool = True


class Session:
    """The host's end of a session. Use `AgentConnection.open_session` or `resume_session`."""

    def __init__(self, frames: FrameStream, *, reply_seconds: float) -> None:
        self._frames = frames
        self._state = SessionState(frames.send, reply_seconds)
        self._channels: dict[int, Channel] = {}
        self._processes: dict[int, Process] = {}
        self._operations: set[Process] = set()
        self._last_number = 0
        self._suspended = asyncio.Event()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._meter = UsageMeter(self._state, self._suspended)

    @property
    def processes(self) -> Mapping[int, Process]:
        """The commands by their `id`, also those that have ended and were not closed."""
        return MappingProxyType(self._processes)

    async def start(self, command: Command, *, terminal: TerminalSize | None = None, has_input: bool = True) -> Process:
        """Start a command that runs until it ends or is closed. Its `max_processes`, `prefork`, `keep` and
        `secret_files` do not apply. Without `has_input` its input has ended from the beginning.

        Raises CommandFailed, TooManyChannels, ChannelBroken, MachineError.
        """
        flags = ExecFlag.TERMINAL if terminal else ExecFlag(0)
        process = await self._execute(command, flags, terminal or TerminalSize(80, 24), has_input=has_input)
        self._processes[process.id] = process
        return process

    @contextlib.asynccontextmanager
    async def open_command(self, command: Command, *, terminal: TerminalSize | None = None) -> AsyncIterator[Process]:
        """Start a command; at the block's end kill it and what it started, and forget it. Raises as `start` does."""
        process = await self.start(command, terminal=terminal)
        try:
            yield process
        finally:
            await process.close()

    @contextlib.asynccontextmanager
    async def open_operation(self, arguments: list[str], *, uid: int, gid: int) -> AsyncIterator[Process]:
        """Start a file operation of the agent; at the block's end cancel it, and wait until it has ended.

        Raises as `start` does.
        """
        command = Command(argv=arguments, env={}, cwd="/", uid=uid, gid=gid)
        process = await self._execute(command, ExecFlag.FILES, TerminalSize(80, 24))
        self._operations.add(process)
        try:
            yield process
        finally:
            self._operations.discard(process)
            await (process.close() if process.is_live else self._abandon(process))

    @contextlib.asynccontextmanager
    async def open_port(self, port: int, *, ipv6: bool = False) -> AsyncIterator[PortStream]:
        """Connect to a port of the machine's loopback device; at the block's end close the connection.

        Raises PortClosed, TooManyChannels, ChannelBroken, MachineError.
        """
        stream = PortStream(self._new_number(MAX_CONNECTIONS, PortStream), self._state, port)
        try:
            await self._open(stream, requests.connect(stream.id, port, ipv6=ipv6))
            await stream.wait_connected()
            yield stream
        finally:
            await self._abandon(stream)

    def usage(self, interval_seconds: float = 1.0) -> AsyncGenerator[Usage, None]:
        """Yield the machine's usage at an interval of at least 0.1 s; the shortest wanted interval holds for all.

        Raises ChannelBroken when the session ends.
        """
        return self._meter.subscribe(interval_seconds)

    async def suspend(self) -> None:
        """Get the machine ready to be frozen: end connections and file operations; commands continue after the resume.

        Afterwards the session is over: what was received can still be read, then ChannelBroken is raised. Raises
        MachineTimeout, MachineDied, GuestProtocolError.
        """
        for channel in [*self._operations, *self._connections()]:
            await channel.close()
            channel.break_off("the sandbox was paused")
        suspend = wire.frame(FrameType.SUSPEND)
        self._state.ended = "the sandbox was paused"  # nothing may be sent behind SUSPEND
        try:
            async with asyncio.timeout(self._state.reply_seconds):
                await self._frames.send(suspend)
                await self._suspended.wait()
        except TimeoutError:
            raise MachineTimeout(f"the guest agent did not suspend within {self._state.reply_seconds:g} s") from None
        if self._ended.done() and (error := self._ended.exception()):
            raise error

    async def wait_closed(self) -> None:
        """Wait until the session ends: after `suspend`, or raise the error that ended it (MachineError)."""
        await asyncio.shield(self._ended)

    # --- its life ---------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def run(self, request: SessionRequest | None) -> AsyncIterator[Session]:
        """Start the session (None: resume it) and serve it while the block runs."""
        if request is not None:
            await self._begin(request)
        else:
            await self._attach()
        reader = asyncio.create_task(self._read())
        try:
            async with self._frames.keep_alive(lambda: not self._state.ended):
                yield self
        finally:
            self._end("the session has ended", None)
            reader.cancel()
            await asyncio.wait([reader])

    async def _begin(self, request: SessionRequest) -> None:
        for name, value in request.secret_files.items():
            await self._frames.send(requests.secret_file(name, value, uid=request.uid, gid=request.gid))
        flags = RunFlag.ISOLATED if request.isolated else RunFlag(0)
        flags |= RunFlag.SCRIPT if request.script else RunFlag(0)
        await self._frames.send(
            requests.session(uid=request.uid, gid=request.gid, max_processes=request.max_processes, flags=flags)
        )
        message = await self._frames.receive(self._state.reply_seconds)
        if isinstance(message, wire.Failed):
            raise CommandFailed(message.stage, message.errno)
        if not isinstance(message, Serving):
            raise GuestProtocolError(f"unexpected {type(message).__name__} from guest agent (expected Serving)")

    async def _attach(self) -> None:
        """Learn which commands the resumed machine has."""
        await self._frames.send(wire.frame(FrameType.CHANNELS))
        try:
            async with asyncio.timeout(self._state.reply_seconds):
                while True:
                    number, message = await self._frames.receive_of_any_channel()
                    if number == 0 and isinstance(message, Serving):
                        self._last_number = max(self._processes, default=0)
                        return
                    self._accept_resumed(number, message)
        except TimeoutError:
            raise MachineTimeout(f"no list of channels within {self._state.reply_seconds:g} s") from None

    def _accept_resumed(self, number: int, message: wire.Message) -> None:
        process = self._processes.get(number)
        if isinstance(message, ChannelState) and process is None and number > 0 and len(self._processes) < MAX_CHANNELS:
            self._processes[number] = Process.resumed(number, message, self._state)
            self._channels[number] = self._processes[number]
        elif isinstance(message, wire.Exited) and process is not None:
            process.handle(message)
        else:
            raise GuestProtocolError(f"unexpected {type(message).__name__} from guest agent (expected Channel)")

    async def _read(self) -> None:
        try:
            while not self._suspended.is_set():
                self._handle(*await self._frames.receive_of_any_channel())
        except BelljarError as error:
            self._end(error.message, error)
            self._frames.close()  # the agent ends its machine
        except Exception as error:  # noqa: BLE001 (a bug must not leave callers that wait for ever)
            report_failure("session_reader", error)
            self._end("the session failed", GuestProtocolError("the host could not handle a guest agent's message"))
            self._frames.close()
        else:
            self._end("the sandbox was paused", None)

    def _handle(self, number: int, message: wire.Message) -> None:
        channel = self._channels.get(number)
        if channel is not None:
            channel.handle(message)
            if channel.is_closed:
                del self._channels[number]
                self._processes.pop(number, None)
        elif number == 0 and isinstance(message, Usage) and self._meter.was_used:
            self._meter.share(message)
        elif number == 0 and isinstance(message, wire.Suspended) and self._state.ended:
            self._suspended.set()
        else:
            raise GuestProtocolError(f"unexpected {type(message).__name__} from guest agent on channel {number}")

    def _end(self, reason: str, error: BelljarError | None) -> None:
        self._state.ended = self._state.ended or reason
        for channel in [*self._channels.values()]:
            channel.break_off(reason)
        if not self._ended.done():
            if error is not None:
                self._ended.set_exception(error)
                self._ended.exception()  # also when nobody waits for it
            else:
                self._ended.set_result(None)
        self._suspended.set()

    # --- channels ---------------------------------------------------------------------------------------------------

    async def _execute(
        self, command: Command, flags: ExecFlag, size: TerminalSize, *, has_input: bool = True
    ) -> Process:
        number = self._new_number(MAX_COMMANDS, Process)
        if len(self._channels) >= MAX_CHANNELS:
            await self._forget_oldest()
        process = Process(number, self._state, has_terminal=ExecFlag.TERMINAL in flags)
        request = requests.execute(
            number,
            uid=command.uid,
            gid=command.gid,
            flags=flags,
            columns=size.columns,
            rows=size.rows,
            cwd=command.cwd.encode(),
        )
        strings = requests.strings(command.argv, command.env, number)
        strings += requests.secret_strings(command.secret_env, number)
        end = b"" if has_input else process.end_of_input()
        try:
            await self._open(process, strings + request, end)
            await process.wait_started()
        except (asyncio.CancelledError, MachineTimeout):
            await self._abandon(process)
            raise
        return process

    async def _abandon(self, channel: Channel) -> None:
        """Have a channel closed that nobody will use; its number is free once the agent has closed it."""
        with contextlib.suppress(TimeoutError, MachineDied):
            async with asyncio.timeout(_ABANDON_SECONDS):
                await channel.send_close()

    async def _forget_oldest(self) -> None:
        ended = next((process for process in self._processes.values() if not process.is_live), None)
        if ended is not None:
            await ended.close()

    async def _open(self, channel: Channel, request: bytes, behind: bytes = b"") -> None:
        """Open a channel, in one piece: each piece wakes the agent."""
        self._channels[channel.id] = channel
        try:
            await self._state.send(request + channel.first_credit() + behind)
        except ChannelBroken:
            self._channels.pop(channel.id, None)
            raise

    def _connections(self) -> list[PortStream]:
        return [channel for channel in self._channels.values() if isinstance(channel, PortStream)]

    def _new_number(self, limit: int, kind: type[Channel]) -> int:
        live = sum(1 for channel in self._channels.values() if isinstance(channel, kind) and channel.is_live)
        if live >= limit:
            raise TooManyChannels(f"the sandbox runs {limit} commands or connections, the limit; end one first")
        while True:
            self._last_number = self._last_number % 0xFFFF + 1
            if self._last_number not in self._channels:
                return self._last_number
