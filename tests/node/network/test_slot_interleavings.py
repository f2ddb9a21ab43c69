"""The slot pool under random interleavings: each slot serves one machine and is removed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog.testing
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from belljar.model.errors import NetworkError
from belljar.node.network import pool as pool_module
from belljar.node.network.pool import SlotPool
from belljar.settings import Settings
from support.examples import examples
from support.interleaving import Gates, Steps

NUMBERS = st.integers(0, 7)
FAULTS: dict[str, Exception] = {
    "network": NetworkError("not just now"),
    "files": OSError(24, "Too many open files"),
    "threads": RuntimeError("can't start new thread"),
    "bug": ValueError("a bug"),
}


class Slot:
    def __init__(self, host: Host) -> None:
        self.host, self.number = host, len(host.made)
        host.made.append(self)
        self.uses = 0
        self.removed = 0

    def network_slot(self) -> Any:
        return SimpleNamespace(namespace=(id(self.host), self.number))

    def remove(self) -> None:
        self.removed += 1


class Host:
    """A backend in memory; it can die, as a rootless backend does."""

    def __init__(self, *_: object) -> None:
        self.made: list[Slot] = []
        self.alive = True
        self.opened = self.closed = 0

    def open(self) -> None:
        self.opened += 1

    def close(self) -> None:
        self.closed += 1

    def create_slot(self) -> Slot:
        return Slot(self)


class SlotMachine(RuleBasedStateMachine):
    @initialize(ready=st.integers(0, 2))
    def begin(self, ready: int) -> None:
        self.steps, self.gates = Steps(), Gates()
        self.quiet = structlog.testing.capture_logs()
        self.quiet.__enter__()
        self.patch = pytest.MonkeyPatch()
        self.hosts: list[Host] = []
        self.patch.setattr(pool_module, "network_unavailable_reason", lambda: None)
        self.patch.setattr(pool_module, "build_layout", lambda *_: None)
        self.patch.setattr(pool_module, "run_netlink", lambda _: None)
        for name in ("KernelBackend", "RootlessBackend"):
            self.patch.setattr(pool_module, name, self.new_host)
        self.patch.setattr(pool_module, "in_thread", self.suspended)
        self.patch.setattr(pool_module, "_REMOVE_PAUSES", (0.0, 0.0))
        self.patch.setattr(pool_module, "_FILL_DELAY_SECONDS", 0.0)
        self.patch.setattr("belljar.system.background.FIRST_PAUSE_SECONDS", 0.0)
        self.pool = SlotPool(Settings(network_slots=ready))
        self.machines: list[asyncio.Task[Any]] = []
        self.in_use: list[Slot] = []
        self.failed_removals = 0

    def new_host(self, *_: object) -> Host:
        self.hosts.append(Host())
        return self.hosts[-1]

    async def suspended(self, work: Callable[[], Any]) -> Any:
        """Run `work`, or fail, when the test opens the gate."""
        name = getattr(work, "__name__", "other")
        name = name if name in ("open", "close", "create_slot", "remove") else "other"
        await self.gates.pass_through(name)
        return work()

    async def machine(self) -> None:
        async with self.pool.with_network_slot() as place:
            number_of_host, number = cast(Any, place).namespace
            (host,) = [host for host in self.hosts if id(host) == number_of_host]
            slot = host.made[number]
            assert slot.removed == 0, "a slot was destroyed before it was given out"
            slot.uses += 1
            self.in_use.append(slot)
            try:
                await self.gates.pass_through("machine")
                assert slot.removed == 0, "a slot was destroyed under its machine"
            finally:
                self.in_use.remove(slot)

    @rule()
    def start(self) -> None:
        self.machines.append(self.steps.start(self.machine()))

    @precondition(lambda self: self.gates.waiting)
    @rule(name=st.sampled_from(["open", "create_slot", "remove", "other", "machine", "close"]), number=NUMBERS)
    def go_on(self, name: str, number: int) -> None:
        self.gates.open(name, number)

    @precondition(lambda self: self.gates.waiting)
    @rule(
        name=st.sampled_from(["open", "create_slot", "remove", "other", "close"]),
        number=NUMBERS,
        fault=st.sampled_from(sorted(FAULTS)),
    )
    def fail(self, name: str, number: int, fault: str) -> None:
        if self.gates.open(name, number, FAULTS[fault]) and name == "remove":
            self.failed_removals += 1

    @precondition(lambda self: self.machines)
    @rule(number=NUMBERS)
    def cancel(self, number: int) -> None:
        self.machines[number % len(self.machines)].cancel()

    @precondition(lambda self: self.hosts)
    @rule()
    def host_dies(self) -> None:
        self.hosts[-1].alive = False

    @invariant()
    def holds(self) -> None:
        self.steps.settle(20)
        for host in self.hosts:
            for slot in host.made:
                assert slot.uses <= 1, "a slot was given to two machines"
                assert slot.removed <= 1
        assert self.pool.ready <= 2 + len(self.machines)

    def drain(self, *, until: Callable[[], bool]) -> None:
        for _ in range(400):
            self.steps.settle()
            if until():
                return
            for name in ("open", "other", "create_slot", "remove", "close"):
                self.gates.open(name, 0)

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        try:
            # Whatever failed before: the next caller gets a network, unless the backend dies again.
            last = self.steps.start(self.machine())
            self.drain(until=lambda: len(self.in_use) > 0 and any(name == "machine" for name, _ in self.gates.waiting))
            self.drain(until=lambda: last.done() or bool(self.in_use))
            assert not (last.done() and last.exception()), last.exception()
            while self.gates.open("machine", 0):
                self.steps.settle()
            self.drain(until=lambda: all(task.done() for task in (*self.machines, last)) or not self.settle_machines())
            closing = self.steps.start(self.pool.__aexit__(None, None, None))
            self.drain(until=lambda: closing.done())
            assert closing.done() and closing.exception() is None
            for host in self.hosts:
                lost = [slot for slot in host.made if slot.removed != 1]
                assert len(lost) <= self.failed_removals, "slots were left"
            assert (self.pool.ready, self.pool.removing) == (0, 0)
        finally:
            self.patch.undo()
            self.quiet.__exit__(None, None, None)
            self.steps.close()

    def settle_machines(self) -> bool:
        while self.gates.open("machine", 0):
            self.steps.settle()
        return True


SlotMachine.TestCase.settings = hypothesis_settings(max_examples=examples(40), stateful_step_count=40, deadline=None)
TestSlotInterleavings = SlotMachine.TestCase
