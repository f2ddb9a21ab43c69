"""The warm pool under every interleaving that hypothesis finds: each clone is given away once, or ended once."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any, cast

import structlog.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from belljar.model.errors import HostError, MachineDied
from belljar.node.machines.protocol import Clone
from belljar.node.machines.provision import pool as pool_module
from belljar.node.machines.provision import warm_clone as warm_clone_module
from belljar.node.machines.provision.pool import WarmPool
from belljar.node.machines.provision.warm_clone import WarmClone
from support.examples import examples
from support.interleaving import Clock, Gates, Steps

BUCKETS = st.sampled_from("abc")
NUMBERS = st.integers(0, 7)
FAULTS: dict[str, Any] = {
    "none": None,
    "died": MachineDied("no luck"),
    "host": HostError("no memory"),
    "files": OSError(24, "Too many open files"),
    "bug": ValueError("a bug"),
}


class Fake:
    """A clone: it can die, and it is ended, which takes time and may fail."""

    def __init__(self, number: int, gates: Gates) -> None:
        self.id = f"fake{number}"
        self.gates = gates
        self.died = asyncio.Event()
        self.ends = 0

    async def death(self) -> str:
        await self.died.wait()
        return "dead"

    async def end(self) -> None:
        self.ends += 1
        await self.gates.pass_through("end")


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.steps, self.gates, self.clock = Steps(), Gates(), Clock()
        self.quiet = structlog.testing.capture_logs()  # a traceback of each failure takes longer than the test
        self.quiet.__enter__()
        self.real_time = pool_module.time
        for module in (pool_module, warm_clone_module):
            module.time = cast(Any, self.clock)
        self.made: list[Fake] = []
        self.takers: list[asyncio.Task[Any]] = []
        self.others: list[asyncio.Task[Any]] = []
        self.busy = False
        self.free_memory_mb = 1000.0

    @initialize(fixed=st.sampled_from([None, None, 1, 3]))
    def begin(self, fixed: int | None) -> None:
        self.pool = WarmPool(
            fixed_size=fixed, max_size=3, memory_mb=400, has_spare_processor=lambda making: not self.busy and making < 2
        )
        self.running = self.steps.start(self.pool.run(lambda: self.free_memory_mb))

    async def make(self) -> WarmClone | None:
        outcome = await self.gates.pass_through("make")
        if outcome is None:
            return None
        fake = Fake(len(self.made), self.gates)
        stack = AsyncExitStack()
        stack.push_async_callback(fake.end)
        self.made.append(fake)
        return WarmClone(cast(Clone, fake), cast(Any, None), stack, float(outcome), since=self.clock.now)

    @rule(name=BUCKETS, keep=st.booleans())
    def record_demand(self, name: str, keep: bool) -> None:
        self.pool.record_demand(name, self.make, keep=keep)

    @rule(name=BUCKETS)
    def take(self, name: str) -> None:
        self.takers.append(self.steps.start(self.pool.take(name)))

    @precondition(lambda self: self.gates.waiting)
    @rule(number=NUMBERS, memory_mb=st.sampled_from([40, 40, 40, 150]))
    def make_one(self, number: int, memory_mb: int) -> None:
        self.gates.open("make", number, memory_mb)

    @precondition(lambda self: self.gates.waiting)
    @rule(number=NUMBERS, fault=st.sampled_from(sorted(FAULTS)))
    def fail_to_make(self, number: int, fault: str) -> None:
        self.gates.open("make", number, FAULTS[fault])

    @precondition(lambda self: self.gates.waiting)
    @rule(number=NUMBERS, fault=st.sampled_from(["none", "none", "died", "files", "bug"]))
    def end_one(self, number: int, fault: str) -> None:
        self.gates.open("end", number, FAULTS[fault])

    @precondition(lambda self: self.made)
    @rule(number=NUMBERS)
    def die(self, number: int) -> None:
        self.made[number % len(self.made)].died.set()

    @rule(memory_mb=st.sampled_from([0.0, 50.0, 200.0]))
    def shrink(self, memory_mb: float) -> None:
        self.others.append(self.steps.start(self.pool.shrink_to(memory_mb)))

    @rule(name=BUCKETS)
    def drop(self, name: str) -> None:
        self.others.append(self.steps.start(self.pool.drop(name)))

    @precondition(lambda self: self.others or self.takers)
    @rule(number=NUMBERS)
    def cancel(self, number: int) -> None:
        tasks = [*self.others, *self.takers]
        tasks[number % len(tasks)].cancel()

    @rule(seconds=st.sampled_from([0.3, 6.0, 130.0, 2000.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(busy=st.booleans(), free_memory_mb=st.sampled_from([0.0, 100.0, 1000.0]))
    def load(self, busy: bool, free_memory_mb: float) -> None:
        self.busy, self.free_memory_mb = busy, free_memory_mb

    @rule()
    def look(self) -> None:
        self.pool._changed.set()

    def given(self) -> list[Fake]:
        done = [task for task in self.takers if task.done() and not task.cancelled() and task.exception() is None]
        return [cast(Fake, task.result().clone) for task in done if task.result() is not None]

    @invariant()
    def holds(self) -> None:
        self.steps.settle()
        assert not self.running.done(), self.running
        given = self.given()
        assert len(set(map(id, given))) == len(given), "a clone was given away twice"
        waiting = [cast(Fake, each.clone) for bucket in self.pool._buckets.values() for each in bucket.clones]
        assert len(set(map(id, waiting))) == len(waiting)
        assert sum(self.pool.counts().values()) == len(waiting)
        for fake in self.made:
            places = (fake in given) + (fake in waiting) + fake.ends
            assert places == 1, f"{fake.id} is in {places} places"
        making = [name for name, _ in self.gates.waiting if name == "make"]
        assert len(making) <= 2, "more clones are made at once than processors are idle"
        assert len(self.pool._make_tasks) == len(making)

    def teardown(self) -> None:
        try:
            self.serves_demand()
            self.running.cancel()
            self.finish()
            assert self.running.cancelled()
            given = self.given()
            assert [fake.ends for fake in self.made] == [0 if fake in given else 1 for fake in self.made]
        finally:
            for module in (pool_module, warm_clone_module):
                module.time = self.real_time
            self.quiet.__exit__(None, None, None)
            self.steps.close()

    def serves_demand(self) -> None:
        """Check that demand now leads to a clone soon, whatever happened before."""
        self.busy, self.free_memory_mb = False, 1000.0
        for _ in range(20):
            self.clock.now += 10
            self.pool.record_demand("a", self.make)
            while self.gates.open("end", 0):
                self.steps.settle()
            self.gates.open("make", 0, 40)
            self.steps.settle()
            if self.pool.counts().get("a"):
                return
        raise AssertionError("no clone is made any more")

    def finish(self) -> None:
        self.steps.settle()
        while self.gates.open("end", 0) or self.gates.open("make", 0):
            self.steps.settle()


PoolMachine.TestCase.settings = settings(max_examples=examples(40), stateful_step_count=30, deadline=None)
TestPoolInterleavings = PoolMachine.TestCase
