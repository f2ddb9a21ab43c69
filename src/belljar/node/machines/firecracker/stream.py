"""The byte stream to the agent over vsock, by way of Firecracker's socket on the host.

A machine is given out while it boots, before its agent listens; so the reader and the writer are there first, and the
connection is put under them when it has come about. Source: Firecracker's docs/vsock.md (CONNECT, OK).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from belljar.model.errors import HostError

#: The agent's port (guest/agent/vsock.c).
AGENT_PORT = 1024
#: Room for whole frames; the transport stops reading at twice this.
_STREAM_BUFFER = 1024 * 1024
_LONGEST_ANSWER = 32
#: Firecracker gives up a request that the guest does not answer after two seconds.
_ATTEMPT_SECONDS = 5.0
_RETRY_SECONDS = 0.002
_SLOW_RETRY_SECONDS = 0.02


class NotListening(Exception):
    """Nobody in the guest listens on that port yet, or the machine has no socket yet."""


@contextlib.contextmanager
def opened_socket(folder: int, name: str) -> Iterator[Path]:
    """A path that leads to the socket `name` in the folder that `folder` is a descriptor of, and nowhere else.

    The folder is the hypervisor's own, which may be the guest's by now: a link put in the socket's place is not
    followed, and the path is short enough for a socket wherever the folder is. Raises NotListening if there is none.
    """
    try:
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        raise NotListening from None
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise HostError(f"{name} of a machine is no socket any more; something tampers with it")
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def listening(stack: contextlib.ExitStack, folder: int, name: str) -> Path | None:
    """A path to the socket, good as long as `held`, if somebody listens on it now."""
    try:
        path = stack.enter_context(opened_socket(folder, name))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(str(path))
    except (NotListening, ConnectionRefusedError, BlockingIOError):
        return None
    return path


async def connect_agent(folder: int, name: str) -> socket.socket:
    """A connection to the agent's port, as soon as somebody listens there; the deadline is the caller's."""
    tries = 0
    while True:
        try:
            async with asyncio.timeout(_ATTEMPT_SECONDS):
                return await _connect_once(folder, name)
        except (NotListening, OSError, TimeoutError):
            tries += 1
        await asyncio.sleep(_RETRY_SECONDS if tries < 100 else _SLOW_RETRY_SECONDS)


async def _connect_once(folder: int, name: str) -> socket.socket:
    loop = asyncio.get_running_loop()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        with opened_socket(folder, name) as path:
            await loop.sock_connect(connection, str(path))
        await loop.sock_sendall(connection, b"CONNECT %d\n" % AGENT_PORT)
        answer = bytearray()
        while not answer.endswith(b"\n") and len(answer) < _LONGEST_ANSWER:
            byte = await loop.sock_recv(connection, 1)  # what follows the line is the agent's
            if not byte:
                raise NotListening
            answer += byte
        if not re.fullmatch(rb"OK \d{1,10}\n", answer):
            raise NotListening
    except BaseException:
        connection.close()
        raise
    return connection


class LateTransport(asyncio.WriteTransport):
    """Passes everything on to a transport that comes later. Nothing is written before: the agent speaks first."""

    def __init__(self) -> None:
        super().__init__()
        self._real: asyncio.WriteTransport | None = None
        self._closed = False

    def attach(self, real: asyncio.WriteTransport) -> None:
        self._real = real
        if self._closed:
            real.close()

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._real is None:
            raise ConnectionError("the machine's agent is not there yet")
        self._real.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self._closed or (self._real is not None and self._real.is_closing())

    def close(self) -> None:
        self._closed = True
        if self._real is not None:
            self._real.close()

    def abort(self) -> None:
        self._closed = True
        if self._real is not None:
            self._real.abort()

    def can_write_eof(self) -> bool:
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default if self._real is None else self._real.get_extra_info(name, default)


class AgentStream:
    """A reader and a writer, and what is needed to put a connection under them."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.reader = asyncio.StreamReader(limit=_STREAM_BUFFER, loop=loop)
        self._protocol = asyncio.StreamReaderProtocol(self.reader, loop=loop)
        self._transport = LateTransport()
        self.writer = asyncio.StreamWriter(self._transport, self._protocol, self.reader, loop)
        self._attached = False

    async def attach(self, connection: socket.socket) -> None:
        """Take over a connection."""
        loop = asyncio.get_running_loop()
        real, _ = await loop.create_unix_connection(lambda: self._protocol, sock=connection)
        self._attached = True
        self._transport.attach(real)

    def end(self) -> None:
        """No connection comes any more: who reads is told that it is the end."""
        if not self._attached:
            self._protocol.connection_lost(None)

    async def close(self) -> None:
        self.end()
        self._attached = True
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()
