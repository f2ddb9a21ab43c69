"""Threads for blocking work, in pools of their own, so that one kind of work cannot use up the threads of another."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """A pool of at most `max_threads` threads, which are started when they are needed."""

    def __init__(self, name: str, max_threads: int) -> None:
        self._executor = ThreadPoolExecutor(max_threads, name)

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `work` returns, called in a thread that goes on if the caller is cancelled."""
        return await self._start(functools.partial(work, *args, **kwargs))

    async def run_to_end(
        self,
        work: Callable[[], T],
        *,
        stop: Callable[[], object] | None = None,
        undo: Callable[[T], object] | None = None,
    ) -> T:
        """Return what `work` returns, called in a thread. If the caller is cancelled, wait for the thread, then raise.

        So the thread touches nothing that the caller releases next. `stop` asks the work to end early; `undo` releases
        a result that the cancelled caller does not get.
        """
        future = self._start(work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if stop is not None:
                stop()
            while not future.done():
                with suppress(asyncio.CancelledError):  # cancelled again, which changes nothing
                    await asyncio.wait([future])
            if not future.cancelled() and future.exception() is None and undo is not None:
                undo(future.result())
            raise

    def shutdown(self) -> None:
        """Wait for the threads' work, and end them."""
        self._executor.shutdown()

    def _start(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Start the work in a thread. Raises RuntimeError when it needs a new thread and the host allows no more."""
        context, future = contextvars.copy_context(), Future[T]()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = context.run(work)
            except BaseException as error:  # noqa: BLE001 (the caller gets it)
                future.set_exception(error)
            else:
                future.set_result(result)

        try:
            self._executor.submit(run)
        except RuntimeError:
            # The work is in the executor's queue all the same. A thread that has begun it gives its result to the
            # caller, who releases what it holds; otherwise no thread may begin it any more.
            if future.cancel():
                raise
        return asyncio.wrap_future(future)
