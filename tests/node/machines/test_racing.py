"""Work against a machine's death: the reason of the death, the work's own result or error, and the time to drain."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from belljar.model.errors import GuestProtocolError, MachineDied
from belljar.node.machines.protocol import Death, DeathCause, Machine
from belljar.node.machines.racing import MachineDead, run_unless_dead


class FakeMachine:
    """A machine that dies after a delay; None: it lives on."""

    def __init__(self, dies_after_seconds: float | None = None) -> None:
        self._seconds = dies_after_seconds

    async def death(self) -> Death:
        await asyncio.sleep(3600 if self._seconds is None else self._seconds)
        return Death(cause=DeathCause.GUEST_PANIC, message="the kernel panicked")


def machine(dies_after_seconds: float | None = None) -> Machine:
    return cast(Machine, FakeMachine(dies_after_seconds))


async def work(seconds: float, outcome: Any = "done") -> Any:
    await asyncio.sleep(seconds)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def test_the_result_is_returned_while_the_machine_lives() -> None:
    assert await run_unless_dead(machine(), work(0)) == "done"


async def test_a_death_ends_the_work_with_its_reason() -> None:
    with pytest.raises(MachineDead, match="the kernel panicked") as raised:
        await run_unless_dead(machine(0), work(3600))
    assert raised.value.death.cause is DeathCause.GUEST_PANIC


async def test_a_broken_stream_waits_for_the_reason_of_the_death() -> None:
    with pytest.raises(MachineDead, match="the kernel panicked"):
        await run_unless_dead(machine(0.05), work(0, MachineDied("the stream ended")))


async def test_another_error_of_the_work_is_raised_at_once() -> None:
    with pytest.raises(GuestProtocolError):
        await run_unless_dead(machine(0.5), work(0, GuestProtocolError("no frame")))


async def test_work_may_read_on_after_the_death() -> None:
    assert await run_unless_dead(machine(0), work(0.05), drain_seconds=1.0) == "done"


async def test_the_work_is_cancelled_with_its_caller() -> None:
    ended = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    task = asyncio.create_task(run_unless_dead(machine(), endless()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
