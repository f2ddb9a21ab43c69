"""A thread pool for blocking work of machines and networks, separate so that API requests cannot exhaust it."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: More than there are processors: most of the work waits for the kernel or a disk.
_MAX_THREADS = 16
_threads = ThreadPoolExecutor(_MAX_THREADS, "belljar-machines")


async def in_thread(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Return the result of `work`, called in a thread of this pool. Like `asyncio.to_thread`, it cannot be stopped."""
    context = contextvars.copy_context()
    call = functools.partial(context.run, work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_threads, call)
