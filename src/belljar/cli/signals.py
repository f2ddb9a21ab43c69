"""What ends a command from outside: ^C, SIGTERM, a closed terminal. Each ends it in order, with code 128 + signal."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal told the command to end. No Exception: nothing on the way is to take it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        return 128 + self.number


@functools.cache
def heeded() -> tuple[signal.Signals, ...]:
    """The signals that end this command: not those that it was started to ignore, as nohup does with SIGHUP."""
    return tuple(number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN)


def raise_on_signals() -> None:
    """Raise Stopped in the main thread for every such signal from now on."""
    for number in heeded():
        signal.signal(number, _raise)


def _raise(number: int, _frame: FrameType | None) -> None:
    raise Stopped(number)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Hold signals back while the block runs; raises Stopped at its end when one came."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _frame: came.append(number)) for number in heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise Stopped(came[0])


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, cancelled in order by the first such signal. Raises Stopped then."""
    return run_until_signal(work, lambda: False)[0]


def run_until_signal(work: Coroutine[Any, Any, T], ask: Callable[[], bool]) -> tuple[T, int | None]:
    """Return what the work returns, and the first such signal that came meanwhile. Raises Stopped when it has ended it.

    Each signal calls `ask`, which may ask the work to end by itself and says whether that will do; otherwise the first
    signal cancels the work.
    """
    came: list[int] = []

    async def watched() -> T:
        task = asyncio.current_task()
        assert task is not None

        def stop(number: int) -> None:
            came.append(number)
            if not ask() and len(came) == 1:
                task.cancel()

        for number in heeded():
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
        return await work

    try:
        return asyncio.run(watched()), came[0] if came else None
    except asyncio.CancelledError:
        if came:
            raise Stopped(came[0]) from None
        raise
    finally:
        raise_on_signals()
