"""How a job that is cancelled stops what is done for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class JobCancelled(Exception):
    """The job was cancelled before it had a machine."""


async def unless_cancelled(cancel: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Return the result of `work`, or None when `cancel` is set first; `work` is cancelled then."""
    task, cancelled = asyncio.create_task(work), asyncio.create_task(cancel.wait())
    try:
        await asyncio.wait({task, cancelled}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        task.cancel()
        cancelled.cancel()
        await asyncio.gather(task, cancelled, return_exceptions=True)
