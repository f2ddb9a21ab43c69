"""How long a worker waits for a control plane or a host that refuses, and how it tries again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from belljar.link.errors import LeaseLost
from belljar.model.errors import DamagedImage, HostError, MissingTool, SecretsKeyError
from belljar.system.background import Backoff
from belljar.system.counters import increment

log = structlog.get_logger()

T = TypeVar("T")
#: What is no refusal of the system but a bug is tried this often: a moment may be all that is wrong.
_TRIES_OF_BUGS = 5
#: What is not put right by waiting.
_LASTING = (MissingTool, DamagedImage, SecretsKeyError)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryTimes:
    """The waits of a worker, in seconds."""

    first_pause_seconds: float = 0.5
    max_pause_seconds: float = 10.0
    #: An attempt that has no machine yet waits this long for its image, script and input before it is lost.
    prepare_seconds: float = 120.0
    #: The output of an attempt that ended is given this long to reach the control plane; then its log is incomplete.
    drain_seconds: float = 30.0
    #: The last reports about an attempt when its worker is stopped.
    stop_seconds: float = 5.0

    def backoff(self) -> Backoff:
        """Return the pauses between tries of one thing."""
        return Backoff(self.first_pause_seconds, self.max_pause_seconds)


async def retry_until_written(
    write: Callable[[], Awaitable[T]], what: str, retry_times: RetryTimes, **fields: object
) -> T:
    """Write until it is accepted: how a job ended must not be lost because a disk is full.

    `what` and `fields` are for the log. Raises LeaseLost at once, and what is no refusal (HostError, OSError) after a
    few tries.
    """
    backoff, tries = retry_times.backoff(), 0
    while True:
        tries += 1
        try:
            return await write()
        except LeaseLost:
            raise
        except Exception as error:
            refused = isinstance(error, (HostError, OSError))
            if not refused and tries >= _TRIES_OF_BUGS:
                raise
            pause_seconds = backoff.next()
            _note(what, error, tries, pause_seconds, fields)
            await asyncio.sleep(pause_seconds)


async def retry_until_done(
    work: Callable[[], Awaitable[T]],
    what: str,
    retry_times: RetryTimes,
    cancel: asyncio.Event,
    *,
    lasting: tuple[type[Exception], ...] = (),
    **fields: object,
) -> T | None:
    """Do what has no effect before it succeeds, until it does; None when `cancel` is set first.

    Raises HostError or OSError when it is refused for longer than `prepare_seconds`, or when waiting will not
    help, as with the errors that are `lasting`; and at once what is no refusal.
    """
    backoff, tries = retry_times.backoff(), 0
    deadline = asyncio.get_running_loop().time() + retry_times.prepare_seconds
    while not cancel.is_set():
        tries += 1
        try:
            return await work()
        except (HostError, OSError) as error:
            pause_seconds = backoff.next()
            late = asyncio.get_running_loop().time() + pause_seconds > deadline
            if late or isinstance(error, (*_LASTING, *lasting)):
                raise
            _note(what, error, tries, pause_seconds, fields)
        await wait_for_event(cancel, pause_seconds)
    return None


async def wait_for_event(event: asyncio.Event, seconds: float) -> bool:
    """Wait until the event is set, or for that long; return whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
    return event.is_set()


def _note(what: str, error: Exception, tries: int, pause_seconds: float, fields: dict[str, object]) -> None:
    increment("belljar_write_retries", what=what)
    bug = None if isinstance(error, (HostError, OSError)) else error
    log.error(
        "operation_refused",
        what=what,
        error=str(error),
        tries=tries,
        retry_seconds=pause_seconds,
        exc_info=bug,
        **fields,
    )
