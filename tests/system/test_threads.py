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


@pytest.mark.parametrize("has_thread", [True, False])
async def test_work_that_needs_a_new_thread_on_a_host_without_one_is_done_or_never_begins(
    monkeypatch: pytest.MonkeyPatch, has_thread: bool
) -> None:
    """The executor queues the work before it starts a thread, so another thread may have begun it."""
    threads, done = Threads("test", 2), threading.Event()
    if has_thread:
        await threads.run(lambda: None)

    def fail() -> None:
        done.wait(10 if has_thread else 0)
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threads._executor, "_adjust_thread_count", fail)
        if has_thread:
            assert await threads.run(lambda: done.set() or "result") == "result"
        else:
            with pytest.raises(RuntimeError):
                await threads.run(done.set)
    await threads.run(lambda: None)
    assert done.is_set() is has_thread
    threads.shutdown()
