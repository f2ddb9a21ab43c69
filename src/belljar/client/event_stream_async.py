"""The server-sent events of one answer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from belljar.client.errors import ServerError
from belljar.client.events import Event, EventParser, MalformedEvent
from belljar.client.transport_async import AsyncTransport


async def events_of(transport: AsyncTransport, method: str, path: str, **rest: Any) -> AsyncGenerator[Event, None]:
    """Send a request and yield the events of its answer. Raises ServerError, Unreachable."""
    parser = EventParser()
    async with contextlib.aclosing(transport.lines(path, method=method, **rest)) as lines:
        async for line in lines:
            try:
                event = parser.feed(line)
            except MalformedEvent as error:
                raise ServerError(200, "not_belljar", f"the output is malformed: {error}") from None
            if event is not None:
                yield event
