"""Blocking work in threads, and what becomes of it when its caller is cancelled."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from belljar.system.threads import Threads

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")


async def test_work_returns_raises_and_sees_the_context_of_its_caller() -> None:
    threads = Threads("test", 1)
    variable.set("mine")
    assert await threads.run(lambda number, more: (number, more, variable.get()), 1, more=2) == (1, 2, "mine")
    assert await threads.run_to_end(variable.get) == "mine"
    for run in (threads.run, threads.run_to_end):
        with pytest.raises(ZeroDivisionError):
            await run(lambda: 1 // 0)
    threads.shutdown()


async def test_a_cancelled_caller_waits_for_the_end_of_its_thread() -> None:
    threads, started, stop, undone = Threads("test", 1), threading.Event(), threading.Event(), []

    def work() -> str:
        started.set()
        assert stop.wait(10)
        return "result"

    task = asyncio.create_task(threads.run_to_end(work, undo=undone.append))
    await asyncio.to_thread(started.wait, 10)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
    stop.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert undone == ["result"]


async def test_stop_ends_the_work_of_a_cancelled_caller() -> None:
    threads, stop = Threads("test", 1), threading.Event()
    task = asyncio.create_task(threads.run_to_end(lambda: stop.wait(10), stop=stop.set))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
