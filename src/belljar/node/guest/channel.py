"""One channel of a session: its output within the credit that it granted, its input within the agent's.

A channel holds at most the bytes that it granted. What the guest sends beyond its credit, before its channel is open,
or after its end, breaks the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable

from belljar.model.errors import GuestProtocolError, MachineTimeout
from belljar.node.guest import requests, wire
from belljar.node.guest.channel_messages import Closed
from belljar.node.guest.wire import FrameType, Output, Stream

#: Bytes of one stream that may be in flight: of a channel that nobody has read yet, and of one that is read.
IDLE_WINDOW = 32 * 1024
READER_WINDOW = 256 * 1024
#: Bytes of output that are read before the wide window is granted: most commands write less.
MUCH_OUTPUT = IDLE_WINDOW // 4
#: Pieces of output that are kept apart in the order of their arrival; beyond it those of one stream are joined.
_MAX_PIECES = 256
#: Bytes of input in one frame, so that other channels' frames are not delayed.
_INPUT_PIECE = 32 * 1024


class ChannelBroken(Exception):
    """The channel broke off: its bytes until now are not all, and its end is unknown."""


class TooManyChannels(Exception):
    """The sandbox has as many commands or connections as it may have; end one first."""


class SessionState:
    """What the channels of one session share: the way to the agent, and how the session ended."""

    #: Channels with a READER_WINDOW; with those that have an IDLE_WINDOW this bounds a session's memory to 52 MiB.
    MAX_WIDE = 64

    def __init__(self, send: Callable[[bytes], Awaitable[None]], reply_seconds: float) -> None:
        self._send = send
        #: Deadline for replies that depend on no command.
        self.reply_seconds = reply_seconds
        self.wide = 0
        #: Why nothing may be sent any more; "" while the session runs.
        self.ended = ""

    async def send(self, data: bytes) -> None:
        """Send frames. Raises ChannelBroken when the session has ended, MachineDied."""
        if self.ended:
            raise ChannelBroken(self.ended)
        await self._send(data)


class Channel:
    """The host's end of one channel. One task reads it, any may write; `handle` is called by the session's reader."""

    #: The streams that it receives.
    STREAMS: tuple[Stream, ...] = (Stream.STDOUT, Stream.STDERR)

    def __init__(self, number: int, state: SessionState) -> None:
        #: Its number, unique in its session; a command keeps it when the machine is resumed.
        self.id = number
        self._state = state
        self._pieces: deque[tuple[Stream, bytearray]] = deque()
        self._credit = dict.fromkeys(self.STREAMS, 0)
        self._unread = dict.fromkeys(self.STREAMS, 0)
        self._window = IDLE_WINDOW
        self._read_bytes = 0
        self._input_window = wire.STDIN_WINDOW
        self._input_credit = wire.STDIN_WINDOW
        self._input_unacknowledged = 0
        self._input_ended = False
        #: Bytes of input that were sent.
        self.sent_bytes = 0
        self._changed = asyncio.Event()
        self._input_lock = asyncio.Lock()
        self._broken = ""
        self._close_sent = False
        #: Whether the agent has sent its last frame.
        self.is_closed = False

    # --- the session's reader ---------------------------------------------------------------------------------------

    def handle(self, message: wire.Message) -> None:
        """Take a message of the agent. Raises GuestProtocolError when it may not come now."""
        match message:
            case wire.Output(stream, data):
                self._receive_output(stream, data)
            case wire.StdinCredit(size):
                self._receive_credit(size)
            case Closed(errno):
                self._check(self._may_close(errno), message)
                self.is_closed = True
                if self._window == READER_WINDOW:
                    self._state.wide -= 1
            case _:
                self._handle_other(message)
        self._changed.set()

    def break_off(self, reason: str) -> None:
        """Note that nothing more will come; whoever waits gets ChannelBroken, behind what has been received."""
        self._broken = self._broken or reason
        self._changed.set()

    @property
    def is_live(self) -> bool:
        """Whether it takes one of the places for commands or connections that run."""
        return not self.is_closed

    def _handle_other(self, message: wire.Message) -> None:
        """Take a message that only this kind of channel has."""
        raise NotImplementedError

    def _may_output(self) -> bool:
        raise NotImplementedError

    def _may_close(self, errno: int) -> bool:
        raise NotImplementedError

    def _has_ended(self) -> bool:
        """Return whether no more output can come."""
        raise NotImplementedError

    def _takes_input(self) -> bool:
        """Return whether the other end may still read."""
        return not self.is_closed

    def _check(self, allowed: bool, message: wire.Message) -> None:
        if not allowed:
            raise GuestProtocolError(f"unexpected {type(message).__name__} from guest agent on channel {self.id}")

    def _receive_credit(self, size: int) -> None:
        """Take credit for what was sent, or for the wide window, once."""
        if self._input_window == wire.STDIN_WINDOW and size == wire.WIDE_STDIN_WINDOW - wire.STDIN_WINDOW:
            self._input_window = wire.WIDE_STDIN_WINDOW
        elif size <= self._input_unacknowledged:
            self._input_unacknowledged -= size
        else:
            raise GuestProtocolError("unexpected STDIN_CREDIT from guest agent (more than was sent)")
        self._input_credit += size

    def _receive_output(self, stream: Stream, data: bytes) -> None:
        left = self._credit.get(stream, 0) - len(data)
        if left < 0 or not self._may_output():
            raise GuestProtocolError(f"guest agent sent more {stream.name} bytes on a channel than it was granted")
        self._credit[stream] = left
        if self._close_sent:
            return  # nobody will read it
        self._unread[stream] += len(data)
        last = next((piece for kept, piece in reversed(self._pieces) if kept is stream), None)
        adjacent = bool(self._pieces) and self._pieces[-1][0] is stream
        if last is not None and ((adjacent and len(last) < wire.MAX_PAYLOAD) or len(self._pieces) >= _MAX_PIECES):
            last.extend(data)
        else:
            self._pieces.append((stream, bytearray(data)))

    # --- its users --------------------------------------------------------------------------------------------------

    async def read(self) -> Output | None:
        """Return the next piece of output in the order of its arrival; None at the end.

        Raises ChannelBroken when the channel breaks off, MachineDied.
        """
        await self._grant()
        while not self._pieces:
            if self._has_ended():
                return None
            await self._wait()
        stream, data = self._pieces.popleft()
        self._unread[stream] -= len(data)
        self._read_bytes += len(data)
        if not self._has_ended() and not self._broken:
            self._widen()
            await self._grant()
        return Output(stream, bytes(data))

    async def write(self, data: bytes) -> None:
        """Send input, waiting while the guest does not take it. Raises ChannelBroken, MachineDied."""
        async with self._input_lock:
            view = memoryview(data)
            while view:
                await self._wait_for_input_credit()
                chunk = view[: min(self._input_credit, _INPUT_PIECE)]
                view = view[len(chunk) :]
                self._input_credit -= len(chunk)
                self._input_unacknowledged += len(chunk)
                await self._state.send(wire.frame(FrameType.STDIN, bytes(chunk), channel=self.id))
                self.sent_bytes += len(chunk)

    async def end_input(self) -> None:
        """Send the end of the input; a second call does nothing. Raises ChannelBroken, MachineDied."""
        async with self._input_lock:
            if self._input_ended or not self._takes_input():
                return
            await self._state.send(self.end_of_input())

    def end_of_input(self) -> bytes:
        """Return the frame that ends the input, after which none may be sent."""
        self._input_ended = True
        return wire.frame(FrameType.STDIN, channel=self.id)

    async def close(self) -> None:
        """Close the channel and wait until the agent has closed it. Raises MachineTimeout, MachineDied."""
        try:
            async with asyncio.timeout(self._state.reply_seconds):
                await self.send_close()
                while not (self._state.ended or self.is_closed or self._broken):
                    await self._wait()
        except TimeoutError:
            seconds = self._state.reply_seconds
            raise MachineTimeout(f"the guest agent did not close a channel within {seconds:g} s") from None

    async def send_close(self) -> None:
        """Have the agent close the channel, without waiting until it has. Raises MachineDied."""
        self._pieces.clear()
        if self._state.ended or self._broken or self._close_sent or self.is_closed:
            return
        self._close_sent = True
        with contextlib.suppress(ChannelBroken):
            await self._state.send(wire.frame(FrameType.CLOSE, channel=self.id))
            await self._grant(IDLE_WINDOW)

    def first_credit(self) -> bytes:
        """Return the frames that grant the first credit, to be sent behind the one that opens the channel."""
        self._credit = dict.fromkeys(self.STREAMS, self._window)
        return b"".join(requests.credit(stream, self._window, self.id) for stream in self.STREAMS)

    async def _wait_for_input_credit(self) -> None:
        while self._input_credit == 0:
            self._check_input()
            await self._wait()
        self._check_input()

    def _check_input(self) -> None:
        """Raise when input cannot be sent any more."""
        if self._broken or self.is_closed or self._close_sent:
            raise ChannelBroken(self._broken or "the channel was closed")
        if self._input_ended:
            raise ValueError("input was sent after its end")

    async def _wait(self) -> None:
        """Wait for the next change. Raises ChannelBroken when none can come."""
        if self._broken or self.is_closed:
            raise ChannelBroken(self._broken or "the channel was closed")
        self._changed.clear()
        await self._changed.wait()

    def _widen(self) -> None:
        is_wanted = self._window == IDLE_WINDOW and self._read_bytes >= MUCH_OUTPUT
        if is_wanted and not self.is_closed and self._state.wide < SessionState.MAX_WIDE:
            self._window = READER_WINDOW
            self._state.wide += 1

    async def _grant(self, min_size: int | None = None) -> None:
        """Grant credit up to the window, when a quarter of it was taken."""
        if self._state.ended or self._has_ended() or self.is_closed:
            return
        for stream in self.STREAMS:
            size = self._window - self._credit[stream] - self._unread[stream]
            if size >= (min_size or self._window // 4):
                self._credit[stream] += size
                await self._state.send(requests.credit(stream, size, self.id))
