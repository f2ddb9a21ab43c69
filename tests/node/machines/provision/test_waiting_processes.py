"""How many processes wait, which are given up, and what a failed start costs. The processes are tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from belljar.model.errors import HostError
from belljar.node.machines.protocol import Death, DeathCause
from belljar.node.machines.provision import waiting_processes as module
from belljar.node.machines.provision.waiting_processes import StartedProcess, WaitingProcesses


class Token:
    """Stands for a process: it can die or be stopped, and it is ended once."""

    def __init__(self, number: int) -> None:
        self.id = f"token{number}"
        self.died = asyncio.Event()
        self.is_stopped = False
        self.ended = 0

    @property
    def is_usable(self) -> bool:
        return not self.died.is_set() and not self.is_stopped

    def pids(self) -> list[int]:
        return []

    async def death(self) -> Death:
        await self.died.wait()
        return Death(cause=DeathCause.KILLED, message="killed")


class Starter:
    def __init__(self, memory_mb: float = 10) -> None:
        self.started: list[Token] = []
        self.tries = 0
        self.memory_mb = memory_mb
        self.error: Exception | None = None
        self.snapshot_made_at: int | None = None

    async def __call__(self) -> StartedProcess:
        self.tries += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        token = Token(len(self.started))
        stack = AsyncExitStack()

        async def end() -> None:
            token.ended += 1

        stack.push_async_callback(end)
        self.started.append(token)
        return StartedProcess(token, stack, self.memory_mb, snapshot_made_at=self.snapshot_made_at)

    @property
    def alive(self) -> list[Token]:
        return [token for token in self.started if not token.ended]


@asynccontextmanager
async def running(waiting: WaitingProcesses, free_memory_mb: float = 1000) -> AsyncIterator[None]:
    task = asyncio.create_task(waiting.run(lambda: free_memory_mb))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def some(**more: Any) -> WaitingProcesses:
    options: dict[str, Any] = {"max_size": 4, "has_spare_processor": lambda _: True}
    return WaitingProcesses(**(options | more))


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_no_process_waits_before_a_clone_was_needed() -> None:
    waiting, start = some(), Starter()
    async with running(waiting):
        await settled()
        assert waiting.counts() == {} and start.tries == 0
        assert waiting.take("a", start) is None
        await until(lambda: waiting.counts() == {"a": 1})


async def test_as_many_wait_as_the_largest_burst_needed_at_most_the_limit() -> None:
    waiting, start = some(max_size=3), Starter()
    async with running(waiting):
        for _ in range(2):
            waiting.take("a", start)
        await until(lambda: waiting.counts() == {"a": 2})
        for _ in range(6):
            waiting.take("a", start)
        await until(lambda: waiting.counts() == {"a": 3})
        await settled()
        assert waiting.counts() == {"a": 3}


async def test_the_limit_is_of_all_snapshots_together() -> None:
    waiting, starters = some(max_size=3), [Starter() for _ in range(5)]
    async with running(waiting):
        for number, start in enumerate(starters):
            waiting.take(f"{number}", start)
            waiting.take(f"{number}", start)
        await until(lambda: sum(waiting.counts().values()) == 3)
        await settled()
        assert sum(waiting.counts().values()) == 3


async def test_a_process_is_given_once_and_replaced() -> None:
    waiting, start = some(), Starter()
    async with running(waiting):
        waiting.take("a", start)
        await until(lambda: waiting.counts() == {"a": 1})
        taken = waiting.take("a", start)
        assert taken is not None and taken.process is start.started[0]
        assert waiting.take("a", start) is None
        await until(lambda: len(start.started) > 1)
        assert start.started[0].ended == 0  # the taker's
        await taken.end()
    assert start.alive == []


@pytest.mark.parametrize("how", ["died", "stopped", "old"])
async def test_a_process_that_cannot_be_used_is_not_given_and_is_replaced(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    waiting, start = some(), Starter()
    async with running(waiting):
        waiting.take("a", start)
        await until(lambda: waiting.counts() == {"a": 1})
        first = start.started[0]
        if how == "died":
            first.died.set()
        elif how == "stopped":
            first.is_stopped = True
        else:
            monkeypatch.setattr(module, "_MAX_AGE_SECONDS", 0.0)
        assert waiting.take("a", start) is None
        monkeypatch.setattr(module, "_MAX_AGE_SECONDS", 1000.0)
        await until(lambda: first.ended == 1 and len(start.alive) >= 1)


async def test_a_process_that_dies_while_nobody_asks_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_SECONDS", 0.0)
    waiting, start = some(), Starter()
    async with running(waiting):
        waiting.take("a", start)
        await until(lambda: waiting.counts() == {"a": 1})
        start.started[0].died.set()
        await until(lambda: len(start.started) == 2 and waiting.counts() == {"a": 1})
        assert start.started[0].ended == 1


async def test_without_demand_none_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    waiting, start = some(), Starter()
    async with running(waiting):
        waiting.take("a", start)
        await until(lambda: waiting.counts() == {"a": 1})
        monkeypatch.setattr(module, "_DEMAND_SECONDS", 0.0)
        await until(lambda: waiting.counts() == {} and start.alive == [])


async def test_a_busy_host_starts_none() -> None:
    waiting, start = some(has_spare_processor=lambda _: False), Starter()
    async with running(waiting):
        assert waiting.take("a", start) is None
        await settled()
        assert start.tries == 0


async def test_memory_that_others_need_is_given_up_at_once_oldest_first() -> None:
    waiting, start = some(), Starter(memory_mb=10)
    async with running(waiting):
        for _ in range(3):
            waiting.take("a", start)
        await until(lambda: waiting.memory_mb == 30)
        await waiting.shrink_to(15)
        assert [token.ended for token in start.started[:3]] == [1, 1, 0]
        await waiting.shrink_to(-5)
        assert [token.ended for token in start.started[:3]] == [1, 1, 1]


async def test_no_process_is_started_that_has_no_room() -> None:
    waiting, start = some(), Starter(memory_mb=10)
    async with running(waiting, free_memory_mb=25):
        for _ in range(4):
            waiting.take("a", start)
        await until(lambda: waiting.memory_mb == 20)
        await settled()
        assert waiting.memory_mb == 20


async def test_the_processes_of_a_discarded_snapshot_end() -> None:
    waiting, start = some(), Starter()
    async with running(waiting):
        waiting.take("a", start)
        await until(lambda: waiting.counts() == {"a": 1})
        await waiting.drop("a")
        assert start.alive == [] and waiting.counts() == {}
        await waiting.drop("a")


async def test_a_process_of_an_earlier_snapshot_with_the_same_name_is_not_given() -> None:
    """It may see files that were replaced because they were damaged."""
    waiting, old = some(), Starter()
    old.snapshot_made_at = 1
    async with running(waiting):
        waiting.take("a", old, 1)
        await until(lambda: waiting.counts() == {"a": 1})
        new = Starter()
        new.snapshot_made_at = 2
        assert waiting.take("a", new, 2) is None
        await until(lambda: old.alive == [] and waiting.counts()["a"] > 0)
        started = waiting.take("a", new, 2)
        assert started is not None and started.process in new.started
        await started.end()


async def test_a_host_at_its_limit_is_logged_once_and_clones_start_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(module.log, "warning", lambda event, **fields: logged.append(event))
    monkeypatch.setattr(module, "_FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.001)
    waiting, start = some(), Starter()
    start.error = HostError("cannot start a process that waits: the limit of processes is reached")
    async with running(waiting):
        assert waiting.take("a", start) is None
        await until(lambda: start.tries >= 4)
        assert logged == ["waiting_process_failed"]
        start.error = None
        await until(lambda: waiting.counts() == {"a": 1})
        start.error = HostError("again")
        waiting.take("a", start)
        await until(lambda: len(logged) == 2)


async def test_a_failing_start_is_tried_ever_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.001)
    waiting, start = some(), Starter()
    start.error = HostError("no")
    async with running(waiting):
        waiting.take("a", start)
        await until(lambda: start.tries == 1)
        for _ in range(20):
            waiting.take("a", start)
            await settled()
        assert start.tries == 1  # the first pause is a second


@pytest.mark.parametrize("steps", range(12))
async def test_a_cancellation_at_any_moment_ends_every_process(steps: int) -> None:
    waiting, start = some(), Starter()
    async with running(waiting):
        for _ in range(4):
            waiting.take("a", start)
        for _ in range(steps):
            await asyncio.sleep(0)
    assert start.alive == [] and all(token.ended == 1 for token in start.started)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["take a", "take b", "die", "stop", "drop a", "shrink", "turn"]), max_size=30))
def test_whatever_happens_each_process_ends_once_or_is_the_takers(steps: list[str]) -> None:
    async def play() -> None:
        waiting, starters = some(), {"a": Starter(), "b": Starter()}
        taken: list[StartedProcess] = []
        async with running(waiting):
            for step in steps:
                verb, _, name = step.partition(" ")
                everyone = [token for start in starters.values() for token in start.alive]
                if verb == "take" and (found := waiting.take(name, starters[name])) is not None:
                    assert found.process.is_usable and found not in taken
                    taken.append(found)
                elif verb == "die" and everyone:
                    everyone[-1].died.set()
                elif verb == "stop" and everyone:
                    everyone[0].is_stopped = True
                elif verb == "drop":
                    await waiting.drop(name)
                elif verb == "shrink":
                    await waiting.shrink_to(10)
                    assert waiting.memory_mb <= 10
                await settled()
                assert sum(waiting.counts().values()) <= 4
        for each in taken:
            await each.end()
        assert all(token.ended == 1 for start in starters.values() for token in start.started)

    asyncio.run(play())
