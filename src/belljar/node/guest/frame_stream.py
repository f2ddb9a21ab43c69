"""Frames over the byte stream to one agent, with flow control and keep-alive.

Every byte received is hostile. Frames are bounded and parsed strictly, output and artifacts must be covered by credit,
and frames above a rate are delayed. Memory does not grow with what the guest sends: the host grants credit again only
after a sink has taken the bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from belljar.model.errors import GuestProtocolError, MachineDied, MachineTimeout
from belljar.node.guest import requests, wire
from belljar.node.guest.wire import FrameType, Stream

#: Bytes of one stream that may be in flight; the guest's writer blocks beyond it.
WINDOW = 512 * 1024
#: Frames a second that the host reads from one guest, so that many tiny frames cannot occupy the host's event loop.
FRAMES_PER_SECOND = 20_000
#: Seconds between PING frames while an operation runs.
PING_SECONDS = 5
#: Frames after which a reader yields to the event loop's other tasks.
_FRAMES_PER_TURN = 64


@dataclass(slots=True)
class _RateLimit:
    """A token bucket over frames."""

    tokens: float = FRAMES_PER_SECOND
    updated: float = field(default_factory=time.monotonic)

    async def acquire(self) -> None:
        """Take a token, waiting a moment when none is left."""
        self.tokens -= 1
        if self.tokens >= 1:
            return
        now = time.monotonic()
        self.tokens = min(FRAMES_PER_SECOND, self.tokens + (now - self.updated) * FRAMES_PER_SECOND)
        self.updated = now
        if self.tokens < 1:
            await asyncio.sleep(0.05)


class FrameStream:
    """A stream of frames to and from one agent. One task receives at a time; any task may send."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._rate = _RateLimit()
        self._credit: dict[Stream, int] = {}
        self._stdin_credit = wire.STDIN_WINDOW
        self._stdin_unacknowledged = 0
        self._stdin_credit_added = asyncio.Event()
        self._pings = 0
        self._frames = 0

    async def send(self, data: bytes) -> None:
        """Send encoded frames, waiting while the agent does not read. Raises MachineDied."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError:
            raise MachineDied("lost the connection to the guest agent") from None

    def close(self) -> None:
        """Close the stream; the agent ends its machine."""
        self._writer.close()

    async def receive(self, timeout_seconds: float | None = None) -> wire.Message:
        """Return the next message of an operation, checked against credit; PONG and STDIN_CREDIT are handled here.

        Raises MachineTimeout when none comes within `timeout_seconds` (None: no limit), MachineDied,
        GuestProtocolError.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._receive()
        except TimeoutError:
            raise MachineTimeout(f"the guest agent did not answer within {timeout_seconds:g} s") from None

    async def receive_of_any_channel(self) -> tuple[int, wire.Message]:
        """Return the next message with its channel; the caller checks credit, PONG is handled here.

        Raises MachineDied, GuestProtocolError.
        """
        while True:
            await self._rate.acquire()
            channel, message = await self._read_frame()
            if isinstance(message, wire.Pong) and channel == 0:
                self._accept_pong()
                continue
            return channel, message

    async def grant(self, stream: Stream, size: int) -> None:
        """Allow the agent `size` more bytes of a stream. Raises MachineDied."""
        self._credit[stream] = self._credit.get(stream, 0) + size
        await self.send(requests.credit(stream, size))

    def reset_credit(self) -> None:
        """Start a new command's flow control, as the agent does on REST."""
        self._credit.clear()
        self._stdin_credit, self._stdin_unacknowledged = wire.STDIN_WINDOW, 0

    async def send_stdin(self, stdin: bytes) -> None:
        """Send standard input and its end, as the agent grants credit for it. Raises MachineDied."""
        view = memoryview(stdin)
        while view:
            while self._stdin_credit == 0:
                self._stdin_credit_added.clear()
                await self._stdin_credit_added.wait()
            chunk = view[: self._stdin_credit]
            view = view[len(chunk) :]
            self._stdin_credit -= len(chunk)
            self._stdin_unacknowledged += len(chunk)
            await self.send(wire.frame(FrameType.STDIN, bytes(chunk)))
        await self.send(wire.frame(FrameType.STDIN))

    @contextlib.asynccontextmanager
    async def keep_alive(self, wanted: Callable[[], bool] = lambda: True) -> AsyncIterator[None]:
        """Send PING every PING_SECONDS while the block runs and `wanted` returns True."""
        async with self.background(self._ping(wanted)):
            yield

    @contextlib.asynccontextmanager
    async def background(self, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        """Run a coroutine that sends while the block receives.

        A lost connection is left for the block to report: `receive` meets it too. Raises any other error of the
        coroutine at the block's end.
        """
        task = asyncio.create_task(work)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, MachineDied):
                raise error

    async def _receive(self) -> wire.Message:
        while True:
            await self._rate.acquire()
            channel, message = await self._read_frame()
            if channel != 0:
                raise GuestProtocolError(f"frame for channel {channel} from guest agent without a session")
            match message:
                case wire.Output(stream, data):
                    self._use_credit(stream, len(data))
                case wire.ArtifactData(data):
                    self._use_credit(Stream.ARTIFACTS, len(data))
                case wire.StdinCredit(size):
                    self._add_stdin_credit(size)
                    continue
                case wire.Pong():
                    self._accept_pong()
                    continue
                case _:
                    pass
            return message

    def _accept_pong(self) -> None:
        self._pings -= 1
        if self._pings < 0:
            raise GuestProtocolError("unexpected PONG from guest agent")

    async def _ping(self, wanted: Callable[[], bool]) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            if not wanted():
                return
            self._pings += 1
            await self.send(wire.frame(FrameType.PING))

    async def _read_frame(self) -> tuple[int, wire.Message]:
        self._frames += 1
        if self._frames % _FRAMES_PER_TURN == 0:
            await asyncio.sleep(0)  # reading buffered frames does not suspend, so other tasks would not run
        try:
            length, frame_type, stream, channel = wire.parse_header(await self._reader.readexactly(wire.HEADER.size))
            payload = await self._reader.readexactly(length) if length else b""
        except (asyncio.IncompleteReadError, OSError):
            raise MachineDied("lost the connection to the guest agent") from None
        return channel, wire.parse(frame_type, stream, payload)

    def _use_credit(self, stream: Stream, size: int) -> None:
        left = self._credit.get(stream, 0) - size
        if left < 0:
            raise GuestProtocolError(f"guest agent sent more {stream.name} bytes than it was granted")
        self._credit[stream] = left

    def _add_stdin_credit(self, size: int) -> None:
        if not 0 < size <= self._stdin_unacknowledged:
            raise GuestProtocolError("unexpected STDIN_CREDIT from guest agent (more than was sent)")
        self._stdin_unacknowledged -= size
        self._stdin_credit += size
        self._stdin_credit_added.set()
