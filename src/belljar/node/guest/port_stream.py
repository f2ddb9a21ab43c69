"""A connection to a port in the guest: bytes both ways, each direction with its own end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from belljar.model.errors import MachineTimeout
from belljar.node.guest import wire
from belljar.node.guest.channel import Channel, ChannelBroken, SessionState
from belljar.node.guest.channel_messages import Connected, StreamEnd
from belljar.node.guest.wire import Stream


class PortClosed(Exception):
    """The connection to the port was refused or lost: the guest's errno."""

    def __init__(self, port: int, errno: int) -> None:
        super().__init__(f"port {port}: {os.strerror(errno)}")
        self.errno = errno


class PortStream(Channel):
    """A TCP connection to a program in the guest, through no network device of the host."""

    STREAMS = (Stream.STDOUT,)

    def __init__(self, number: int, state: SessionState, port: int) -> None:
        super().__init__(number, state)
        self.port = port
        self._connected = False
        self._peer_ended = False
        self._errno = 0

    async def wait_connected(self) -> None:
        """Wait until it is connected. Raises PortClosed, MachineTimeout, ChannelBroken."""
        try:
            async with asyncio.timeout(self._state.reply_seconds):
                while not self._connected and not self.is_closed:
                    await self._wait()
        except TimeoutError:
            raise MachineTimeout(f"no answer of port {self.port} within {self._state.reply_seconds:g} s") from None
        if not self._connected:
            raise PortClosed(self.port, self._errno)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield what the other end sends, to its end. Raises PortClosed when the connection is lost, ChannelBroken."""
        while (piece := await self.read()) is not None:
            yield piece.data

    async def close_write(self) -> None:
        """End this direction; the other stays open. Raises ChannelBroken."""
        await self.end_input()

    async def _wait(self) -> None:
        self._check_lost()
        await super()._wait()

    def _check_input(self) -> None:
        self._check_lost()
        if self.is_closed and not self._broken:
            raise ChannelBroken("the connection is closed")
        super()._check_input()

    def _check_lost(self) -> None:
        if self.is_closed and self._errno and not self._broken:
            raise PortClosed(self.port, self._errno)

    def _handle_other(self, message: wire.Message) -> None:
        match message:
            case Connected() if not self._connected:
                self._connected = True
            case StreamEnd() if self._connected and not self._peer_ended:
                self._peer_ended = True
            case _:
                self._check(False, message)

    def _may_output(self) -> bool:
        return self._connected and not self._peer_ended

    def _may_close(self, errno: int) -> bool:
        """At any time with an errno; without one when both directions have ended."""
        self._errno = errno
        return not self.is_closed and (errno != 0 or (self._peer_ended and self._input_ended))

    def _has_ended(self) -> bool:
        return self._peer_ended
