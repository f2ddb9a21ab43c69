"""Threads for work of machines and networks that blocks: of their own, so that no request can use them up."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: Most of them wait for the kernel or a disk, not for a processor.
_MAX_THREADS = 16
_threads = ThreadPoolExecutor(_MAX_THREADS, "belljar-machines")


async def in_thread(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what `work` returns, called in one of these threads. As with `asyncio.to_thread`, it cannot be stopped."""
    context = contextvars.copy_context()
    call = functools.partial(context.run, work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_threads, call)
