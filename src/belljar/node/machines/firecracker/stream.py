"""The byte stream to the agent over vsock, through Firecracker's socket on the host.

A machine is handed out while it boots, before its agent listens. So the reader and the writer exist first, and are
attached to the connection later. Source: Firecracker's docs/vsock.md (CONNECT, OK).
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
#: Holds whole frames; the transport stops reading at twice this.
_STREAM_BUFFER = 1024 * 1024
_LONGEST_ANSWER = 32
#: Firecracker drops a request that the guest does not answer within two seconds.
_ATTEMPT_SECONDS = 5.0
_RETRY_SECONDS = 0.002
_SLOW_RETRY_SECONDS = 0.02


class NotListening(Exception):
    """No process in the guest listens on that port yet, or the machine has no socket yet."""


@contextlib.contextmanager
def opened_socket(folder: int, name: str) -> Iterator[Path]:
    """Provide a path that leads only to the socket `name` in the folder with the descriptor `folder`.

    The hypervisor owns the folder, and the guest may have taken it over: a link in the socket's place is not followed.
    The path is short enough for a socket address, wherever the folder is. Raises NotListening without a socket,
    HostError for another kind of file.
    """
    try:
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        raise NotListening from None
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise HostError(f"unexpected file type of {name} in the jail directory: it is no socket")
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def find_listener(stack: contextlib.ExitStack, folder: int, name: str) -> Path | None:
    """Return a path to the socket, valid until `stack` is closed, if a process listens on it now; else None."""
    try:
        path = stack.enter_context(opened_socket(folder, name))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(str(path))
    except (NotListening, ConnectionRefusedError, BlockingIOError):
        return None
    return path


async def connect_agent(folder: int, name: str) -> socket.socket:
    """Return a connection to the agent's port as soon as the agent listens; the caller sets the deadline."""
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
            byte = await loop.sock_recv(connection, 1)  # the agent sends what follows the line
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
    """Forwards to a transport that is attached later. Nothing is written before that: the agent sends first."""

    def __init__(self) -> None:
        super().__init__()
        self._real: asyncio.WriteTransport | None = None
        self._closed = False

    def attach(self, real: asyncio.WriteTransport) -> None:
        """Forward to `real` from now on."""
        self._real = real
        if self._closed:
            real.close()

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._real is None:
            raise ConnectionError("the machine's agent is not connected yet")
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
    """A reader and a writer that can be attached to a connection later."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.reader = asyncio.StreamReader(limit=_STREAM_BUFFER, loop=loop)
        self._protocol = asyncio.StreamReaderProtocol(self.reader, loop=loop)
        self._transport = LateTransport()
        self.writer = asyncio.StreamWriter(self._transport, self._protocol, self.reader, loop)
        self._attached = False

    async def attach(self, connection: socket.socket) -> None:
        """Attach the reader and the writer to a connection, which is theirs from now on."""
        loop = asyncio.get_running_loop()
        real, _ = await loop.create_unix_connection(lambda: self._protocol, sock=connection)
        self._attached = True
        self._transport.attach(real)

    def end(self) -> None:
        """End the reader's stream if no connection was attached."""
        if not self._attached:
            self._protocol.connection_lost(None)

    async def close(self) -> None:
        """Close the connection."""
        self.end()
        self._attached = True
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()
