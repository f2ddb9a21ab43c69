"""One WebSocket to a port in a sandbox: messages are passed on in both directions, each whole.

The guest's frames are parsed as hostile (websockets), within the same limit for a message as the caller's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine

from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import Event
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from belljar.control.api.ingress.headers import PassedHeaders
from belljar.control.api.websocket import MAX_MESSAGE_BYTES
from belljar.control.api.websocket_calls import until_first
from belljar.link.sandboxes import ByteStream, SandboxMachine
from belljar.model.errors import BelljarError
from belljar.model.sandbox_errors import PortRefused, StreamBroken

HANDSHAKE_SECONDS = 30.0
#: How long the program may read nothing. While it waits, the caller's end is not noticed.
WRITE_SECONDS = 60.0
#: Bytes of the program that are parsed, and messages that are passed on, before others get their turn: a frame may have
#: two bytes.
_BYTES_AT_ONCE = 2048
_MESSAGES_AT_ONCE = 32
_ERROR, _GONE = 1011, 1001
#: The handshake's own headers, which the client of the guest makes anew.
_OF_HANDSHAKE = "sec-websocket-"


async def pass_on(
    websocket: WebSocket,
    machine: SandboxMachine,
    port: int,
    target: str,
    passed: PassedHeaders,
    watch: Callable[[], Coroutine[None, None, None]],
) -> None:
    """Connect to the program at the port, accept the caller, and pass messages on until one of both closes.

    `watch` raises the error that ends the connection, such as that the caller's key was revoked. Raises PortRefused,
    StreamBroken before the caller is accepted.
    """
    async with machine.connect(port) as stream:
        guest = _Guest(stream, port, target, websocket.scope.get("subprotocols", ()))
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await guest.shake_hands(passed.to_guest(websocket.scope))
        except TimeoutError:
            reason = f"did not answer to the WebSocket within {HANDSHAKE_SECONDS:g} s"
            raise StreamBroken(f"the program at port {port} {reason}") from None
        await websocket.accept(subprotocol=guest.subprotocol)
        error = await until_first(_to_guest(websocket, guest), _to_caller(websocket, guest), watch())
        await _close(websocket, guest, error)


async def _to_guest(websocket: WebSocket, guest: _Guest) -> None:
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", _GONE))
        await guest.send(message.get("bytes"), message.get("text"))


async def _to_caller(websocket: WebSocket, guest: _Guest) -> None:
    count = 0
    async for opcode, data in guest.messages():
        count += 1
        if count % _MESSAGES_AT_ONCE == 0:
            await asyncio.sleep(0)
        if opcode is Opcode.TEXT:
            await websocket.send_text(data.decode())
        else:
            await websocket.send_bytes(data)


async def _close(websocket: WebSocket, guest: _Guest, error: BaseException | None) -> None:
    if isinstance(error, WebSocketDisconnect):
        await guest.close(error.code)
    elif isinstance(error, (BelljarError, UnicodeDecodeError)):
        await websocket.close(_ERROR, str(error)[:100])
    elif error is not None:
        raise error
    else:
        await websocket.close(*guest.close_reason)


class _Guest:
    """The WebSocket client of the program in the sandbox."""

    def __init__(self, stream: ByteStream, port: int, target: str, subprotocols: list[str]) -> None:
        self._stream = stream
        self._source: AsyncIterator[bytes] = aiter(stream)
        self._port = port
        #: What came and is not parsed yet.
        self._unparsed = memoryview(b"")
        #: Frames that came with the end of the handshake.
        self._early: list[Event] = []
        # What is no part of a URI, though servers accept it.
        target = target.replace("#", "%23")
        self._protocol = ClientProtocol(
            parse_uri(f"ws://localhost:{port}{target}"),
            subprotocols=[Subprotocol(each) for each in subprotocols] or None,
            max_size=MAX_MESSAGE_BYTES,
        )

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that the program chose."""
        return self._protocol.subprotocol

    @property
    def close_reason(self) -> tuple[int, str]:
        """The code and reason with which the program closed."""
        received = self._protocol.close_rcvd
        if received is None or received.code in (1005, 1006):
            return (1000, "") if received is not None else (_ERROR, "the connection in the sandbox was lost")
        return received.code, received.reason

    async def shake_hands(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the handshake with these headers. Raises PortRefused when the program refuses it, StreamBroken."""
        request = self._protocol.connect()
        del request.headers["Host"]
        for name, value in headers:
            text = name.decode("latin-1")
            if not text.startswith(_OF_HANDSHAKE):
                request.headers[text] = value.decode("latin-1")
        self._protocol.send_request(request)
        await self._flush()
        while True:
            await self._receive()
            events = self._protocol.events_received()
            for index, event in enumerate(events):
                if isinstance(event, Response):
                    self._early = events[index + 1 :]
                    if self._protocol.handshake_exc is not None:
                        raise PortRefused(
                            f"the program at port {self._port} refused the WebSocket: {self._protocol.handshake_exc}"
                        )
                    return
            if self._protocol.handshake_exc is not None or self._protocol.parser_exc is not None:
                raise PortRefused(f"the program at port {self._port} does not answer to WebSockets")

    async def send(self, data: bytes | None, text: str | None) -> None:
        """Send a message. Raises StreamBroken, PortRefused."""
        if data is not None:
            self._protocol.send_binary(data)
        else:
            self._protocol.send_text((text or "").encode())
        await self._flush()

    async def messages(self) -> AsyncIterator[tuple[Opcode, bytes]]:
        """Yield messages until the program closes. Raises StreamBroken for what is no WebSocket."""
        kind, parts = Opcode.BINARY, bytearray()
        while True:
            early, self._early = self._early, []
            for event in [*early, *self._protocol.events_received()]:
                if not isinstance(event, Frame) or event.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                    continue
                if event.opcode is not Opcode.CONT:
                    kind, parts = event.opcode, bytearray()
                parts += event.data
                if event.fin:
                    yield kind, bytes(parts)
                    parts = bytearray()
            await self._flush()
            if self._protocol.parser_exc is not None:
                raise StreamBroken(f"the program at port {self._port} sent what is no WebSocket frame, or too much")
            if self._protocol.close_rcvd is not None:
                return
            await self._receive()

    async def close(self, code: int) -> None:
        """Tell the program that the caller closed."""
        try:
            self._protocol.send_close(code if 1000 <= code < 5000 and code not in (1004, 1005, 1006, 1015) else 1001)
            await self._flush()
        except (BelljarError, ValueError, RuntimeError):
            pass  # it is gone, too

    async def _receive(self) -> None:
        if self._unparsed:
            await asyncio.sleep(0)
        else:
            self._unparsed = memoryview(await anext(self._source, b""))
        data, self._unparsed = bytes(self._unparsed[:_BYTES_AT_ONCE]), self._unparsed[_BYTES_AT_ONCE:]
        if data:
            self._protocol.receive_data(data)
        elif self._protocol.close_rcvd is None:
            raise StreamBroken(f"the program at port {self._port} closed the connection in the middle")

    async def _flush(self) -> None:
        if data := b"".join(self._protocol.data_to_send()):
            try:
                async with asyncio.timeout(WRITE_SECONDS):
                    await self._stream.write(data)
            except TimeoutError:
                reason = f"read nothing for {WRITE_SECONDS:g} s"
                raise StreamBroken(f"the program at port {self._port} {reason}") from None
