"""WS /v1/sandboxes/{id}/watch: what happens to the files below a folder.

Text messages are JSON objects. The first is `{"type": "ready"}`: from then on nothing is missed. Then each change
follows as {type, path}: `created`, `written`, `removed`, `moved_from`, `moved_to`, `attributes`, the path relative to
the folder. `overflow` says that changes were lost, or that new folders are too many to watch: look at everything again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, WebSocket

from belljar.control.api import websocket_calls
from belljar.control.api.dependencies import IdentityDep
from belljar.control.api.rules import require
from belljar.control.api.sandbox_calls import MAX_PATH_BYTES, CallDep, guest_path, watch_identity
from belljar.control.projects.scopes import Scope
from belljar.model.errors import InvalidRequest
from belljar.model.sandbox_errors import StreamBroken
from belljar.model.sandbox_values import FileEvent

router = APIRouter(prefix="/v1/sandboxes/{sandbox_id}", tags=["sandboxes"])


@router.websocket("/watch", dependencies=[require(Scope.SANDBOXES)])
async def watch_files(
    websocket: WebSocket,
    call: CallDep,
    identity: IdentityDep,
    path: Annotated[str, Query(max_length=MAX_PATH_BYTES)] = ".",
    recursive: bool = False,
) -> None:
    """Watch a folder, and with `recursive` the folders below it, at most 4,096."""
    changes = call.services.changes
    async with call.machine.files.watch(guest_path(path or "."), recursive=recursive) as events:
        await websocket.accept()
        with changes.watching(call.sandbox.id, of_log=False):
            error = await websocket_calls.until_first(
                _tell(websocket, events), _refuse_messages(websocket), watch_identity(identity, changes)
            )
        await websocket_calls.close(websocket, error)


async def _tell(websocket: WebSocket, events: AsyncIterator[FileEvent]) -> None:
    await websocket_calls.send(websocket, "ready", {})
    async for event in events:
        await websocket_calls.send(websocket, event.change.value, {"path": event.path})
    raise StreamBroken("the watch ended; watch the folder again")


async def _refuse_messages(websocket: WebSocket) -> None:
    await websocket_calls.receive(websocket)
    raise InvalidRequest("a watch takes no messages; close the connection to end it")
