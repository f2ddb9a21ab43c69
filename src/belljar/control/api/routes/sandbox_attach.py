"""WS /v1/sandboxes/{id}/processes/{pid}/attach: a command's input, output and terminal over one connection.

Binary messages carry bytes behind one that names the stream: 0 is standard input (from the client), 1 standard output,
2 standard error. Text messages are JSON objects with a `type`. From the client: `resize` {columns, rows}, `signal`
{signal}, `end_stdin`. To the client: `started`, then at last `exit`, or `error` {code, detail}. A connection that ends
without `exit` broke off.
"""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, WebSocket
from pydantic import ValidationError

from belljar.control.api import websocket_calls
from belljar.control.api.dependencies import IdentityDep
from belljar.control.api.rules import require
from belljar.control.api.sandbox_calls import Call, CallDep, watch_identity
from belljar.control.projects.identity import Identity
from belljar.control.projects.scopes import Scope
from belljar.control.sandboxes.output import public_exit, public_process
from belljar.control.sandboxes.request import SignalRequest
from belljar.model.errors import InvalidRequest
from belljar.model.sandbox_errors import ProcessEnded, StreamBroken
from belljar.model.sandbox_values import ProcessExit, ProcessInfo, TerminalSize

router = APIRouter(prefix="/v1/sandboxes/{sandbox_id}", tags=["sandboxes"])

STDIN: Final = 0
_MAX_MESSAGE_BYTES = 256 * 1024
#: Messages of input that wait for the command to read; then the client has to wait.
_MAX_INPUT = 16
#: How long the command may read nothing while that much waits; meanwhile the client's end is not noticed.
INPUT_SECONDS = 60.0

Offset = Annotated[int | None, Query(ge=0, le=2**62)]


@router.websocket("/processes/{pid}/attach", dependencies=[require(Scope.SANDBOXES)])
async def attach(
    websocket: WebSocket,
    pid: Annotated[int, Path(ge=1, le=2**31 - 1)],
    call: CallDep,
    identity: IdentityDep,
    stdout_from: Offset = None,
    stderr_from: Offset = None,
) -> None:
    """Attach to a command: its output from these offsets on (default: all that is kept), and its input."""
    process = await call.process(pid)
    await websocket.accept()
    session = _Session(websocket, call, process, identity)
    await session.run(stdout_from, stderr_from)


class _Session:
    """One client that is attached to one command."""

    def __init__(self, websocket: WebSocket, call: Call, process: ProcessInfo, identity: Identity) -> None:
        self._websocket = websocket
        self._call = call
        self._machine = call.machine
        self._process = process
        self._identity = identity
        #: Pieces of input; None is its end.
        self._input: asyncio.Queue[bytes | None] = asyncio.Queue(_MAX_INPUT)
        self._has_ended = False

    async def run(self, stdout_from: int | None, stderr_from: int | None) -> None:
        """Serve the client until the command has ended, or one of both is gone."""
        call, changes = self._call, self._call.services.changes
        async with call.services.commands.reading(call.sandbox.id, call.machine, self._process) as reader:
            with changes.watching(call.sandbox.id, of_log=False):
                error = await websocket_calls.until_first(
                    self._output(stdout_from, stderr_from),
                    self._receive(),
                    self._write_input(),
                    watch_identity(self._identity, changes),
                )
            reader.has_ended = self._has_ended
        await websocket_calls.close(self._websocket, error)

    async def _output(self, stdout_from: int | None, stderr_from: int | None) -> None:
        await self._send("started", public_process(self._process))
        output = self._machine.output(self._process.id, stdout_from=stdout_from, stderr_from=stderr_from)
        async for piece in output:
            if isinstance(piece, ProcessExit):
                self._has_ended = True
                await self._send("exit", public_exit(piece))
                return
            await self._websocket.send_bytes(bytes([piece.stream]) + piece.data)
        raise StreamBroken("the output broke off before the command ended")

    async def _receive(self) -> None:
        while True:
            message = await websocket_calls.receive(self._websocket)
            if (data := message.get("bytes")) is not None:
                await self._handle_bytes(data)
            else:
                await self._handle_text(message.get("text") or "")

    async def _handle_bytes(self, data: bytes) -> None:
        if not data or data[0] != STDIN or len(data) > _MAX_MESSAGE_BYTES:
            raise InvalidRequest(f"a binary message is the byte 0 and at most {_MAX_MESSAGE_BYTES - 1} bytes of input")
        if len(data) > 1:
            await self._put(data[1:])

    async def _handle_text(self, text: str) -> None:
        try:
            fields = json.loads(text)
            kind = fields.pop("type")
            if kind == "resize":
                await self._machine.resize(self._process.id, TerminalSize.model_validate(fields))
            elif kind == "signal":
                await self._signal(SignalRequest.model_validate(fields))
            elif kind == "end_stdin":
                await self._put(None)
            else:
                raise KeyError(kind)
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError, RecursionError):
            raise InvalidRequest(
                f'{text[:80]!r} is no message; send {{"type": "resize", "columns", "rows"}}, {{"type": "signal", '
                '"signal"} or {"type": "end_stdin"}'
            ) from None

    async def _put(self, data: bytes | None) -> None:
        try:
            async with asyncio.timeout(INPUT_SECONDS):
                await self._input.put(data)
        except TimeoutError:
            raise StreamBroken(f"the command read nothing of its input for {INPUT_SECONDS:g} s") from None

    async def _signal(self, wanted: SignalRequest) -> None:
        try:
            if wanted.descendants:
                await self._machine.kill(self._process.id)
            else:
                await self._machine.signal(self._process.id, wanted.name)
        except ProcessEnded:
            pass  # its exit is on the way

    async def _write_input(self) -> None:
        try:
            while (data := await self._input.get()) is not None:
                await self._machine.write_input(self._process.id, data)
            await self._machine.end_input(self._process.id)
        except ProcessEnded:
            pass  # its exit is on the way
        while True:  # what comes behind the end goes nowhere
            await self._input.get()

    async def _send(self, kind: str, fields: dict[str, Any]) -> None:
        await websocket_calls.send(self._websocket, kind, fields)
