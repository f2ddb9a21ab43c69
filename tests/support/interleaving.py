"""Runs coroutines one step at a time, so that a property test decides who goes on at each point of suspension."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Gates:
    """Places where fakes are suspended until the test lets one of them go on, with a result or an error."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, asyncio.Future[Any]]] = []

    async def pass_through(self, name: str) -> Any:
        """Suspend; what is returned or raised then is the test's choice. Work like a process's end is not cancelled."""
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((name, future))
        try:
            return await future
        finally:
            self.waiting = [each for each in self.waiting if each[1] is not future]

    def open(self, name: str, number: int, outcome: Any = None) -> bool:
        """Let one that waits under this name go on; False when none does."""
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
    """An event loop that runs only while the test says so."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.tasks: list[asyncio.Task[Any]] = []

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.loop.create_task(work)
        self.tasks.append(task)
        return task

    def settle(self, turns: int = 12) -> None:
        """Run everything that can go on without a gate."""

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
    """Stands for the module `time` in what is tested."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now
