"""One HTTP request to a port in a sandbox: passed on, with its response, as the bytes arrive.

The guest's bytes are parsed as hostile (h11): a response that is not HTTP is an error, and one that breaks off breaks
the caller's response off.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import h11
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from belljar.control.api.ingress.headers import PassedHeaders
from belljar.control.api.streams import Stream, StreamAborted
from belljar.link.sandboxes import ByteStream, SandboxMachine
from belljar.model.errors import BelljarError
from belljar.model.sandbox_errors import PortRefused, StreamBroken

_MAX_HEAD_BYTES = 64 * 1024
#: How long a program may take to begin its response.
_HEAD_SECONDS = 300.0
#: How long it may leave a piece of the request's body unread. While it waits, the client's end is not noticed.
WRITE_SECONDS = 60.0
_MAX_STATUS = 599
#: Events of a response that are handled before others get their turn: a program can make one of every few bytes.
_EVENTS_AT_ONCE = 32


class _Passed(Stream):
    """A response whose exchange listens for the client's disconnection: it still receives the request's body."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._content):
            await self.stream_response(send)


async def pass_on(
    request: Request, machine: SandboxMachine, port: int, target: bytes, passed: PassedHeaders
) -> Response:
    """Return the response of the program at the port. Raises PortRefused, StreamBroken, ClientDisconnect, …"""
    exchange = _exchange(request, machine, port, target, passed)
    head = await anext(exchange)
    assert isinstance(head, h11.Response)
    response = _Passed(_body(exchange), head.status_code)
    response.raw_headers = list(passed.to_caller(head.headers, request.scope, target))
    return response


async def _body(exchange: AsyncGenerator[h11.Response | bytes, None]) -> AsyncGenerator[bytes | str, None]:
    async with contextlib.aclosing(exchange):
        try:
            async for data in exchange:
                assert isinstance(data, bytes)
                yield data
        except BelljarError as error:  # the head is sent
            raise StreamAborted(error.message) from error


async def _exchange(
    request: Request, machine: SandboxMachine, port: int, target: bytes, passed: PassedHeaders
) -> AsyncGenerator[h11.Response | bytes, None]:
    """Yield the head of the response, then the bytes of its body: whoever has the generator owns the connection."""
    async with machine.connect(port) as stream:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
        sending = asyncio.create_task(_send(request, connection, stream, target, passed))
        events = _Events(connection, aiter(stream), sending, port)
        try:
            async with asyncio.timeout(_HEAD_SECONDS):
                head = await events.head()
            yield head
            while isinstance(event := await events.next(), h11.Data):
                yield bytes(event.data)
        except TimeoutError:
            raise StreamBroken(f"the program at port {port} did not respond within {_HEAD_SECONDS:g} s") from None
        finally:
            sending.cancel()
            await asyncio.wait([sending])


async def _send(
    request: Request, connection: h11.Connection, stream: ByteStream, target: bytes, passed: PassedHeaders
) -> None:
    """Send the request, then wait for the client to disconnect. Raises ClientDisconnect, RequestTimeout."""
    headers = passed.to_guest(request.scope)
    names = {name for name, _ in request.scope["headers"]}
    if b"transfer-encoding" in names:
        headers.append((b"transfer-encoding", b"chunked"))
    headers.append((b"connection", b"close"))
    method = request.scope["method"].encode("ascii", "replace")
    with contextlib.suppress(PortRefused, StreamBroken):  # the program may close its end, and respond, before the end
        await _write(stream, connection.send(h11.Request(method=method, target=target, headers=headers)))
        async for data in request.stream():
            if data:
                await _write(stream, connection.send(h11.Data(data=data)))
        await _write(stream, connection.send(h11.EndOfMessage()))
    while (await request.receive())["type"] != "http.disconnect":
        pass  # a body that the program did not want
    raise ClientDisconnect


async def _write(stream: ByteStream, data: bytes | None) -> None:
    """Raises StreamBroken for a program that does not read."""
    if not data:
        return
    try:
        async with asyncio.timeout(WRITE_SECONDS):
            await stream.write(data)
    except TimeoutError:
        raise StreamBroken(f"the program read nothing of the request for {WRITE_SECONDS:g} s") from None


class _Events:
    """The events of the program's response."""

    def __init__(
        self, connection: h11.Connection, source: AsyncIterator[bytes], sending: asyncio.Task[None], port: int
    ) -> None:
        """What `sending` raises is raised instead of the next event."""
        self._connection = connection
        self._source = source
        self._sending = sending
        self._port = port
        self._count = 0

    async def head(self) -> h11.Response:
        """Return the head of the response."""
        while not isinstance(event := await self.next(), h11.Response):
            if not isinstance(event, h11.InformationalResponse) or event.status_code == 101:
                raise PortRefused(f"the program at port {self._port} did not answer in HTTP")
        if event.status_code > _MAX_STATUS:
            raise StreamBroken(f"the program at port {self._port} answered with the status {event.status_code}")
        return event

    async def next(self) -> h11.Event:
        """Return the next event. Raises StreamBroken for what is not HTTP, and at an early end."""
        self._count += 1
        if self._count % _EVENTS_AT_ONCE == 0:
            await asyncio.sleep(0)
        try:
            while (event := self._connection.next_event()) is h11.NEED_DATA:
                self._connection.receive_data(await self._receive())
        except h11.RemoteProtocolError as error:
            reason = f"did not answer in HTTP, or broke off: {error}"
            raise StreamBroken(f"the program at port {self._port} {reason}") from None
        assert not isinstance(event, type)  # PAUSED only comes behind the end
        return event

    async def _receive(self) -> bytes:
        receiving = asyncio.create_task(_next(self._source))
        try:
            await asyncio.wait({receiving, self._sending}, return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                self._sending.result()
            return await receiving
        finally:
            receiving.cancel()
            await asyncio.wait([receiving])


async def _next(source: AsyncIterator[bytes]) -> bytes:
    return await anext(source, b"")
