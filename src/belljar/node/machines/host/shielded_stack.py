"""Work and cleanup that a cancellation cannot interrupt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


async def uninterrupted(work: Coroutine[Any, Any, T], release: Callable[[T], object] | None = None) -> T:
    """Return the result of `work`. When cancelled, even repeatedly, wait for its end and then raise the cancellation.

    `release` releases a result that the cancelled caller does not get.
    """
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return task.result()
    if not task.cancelled() and task.exception() is None and release is not None:
        release(task.result())
    raise cancelled


@asynccontextmanager
async def shielded_exit_stack() -> AsyncIterator[AsyncExitStack]:
    """Provide an exit stack that is always closed completely, even if its task is cancelled meanwhile."""
    stack = AsyncExitStack()
    try:
        yield stack
    finally:
        await uninterrupted(stack.aclose())
