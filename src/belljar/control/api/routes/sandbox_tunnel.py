"""WS /v1/sandboxes/{id}/ports/{port}/tunnel: one TCP connection to a program in the sandbox.

Binary messages are its bytes, in both directions. The text message `{"type": "end"}` ends one direction: after it, its
sender sends no more bytes, and may still receive. The connection closes with 1000 when both have ended; one that is
lost gets `{"type": "error", "code", "detail"}` first.
"""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

from fastapi import APIRouter, Path, WebSocket

from belljar.control.api import websocket_calls
from belljar.control.api.dependencies import IdentityDep
from belljar.control.api.rules import require
from belljar.control.api.sandbox_calls import CallDep, watch_identity
from belljar.control.projects.scopes import Scope
from belljar.link.sandboxes import ByteStream
from belljar.model.errors import InvalidRequest
from belljar.model.sandbox_errors import StreamBroken

router = APIRouter(prefix="/v1/sandboxes/{sandbox_id}", tags=["sandboxes"])

Port = Annotated[int, Path(ge=1, le=65535)]
#: How long the program may read nothing of what was sent. While it waits, the client's end is not noticed.
WRITE_SECONDS = 120.0


@router.websocket("/ports/{port}/tunnel", dependencies=[require(Scope.SANDBOXES)])
async def open_tunnel(websocket: WebSocket, port: Port, call: CallDep, identity: IdentityDep) -> None:
    """Connect to a port, and pass bytes on in both directions."""
    changes = call.services.changes
    async with call.machine.connect(port) as stream:
        await websocket.accept()
        tunnel = _Tunnel(websocket, stream, port)
        with changes.watching(call.sandbox.id, of_log=False):
            error = await websocket_calls.until_first(
                tunnel.to_guest(), tunnel.to_client(), watch_identity(identity, changes)
            )
        await websocket_calls.close(websocket, error)


class _Tunnel:
    """The two directions of one connection."""

    def __init__(self, websocket: WebSocket, stream: ByteStream, port: int) -> None:
        self._websocket = websocket
        self._stream = stream
        self._port = port
        self._client_ended = asyncio.Event()

    async def to_client(self) -> None:
        """Pass on what the program sends, then wait for the end of the client's direction."""
        async for data in self._stream:
            await self._websocket.send_bytes(data)
        await websocket_calls.send(self._websocket, "end", {})
        await self._client_ended.wait()

    async def to_guest(self) -> None:
        """Pass on what the client sends, until it disconnects."""
        while True:
            message = await websocket_calls.receive(self._websocket)
            data = message.get("bytes")
            if self._client_ended.is_set():
                raise InvalidRequest("the direction to the sandbox has ended; send nothing more")
            if data is None:
                _check_end(message.get("text") or "")
                await self._stream.close_write()
                self._client_ended.set()
            elif data:
                await self._write(data)

    async def _write(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await self._stream.write(data)
        except TimeoutError:
            raise StreamBroken(f"the program at port {self._port} read nothing for {WRITE_SECONDS:g} s") from None


def _check_end(text: str) -> None:
    """Raise InvalidRequest for another text message than the end."""
    try:
        if json.loads(text) == {"type": "end"}:
            return
    except (ValueError, RecursionError):
        pass
    raise InvalidRequest(f'{text[:80]!r} is no message; send bytes, or {{"type": "end"}} behind the last')
