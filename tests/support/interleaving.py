"""Runs coroutines one step at a time, so that a property test decides which task continues at each suspension."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Gates:
    """Points where fakes are suspended until the test resumes one of them, with a result or an error."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, asyncio.Future[Any]]] = []

    async def pass_through(self, name: str) -> Any:
        """Suspend; return or raise what the test chooses. Work like a process's end is not cancelled."""
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((name, future))
        try:
            return await future
        finally:
            self.waiting = [each for each in self.waiting if each[1] is not future]

    def open(self, name: str, number: int, outcome: Any = None) -> bool:
        """Resume a task that waits under this name; return False when none does."""
        futures = [future for waiting, future in self.waiting if waiting == name and not future.done()]
        if not futures:
            return False
        future = futures[number % len(futures)]
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
        return True


class Steps:
    """An event loop that runs only when the test lets it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.tasks: list[asyncio.Task[Any]] = []

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.loop.create_task(work)
        self.tasks.append(task)
        return task

    def settle(self, turns: int = 12) -> None:
        """Run every task up to its next gate."""

        async def turn() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turn())

    def close(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.settle()
        self.loop.close()


class Clock:
    """Replaces the module `time` in the tested modules."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now
