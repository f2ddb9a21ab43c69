"""Background tasks: a failure is logged and counted, and the task restarts after a pause, without ending its group.

    async with asyncio.TaskGroup() as group:
        group.create_task(supervise("pool_filler", self._fill))

The data that such a task works on must stay usable when an exception leaves the function at any `await`, and the
function is called again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from belljar.model.errors import BelljarError
from belljar.system.counters import counter_value, increment

log = structlog.get_logger()

FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 30.0


class Backoff:
    """Pauses between tries, which grow from the first to the longest; `reset` it after a success."""

    def __init__(
        self, first_seconds: float = FIRST_PAUSE_SECONDS, max_seconds: float = MAX_PAUSE_SECONDS, factor: float = 2.0
    ) -> None:
        self._first_seconds = first_seconds
        self._max_seconds = max_seconds
        self._factor = factor
        self._next_seconds = first_seconds

    def next(self) -> float:
        """Return the seconds to wait before the next try, and make the pause after that longer."""
        seconds = self._next_seconds
        self._next_seconds = min(self._max_seconds, seconds * self._factor)
        return seconds

    def reset(self) -> None:
        """Start again with the first pause."""
        self._next_seconds = self._first_seconds


async def supervise(
    name: str,
    work: Callable[[], Awaitable[None]],
    *,
    first_pause_seconds: float = FIRST_PAUSE_SECONDS,
    max_pause_seconds: float = MAX_PAUSE_SECONDS,
) -> None:
    """Run `work()` until it returns; if it raises an exception, call it again after a pause, which grows.

    `name` is the task's name in the log (`background_task_failed`) and in the counter of failures. A run longer than
    the longest pause counts as a success, after which the next pause is short. Cancelling ends it at once.
    """
    backoff = Backoff(first_pause_seconds, max_pause_seconds)
    while True:
        started = time.monotonic()
        try:
            await work()
        except Exception as error:  # noqa: BLE001 (a failure must not end other tasks of the group)
            if time.monotonic() - started > max_pause_seconds:
                backoff.reset()
            pause_seconds = backoff.next()
            report_failure(name, error, retry_seconds=pause_seconds)
            await asyncio.sleep(pause_seconds)
        else:
            return


def report_failure(name: str, error: Exception, **fields: object) -> None:
    """Log and count one failure of a background task; for loops that handle their failures themselves.

    An error of belljar or of the operating system is logged as its message, a bug with its traceback.
    """
    increment("belljar_background_failures", task=name)
    known = isinstance(error, (BelljarError, OSError))
    log.error(
        "background_task_failed",
        task=name,
        error=str(error) or type(error).__name__,
        exc_info=None if known else error,
        **fields,
    )


def failure_count(name: str) -> int:
    """Return how often the background task of this name has failed in this process."""
    return counter_value("belljar_background_failures", task=name)
