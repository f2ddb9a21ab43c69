"""Forwards a port of this host to one in a sandbox: each connection is a tunnel over a WebSocket.

A connection that is lost is reset here, so that it never looks like one that ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from belljar.client.errors import ServerError, Unreachable
from belljar.client.websocket_target import WebSocketTarget, message_of, websocket_errors

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

_HOST = "127.0.0.1"
_PIECE_BYTES = 64 * 1024
#: Each has an end of its own.
_DIRECTIONS = ("to the sandbox", "from the sandbox")
_END = json.dumps({"type": "end"})
#: Closes a connection at once, with a reset.
_RESET = struct.pack("ii", 1, 0)

Report = Callable[[Exception], None]


class AsyncPortForward:
    """A port of this host, as long as the block runs: `async with box.forward(8000) as forward`."""

    def __init__(self, target: WebSocketTarget, local_port: int, on_error: Report) -> None:
        """`on_error` is called with what a single connection failed of. Raises OSError for a port that is in use."""
        self._target = target
        self._wanted_port = local_port
        self._on_error = on_error
        self._connections: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> AsyncPortForward:
        self._server = await asyncio.start_server(self._serve, _HOST, self._wanted_port)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """The URL of the port, for programs that speak HTTP."""
        return f"http://{_HOST}:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._tunnel(reader, writer)
        except (ServerError, Unreachable) as error:
            _reset(writer)
            self._on_error(error)
        except (_LocalGone, asyncio.CancelledError):  # or the forwarding ends
            _reset(writer)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from websockets.asyncio.client import connect

        with websocket_errors(self._target.url):
            async with connect(self._target.url, **self._target.options) as connection:
                tunnel = _Tunnel(connection, reader, writer)
                tasks = {asyncio.create_task(tunnel.send()), asyncio.create_task(tunnel.receive())}
                try:
                    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.wait(tasks)
                for task in done:
                    task.result()


class _LocalGone(Exception):
    """The program on this host closed its connection at once."""


class _Tunnel:
    """One connection: the local program's, and the WebSocket that carries it."""

    def __init__(
        self, connection: ClientConnection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._connection = connection
        self._reader = reader
        self._writer = writer
        self._ends = 0

    async def send(self) -> None:
        """Pass on what the local program sends, to its end. Raises _LocalGone, ConnectionClosed."""
        while data := await self._read():
            await self._connection.send(data)
        self._ends += 1
        await self._connection.send(_END)

    async def receive(self) -> None:
        """Pass on what the sandbox sends. Raises Unreachable when that breaks off, ServerError, _LocalGone."""
        async for message in self._connection:
            try:
                if isinstance(message, bytes):
                    self._writer.write(message)
                    await self._writer.drain()
                elif message_of(message)["type"] == "end":
                    self._ends += 1
                    self._writer.write_eof()
            except OSError:
                raise _LocalGone from None
        if self._ends < len(_DIRECTIONS):
            raise Unreachable("the connection to the sandbox ended early; try again", is_temporary=True)

    async def _read(self) -> bytes:
        try:
            return await self._reader.read(_PIECE_BYTES)
        except OSError:
            raise _LocalGone from None


def _reset(writer: asyncio.StreamWriter) -> None:
    own = writer.get_extra_info("socket")
    if own is not None:
        with contextlib.suppress(OSError):
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


class PortForward:
    """A port of this host, as long as the block runs: `with box.forward(8000) as forward`. A thread serves it."""

    def __init__(self, target: WebSocketTarget, local_port: int, on_error: Report) -> None:
        """`on_error` is called, in that thread, with what a single connection failed of."""
        self._forward = AsyncPortForward(target, local_port, on_error)
        self._thread = threading.Thread(target=self._run, name="port forward", daemon=True)
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def __enter__(self) -> PortForward:
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._loop is not None and self._stop is not None
        with contextlib.suppress(RuntimeError):  # the thread has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        return self._forward.port

    @property
    def url(self) -> str:
        """The URL of the port, for programs that speak HTTP."""
        return self._forward.url

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 (raised in the thread that waits)
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with self._forward:
            self._ready.set()
            await self._stop.wait()
