"""A command of a session: its streams or its terminal, its signals, its exit."""

from __future__ import annotations

import asyncio
import signal as signals
from collections.abc import AsyncIterator
from dataclasses import dataclass

from belljar.model.errors import MachineTimeout
from belljar.node.guest import requests, wire
from belljar.node.guest.channel import Channel, ChannelBroken, SessionState
from belljar.node.guest.channel_messages import ChannelFlag, ChannelState
from belljar.node.guest.command import CommandFailed
from belljar.node.guest.wire import FrameType, Output, Stream


class ProcessEnded(Exception):
    """The command has ended: it takes no input and no signal."""


class OutputTooLarge(Exception):
    """The command wrote more output than was wanted."""


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """The size of a terminal in characters."""

    columns: int
    rows: int

    def __post_init__(self) -> None:
        if not (0 < self.columns < 1 << 16 and 0 < self.rows < 1 << 16):
            raise ValueError(f"a terminal of {self.columns} x {self.rows} characters does not exist")


class Process(Channel):
    """A command in the guest.

    Its exit comes behind the last byte of its output, so that output must be read or discarded. The exit is kept, also
    in the guest, until `close`.
    """

    def __init__(self, number: int, state: SessionState, *, has_terminal: bool) -> None:
        super().__init__(number, state)
        #: Its process number in the sandbox; 0 until it has started.
        self.pid = 0
        self.has_terminal = has_terminal
        self._failed: wire.Failed | None = None
        self._exited: wire.Exited | None = None

    @classmethod
    def resumed(cls, number: int, described: ChannelState, state: SessionState) -> Process:
        """Return a command of a machine that was resumed, as its agent described it."""
        process = cls(number, state, has_terminal=ChannelFlag.TERMINAL in described.flags)
        process.pid = described.pid
        process._input_ended = ChannelFlag.INPUT_ENDED in described.flags
        process._input_credit = described.input_credit
        # The new host has sent nothing, but the agent grants what it still holds of the input sent before.
        process._input_window = wire.WIDE_STDIN_WINDOW
        process._input_unacknowledged = wire.WIDE_STDIN_WINDOW - described.input_credit
        return process

    @property
    def exited(self) -> wire.Exited | None:
        """How it ended; None while it runs."""
        return self._exited

    @property
    def is_live(self) -> bool:
        """Whether it runs or is being started."""
        return not self.is_closed and not self._has_ended()

    async def wait_started(self) -> None:
        """Wait until it runs. Raises CommandFailed when it could not be started, MachineTimeout, ChannelBroken."""
        try:
            async with asyncio.timeout(self._state.reply_seconds):
                while not self.pid and not self._failed:
                    await self._wait()
        except TimeoutError:
            raise MachineTimeout(f"the command did not start within {self._state.reply_seconds:g} s") from None
        if self._failed:
            raise CommandFailed(self._failed.stage, self._failed.errno)

    async def output(self) -> AsyncIterator[Output]:
        """Yield its output in pieces, to the end. Raises ChannelBroken when it breaks off before the exit."""
        while (piece := await self.read()) is not None:
            yield piece

    async def wait(self) -> wire.Exited:
        """Return how it ended. Read or discard its output meanwhile. Raises ChannelBroken."""
        while self._exited is None:
            await self._wait()
        return self._exited

    async def communicate(self, stdin: bytes = b"", *, max_bytes: int) -> tuple[wire.Exited, bytes, bytes]:
        """Send the input and its end, and return the exit and the whole output.

        Raises OutputTooLarge beyond `max_bytes` of output, ChannelBroken.
        """
        received = {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
        feeding = asyncio.create_task(self._feed(stdin))
        try:
            async for piece in self.output():
                received[piece.stream] += piece.data
                if sum(map(len, received.values())) > max_bytes:
                    raise OutputTooLarge(f"the command wrote more than {max_bytes} bytes of output")
            return await self.wait(), bytes(received[Stream.STDOUT]), bytes(received[Stream.STDERR])
        finally:
            feeding.cancel()
            await asyncio.wait([feeding])

    async def discard(self, stream: Stream) -> None:
        """Let the guest read and drop the stream, so that the command is not held up by it. Raises ChannelBroken."""
        if not self._has_ended():
            await self._state.send(wire.frame(FrameType.DISCARD, stream=stream, channel=self.id))

    async def resize(self, size: TerminalSize) -> None:
        """Set the size of its terminal. Raises ChannelBroken."""
        if not self._has_ended():
            await self._state.send(requests.resize(self.id, size.columns, size.rows))

    async def signal(self, number: signals.Signals, *, descendants: bool = False) -> None:
        """Send a signal to its process group; with `descendants`, kill every process that it started.

        Raises ProcessEnded when it has ended, except with `descendants`, ChannelBroken.
        """
        if descendants:
            number = signals.SIGKILL
        elif self._has_ended():
            raise ProcessEnded(f"the process {self.pid} has ended")
        if not self.is_closed:
            payload = bytes([number, descendants])
            await self._state.send(wire.frame(FrameType.SIGNAL, payload, channel=self.id))

    async def _feed(self, stdin: bytes) -> None:
        try:
            await self.write(stdin)
            await self.end_input()
        except (ProcessEnded, ChannelBroken):
            pass  # it ended without reading everything; the reader meets a broken channel too

    def _check_input(self) -> None:
        if self._has_ended():
            raise ProcessEnded(f"the process {self.pid} has ended")
        super()._check_input()

    def _handle_other(self, message: wire.Message) -> None:
        running = bool(self.pid) and self._exited is None
        match message:
            case wire.Started(pid) if not self.pid and not self._failed:
                self.pid = pid
            case wire.Failed() if not self.pid and not self._failed:
                self._failed = message
            case wire.Exited() if running:
                self._exited = message
            case _:
                self._check(False, message)

    def _may_output(self) -> bool:
        return bool(self.pid) and self._exited is None

    def _may_close(self, errno: int) -> bool:
        """After a failed start, after CLOSE, or when the agent needs the place of a command that has ended."""
        return not self.is_closed and (self._failed is not None or self._close_sent or self._exited is not None)

    def _takes_input(self) -> bool:
        return self.is_live

    def _has_ended(self) -> bool:
        return self._exited is not None or self._failed is not None
