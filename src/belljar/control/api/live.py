"""Waits on a client's behalf for something that may take long, without outliving the client or its key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from belljar.control.api.authentication import end_error
from belljar.control.api.streams import StreamAborted
from belljar.control.jobs.changes import Changes
from belljar.control.projects.identity import Identity
from belljar.model.errors import ServerBusy

T = TypeVar("T")

#: The interval of comment lines in an event stream without events: they keep proxies from closing it.
HEARTBEAT_SECONDS = 15.0
#: How often a wait looks whether its key is still valid, and the server still runs.
_LOOK_SECONDS = 1.0


async def while_connected(
    request: Request, identity: Identity, changes: Changes, sandbox_id: str, work: Awaitable[T]
) -> T:
    """Return the result of `work`, which is cancelled when the client disconnects or its key ends.

    The request's body must have been read. Raises ClientDisconnect, NotAuthenticated, …
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        with changes.watching(sandbox_id, of_log=False):  # so that keys which other processes revoke are noticed
            while not working.done():
                await asyncio.wait({working, leaving}, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not working.done():
                    _check(leaving, identity, changes)
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait([working, leaving])


def _check(leaving: asyncio.Task[None], identity: Identity, changes: Changes) -> None:
    if leaving.done():
        raise ClientDisconnect
    if (error := end_error(identity, changes)) is not None:
        raise error
    if changes.stopping:
        raise ServerBusy("the server stops", retry_after=2)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def with_heartbeats(source: AsyncIterator[T], stop: asyncio.Event) -> AsyncGenerator[T | None, None]:
    """Yield what the source yields, and None when that takes long. Raises StreamAborted once `stop` is set."""
    stopping = asyncio.create_task(stop.wait())
    tasks: set[asyncio.Task[Any]] = {stopping}
    try:
        while True:
            item = asyncio.create_task(_next(source))
            tasks = {stopping, item}
            while not item.done():
                await asyncio.wait(tasks, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if stopping.done():
                    raise StreamAborted("the client disconnected")
                if not item.done():
                    yield None
            if (value := item.result()) is None:
                return
            yield value
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if isinstance(source, AsyncGenerator):
            await source.aclose()


async def _next(source: AsyncIterator[T]) -> T | None:
    return await anext(source, None)
