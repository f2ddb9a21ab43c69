"""The output of a command as server-sent events: `started`, `stdout`, `stderr`, then `exit`, or `error`.

A stream without `exit` broke off: the connection is closed without the end of the response, and `error`, if it could
still be sent, says why. No stream that broke off looks like success.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

from belljar.control.api.live import with_heartbeats
from belljar.control.api.problems import current_request_id
from belljar.control.api.sandbox_calls import Call
from belljar.control.api.streams import Stream, StreamAborted
from belljar.control.sandboxes.output import OutputEvents, public_exit, public_process
from belljar.model.errors import BelljarError
from belljar.model.sandbox_errors import StreamBroken
from belljar.model.sandbox_values import ProcessExit, ProcessInfo

_HEADERS = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}


def event_stream(
    call: Call,
    process: ProcessInfo,
    encoding: str,
    *,
    stdout_from: int | None = None,
    stderr_from: int | None = None,
) -> Stream:
    """Return the response that follows a command from these offsets on; None: from the oldest byte that is kept."""
    stop = asyncio.Event()
    events = _events(call, process, OutputEvents(encoding), stop, stdout_from, stderr_from)
    return Stream(events, media_type="text/event-stream", headers=_HEADERS, on_disconnect=stop.set)


async def _events(
    call: Call,
    process: ProcessInfo,
    encoded: OutputEvents,
    stop: asyncio.Event,
    stdout_from: int | None,
    stderr_from: int | None,
) -> AsyncGenerator[bytes | str, None]:
    output = call.machine.output(process.id, stdout_from=stdout_from, stderr_from=stderr_from)
    async with (
        call.services.commands.reading(call.sandbox.id, call.machine, process) as reader,
        contextlib.aclosing(with_heartbeats(output, stop)) as pieces,
    ):
        with call.services.changes.watching(call.sandbox.id, of_log=False):
            yield _event("started", public_process(process))
            try:
                async for piece in pieces:
                    if piece is None:
                        yield ": still here\n\n"
                    elif not isinstance(piece, ProcessExit):
                        yield _event(*encoded.of(piece))
                    else:
                        reader.has_ended = True
                        for rest in encoded.rest():
                            yield _event(*rest)
                        yield _event("exit", public_exit(piece))
                        return
                raise StreamBroken("the output broke off before the command ended")
            except BelljarError as error:
                problem = {"code": error.code, "detail": error.message, "request_id": current_request_id()}
                yield _event("error", {**error.details, **problem})
                raise StreamAborted(error.message) from error


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
