"""What a machine stands on, let go of as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager


@asynccontextmanager
async def holding() -> AsyncIterator[AsyncExitStack]:
    """A stack that is closed to its end even when the worker is cancelled twice: nothing is left behind."""
    held = AsyncExitStack()
    try:
        yield held
    finally:
        closing = asyncio.create_task(held.aclose())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await asyncio.wait({closing})
            raise
