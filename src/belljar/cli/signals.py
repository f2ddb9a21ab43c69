"""Signals that end a command: SIGINT, SIGTERM, SIGHUP. Each ends it in order, with exit code 128 + signal."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
from collections.abc import Callable, Coroutine, Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal ended the command. Not an Exception, so that no handler takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        return 128 + self.number


@functools.cache
def ending_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that end this command, without those that it was started to ignore (nohup ignores SIGHUP)."""
    return tuple(number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN)


def raise_on_signals() -> None:
    """Raise Stopped in the main thread for every such signal from now on."""
    for number in ending_signals():
        signal.signal(number, _raise)


def _raise(number: int, _frame: FrameType | None) -> None:
    raise Stopped(number)


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Defer signals while the block runs. Raises Stopped at its end if one arrived."""
    arrived: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _frame: arrived.append(number)) for number in ending_signals()
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived:
        raise Stopped(arrived[0])


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` with `asyncio.run`; the first signal cancels it. Raises Stopped then."""
    return run_until_signal(work, lambda: False)[0]


def run_until_signal(
    work: Coroutine[Any, Any, T], request_stop: Callable[[], bool], always: Iterable[signal.Signals] = ()
) -> tuple[T, int | None]:
    """Return the result of `work` and the first signal that arrived meanwhile. Raises Stopped when a signal ended it.

    Each signal calls `request_stop`, which returns whether the work will end by itself; if not, the first signal
    cancels the work. Signals in `always` end it even when it was started to ignore them.
    """
    arrived: list[int] = []

    async def watched() -> T:
        task = asyncio.current_task()
        assert task is not None

        def stop(number: int) -> None:
            arrived.append(number)
            if not request_stop() and len(arrived) == 1:
                task.cancel()

        for number in {*ending_signals(), *always}:
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
        return await work

    try:
        return asyncio.run(watched()), arrived[0] if arrived else None
    except asyncio.CancelledError:
        if arrived:
            raise Stopped(arrived[0]) from None
        raise
    finally:
        raise_on_signals()


def run_until_stopped(
    start: Callable[[asyncio.Event, Callable[[str], None]], Coroutine[Any, Any, None]], announce: Callable[[str], None]
) -> None:
    """Run a server. After it has called its `on_ready`, a signal sets its `stop` event; before, a signal cancels it.

    SIGTERM ends it even when it was started to ignore it: supervisors send no other signal before SIGKILL. `announce`
    prints the text that the server passes to `on_ready`. Raises Stopped when a signal cancelled the server.
    """
    stop, is_ready = asyncio.Event(), False

    def on_ready(text: str) -> None:
        nonlocal is_ready
        is_ready = True
        announce(text)

    def request_stop() -> bool:
        stop.set()
        return is_ready

    run_until_signal(start(stop, on_ready), request_stop, always=(signal.SIGTERM,))
