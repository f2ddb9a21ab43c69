"""One HTTP request to a port in a sandbox: passed on, with its response, as the bytes arrive.

The guest's bytes are parsed as hostile (h11): a response that is not HTTP is an error, and one that breaks off breaks
the caller's response off.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import h11
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from belljar.control.api.ingress.headers import to_caller, to_guest
from belljar.control.api.streams import Stream
from belljar.link.sandboxes import ByteStream, SandboxMachine
from belljar.model.errors import BelljarError
from belljar.model.sandbox_errors import PortRefused, StreamBroken

_MAX_HEAD_BYTES = 64 * 1024
#: How long a program may take to begin its response.
_HEAD_SECONDS = 300.0
_NO_LENGTH: Final = frozenset({204, 304})


async def pass_on(request: Request, machine: SandboxMachine, port: int, target: bytes, prefix: str) -> Response:
    """Return the response of the program at the port. Raises PortRefused, StreamBroken, ClientDisconnect, …"""
    exchange = _exchange(request, machine, port, target, prefix)
    stop = asyncio.Event()
    head = await anext(exchange)
    assert isinstance(head, h11.Response)

    async def body() -> AsyncGenerator[bytes | str, None]:
        async with contextlib.aclosing(exchange):
            async for event in exchange:
                assert isinstance(event, bytes)
                yield event

    response = Stream(body(), head.status_code, on_disconnect=stop.set)
    response.raw_headers = list(to_caller(head.headers))
    return response


async def _exchange(
    request: Request, machine: SandboxMachine, port: int, target: bytes, prefix: str
) -> AsyncGenerator[h11.Response | bytes, None]:
    """Yield the head of the response, then the bytes of its body: whoever has the generator owns the connection."""
    async with machine.connect(port) as stream:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
        sending = asyncio.create_task(_send(request, connection, stream, port, target, prefix))
        source = aiter(stream)
        try:
            async with asyncio.timeout(_HEAD_SECONDS):
                head = await _head(connection, source, sending, port)
            yield head
            while isinstance(event := await _event(connection, source, port), h11.Data):
                yield bytes(event.data)
        except TimeoutError:
            raise StreamBroken(f"the program at port {port} did not respond within {_HEAD_SECONDS:g} s") from None
        finally:
            sending.cancel()
            await asyncio.wait([sending])


async def _send(
    request: Request, connection: h11.Connection, stream: ByteStream, port: int, target: bytes, prefix: str
) -> None:
    headers = to_guest(request.scope, port, prefix)
    has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in request.scope["headers"])
    if has_body and not any(name == b"content-length" for name, _ in headers):
        headers.append((b"transfer-encoding", b"chunked"))
    headers.append((b"connection", b"close"))
    method = request.scope["method"].encode("ascii", "replace")
    await stream.write(connection.send(h11.Request(method=method, target=target, headers=headers)) or b"")
    async for data in request.stream():
        if data:
            await stream.write(connection.send(h11.Data(data=data)) or b"")
    if end := connection.send(h11.EndOfMessage()):
        await stream.write(end)


async def _head(
    connection: h11.Connection, source: AsyncIterator[bytes], sending: asyncio.Task[None], port: int
) -> h11.Response:
    """Return the head of the response. What the caller's body raises meanwhile is raised here."""
    while True:
        receiving = asyncio.ensure_future(_event(connection, source, port))
        try:
            await asyncio.wait({receiving, sending}, return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done() and (error := sending.exception()) is not None and not _is_of_guest(error):
                raise error
            event = await receiving
        finally:
            receiving.cancel()
            await asyncio.wait([receiving])
        if isinstance(event, h11.Response):
            return event
        if not isinstance(event, h11.InformationalResponse) or event.status_code == 101:
            raise PortRefused(f"the program at port {port} did not answer in HTTP")


def _is_of_guest(error: BaseException) -> bool:
    """Return whether the program closed its end early: it may have responded before."""
    return isinstance(error, (PortRefused, StreamBroken)) and not isinstance(error, ClientDisconnect)


async def _event(connection: h11.Connection, source: AsyncIterator[bytes], port: int) -> h11.Event:
    """Return the next event of the response. Raises PortRefused for what is not HTTP, StreamBroken at an early end."""
    try:
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await anext(source, b""))
    except h11.RemoteProtocolError as error:
        raise StreamBroken(f"the program at port {port} did not answer in HTTP, or broke off: {error}") from None
    except BelljarError:
        raise
    assert not isinstance(event, type)  # PAUSED only comes behind the end
    return event
