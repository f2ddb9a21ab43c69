"""A run of code as server-sent events: `stdout`, `stderr`, `result` and `error` as they come, and `done` at last.

A stream without `done` broke off: `problem`, if it could still be sent, is the problem document that says why, and the
connection is closed without the end of the response.
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
from belljar.control.sandboxes.code_run import CodeRun, Event
from belljar.model.errors import BelljarError
from belljar.model.sandbox_errors import StreamBroken

#: Larger events are serialized outside of the event loop.
_THREAD_BYTES = 256 * 1024
_HEADERS = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}


def run_stream(call: Call, run: CodeRun) -> Stream:
    """Return the response that follows a run. When the client disconnects, the run is interrupted."""
    stop = asyncio.Event()

    def leave() -> None:
        stop.set()
        run.abandon()

    return Stream(_events(call, run, stop), media_type="text/event-stream", headers=_HEADERS, on_disconnect=leave)


async def _events(call: Call, run: CodeRun, stop: asyncio.Event) -> AsyncGenerator[bytes | str, None]:
    changes = call.services.changes
    try:
        async with contextlib.aclosing(with_heartbeats(run.events(), stop)) as events:
            with changes.watching(call.sandbox.id, of_log=False):
                async for event in events:
                    if event is None:
                        yield ": still here\n\n"
                    else:
                        yield await _text_of(event)
                    if event is not None and event.kind == "done":
                        return
        raise StreamBroken("the run broke off before its end")
    except BelljarError as error:
        problem = {"code": error.code, "status": error.status, "detail": error.message}
        problem["request_id"] = current_request_id()
        yield _event("problem", {**error.details, **problem})
        raise StreamAborted(error.message) from error
    finally:
        run.abandon()


async def _text_of(event: Event) -> str:
    """Return an event's text; that of a large one is made outside of the event loop."""
    if event.size_bytes <= _THREAD_BYTES:
        return _event(event.kind, event.data)
    return await asyncio.to_thread(_event, event.kind, event.data)


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
