"""Background tasks that outlive their failures: logged, counted, started again after a pause, and nobody else's end.

    async with asyncio.TaskGroup() as group:
        group.create_task(supervise("pool_filler", self._fill))

A task that runs under `supervise` ends its group only by being cancelled. What it works on must stay usable when the
function is left by an exception at any `await` and called again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from belljar.model.errors import BelljarError
from belljar.system.counters import count, counted

log = structlog.get_logger()

FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 30.0


class Backoff:
    """Pauses between tries that grow from the first to the longest; `reset` after a success."""

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
        """Begin again with the first pause."""
        self._next_seconds = self._first_seconds


async def supervise(
    name: str,
    work: Callable[[], Awaitable[None]],
    *,
    first_pause_seconds: float = FIRST_PAUSE_SECONDS,
    max_pause_seconds: float = MAX_PAUSE_SECONDS,
) -> None:
    """Run `work()` until it returns; call it again, after a pause that grows, whenever it raises an exception.

    `name` is the task's name in the log (`background_task_failed`) and in the counter of failures. A run that lasted
    longer than the longest pause counts as a success: the next pause is short again. Raises nothing but what is no
    Exception: cancelling ends it at once.
    """
    backoff = Backoff(first_pause_seconds, max_pause_seconds)
    while True:
        started = time.monotonic()
        try:
            await work()
        except Exception as error:  # noqa: BLE001 (nothing of what it raises may end its neighbours)
            if time.monotonic() - started > max_pause_seconds:
                backoff.reset()
            pause_seconds = backoff.next()
            note_failure(name, error, retry_seconds=pause_seconds)
            await asyncio.sleep(pause_seconds)
        else:
            return


def note_failure(name: str, error: Exception, **fields: object) -> None:
    """Log and count one failure of a background task: for loops that handle their failures themselves.

    An error that says what to do is logged as its sentence, a bug with its traceback.
    """
    count("belljar_background_failures", task=name)
    known = isinstance(error, (BelljarError, OSError))
    log.error(
        "background_task_failed",
        task=name,
        error=str(error) or type(error).__name__,
        exc_info=None if known else error,
        **fields,
    )


def failures(name: str) -> int:
    """Return how often the background task of that name has failed in this process."""
    return counted("belljar_background_failures", task=name)
