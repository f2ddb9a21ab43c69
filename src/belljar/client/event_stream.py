# Written by script/sdk from event_stream_async.py; change that instead.
"""The server-sent events of one answer."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

from belljar.client.errors import ServerError
from belljar.client.events import Event, EventParser, MalformedEvent
from belljar.client.transport import Transport


def events_of(transport: Transport, method: str, path: str, **rest: Any) -> Generator[Event, None, None]:
    """Send a request and yield the events of its answer. Raises ServerError, Unreachable."""
    parser = EventParser()
    with contextlib.closing(transport.lines(path, method=method, **rest)) as lines:
        for line in lines:
            try:
                event = parser.feed(line)
            except MalformedEvent as error:
                raise ServerError(200, "not_belljar", f"the output is malformed: {error}") from None
            if event is not None:
                yield event
