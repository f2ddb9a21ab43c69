"""What a machine stands on, released as a whole; and work that a cancellation does not break in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


async def uninterrupted(work: Coroutine[Any, Any, T], unused: Callable[[T], object] | None = None) -> T:
    """Return what `work` returns. Cancelled, however often, wait for its end first, and then raise the cancellation.

    `unused` releases a result that the cancelled caller does not get.
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
    if not task.cancelled() and task.exception() is None and unused is not None:
        unused(task.result())
    raise cancelled


@asynccontextmanager
async def shielded_exit_stack() -> AsyncIterator[AsyncExitStack]:
    """A stack that is closed to its end however often the worker is cancelled: nothing is left behind."""
    stack = AsyncExitStack()
    try:
        yield stack
    finally:
        await uninterrupted(stack.aclose())
