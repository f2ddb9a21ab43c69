"""What WebSockets of sandboxes share: tasks of which the first to end ends all, and how the client learns why.

Text messages are JSON objects with a `type`. A connection that ends by an error gets `error` {code, detail} first.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, Final

from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect

from belljar.model.errors import BelljarError, InvalidRequest

#: Close codes: at a regular end, for a message that is wrong, after another error.
_NORMAL: Final = 1000
_POLICY: Final = 1008
_ERROR: Final = 1011


async def until_first(*works: Coroutine[Any, Any, None]) -> BaseException | None:
    """Run all until the first ends, cancel the others, and return the error that it ended with."""
    tasks = {asyncio.create_task(work) for work in works}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    errors = [error for task in done if not task.cancelled() and (error := task.exception()) is not None]
    return errors[0] if errors else None


async def receive(websocket: WebSocket) -> dict[str, Any]:
    """Return the client's next message. Raises WebSocketDisconnect."""
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", _NORMAL))
    return dict(message)


async def send(websocket: WebSocket, kind: str, fields: dict[str, Any]) -> None:
    """Send a text message."""
    await websocket.send_text(json.dumps({"type": kind, **fields}))


async def close(websocket: WebSocket, error: BaseException | None) -> None:
    """Close the connection, for this error. Raises what is no error of the model."""
    if isinstance(error, WebSocketDisconnect):
        return
    if isinstance(error, BelljarError):
        await send(websocket, "error", {**error.details, "code": error.code, "detail": error.message})
        await websocket.close(_POLICY if isinstance(error, InvalidRequest) else _ERROR)
    elif error is not None:
        raise error
    else:
        await websocket.close(_NORMAL)
