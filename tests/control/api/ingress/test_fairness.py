"""What a program in a sandbox sends never keeps the server from its other work, however small its pieces are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from starlette.requests import Request
from websockets.utils import accept_key

from belljar.control.api.ingress import http_proxy, websocket_proxy
from belljar.control.api.ingress.origin_headers import OriginHeaders
from belljar.control.api.streams import Stream
from belljar.model.errors import BelljarError

SCOPE = {"type": "http", "method": "GET", "scheme": "http", "path": "/", "raw_path": b"/", "headers": []}


class Program:
    """A machine with one program, which is also the connection to it: it answers with one piece of bytes."""

    def __init__(self, response: bytes) -> None:
        self.response = response
        self.written = b""
        self._requested = asyncio.Event()

    @asynccontextmanager
    async def connect(self, port: int) -> AsyncIterator[Program]:
        yield self

    async def write(self, data: bytes) -> None:
        self.written += data
        self._requested.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        await self._requested.wait()
        if b"Sec-WebSocket-Key: " in self.written:
            key = self.written.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0].decode()
            head = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept_key(key)}"
            yield f"HTTP/1.1 101 OK\r\n{head}\r\n\r\n".encode()
        yield self.response


class OthersTurns:
    """Counts how often other work of the event loop got its turn."""

    count = 0

    @contextlib.contextmanager
    def counted(self) -> Iterator[OthersTurns]:
        async def take() -> None:
            while True:
                self.count += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(take())
        try:
            yield self
        finally:
            task.cancel()


async def never() -> Any:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 6400 + b"0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 6400 + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["chunks of a byte", "informational responses"],
)
async def test_small_pieces_of_a_response_leave_turns_to_others(response: bytes) -> None:
    machine: Any = Program(response)
    request = Request(SCOPE, never)
    with OthersTurns().counted() as others:
        passed = await http_proxy.pass_on(request, machine, 80, b"/", OriginHeaders())
        assert isinstance(passed, Stream)
        async for _ in passed.body_iterator:
            pass
    assert others.count > 6400 / 64


async def test_small_frames_of_a_websocket_leave_turns_to_others() -> None:
    sent: list[bytes] = []

    class Caller:
        scope: ClassVar[dict[str, Any]] = {**SCOPE, "type": "websocket"}
        receive = staticmethod(never)

        async def accept(self, subprotocol: str | None) -> None:
            pass

        async def send_bytes(self, data: bytes) -> None:
            sent.append(data)

        async def close(self, code: int, reason: str = "") -> None:
            pass

    machine, caller = Program(b"\x82\x00" * 6400 + b"\x88\x00"), Caller()
    with OthersTurns().counted() as others, contextlib.suppress(BelljarError):
        await websocket_proxy.pass_on(caller, machine, 80, "/", OriginHeaders(), never)  # type: ignore[arg-type]
    assert len(sent) == 6400 and others.count > 6400 / 64
