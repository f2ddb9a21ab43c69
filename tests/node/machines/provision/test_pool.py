"""The pool's arithmetic: its size by demand and by memory, and the clones that it ends. The clones are tokens."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import pytest

from belljar.model.errors import MachineDied
from belljar.node.machines.protocol import Clone
from belljar.node.machines.provision import pool as pool_module
from belljar.node.machines.provision import warm_clone as warm_clone_module
from belljar.node.machines.provision.demand import Demand
from belljar.node.machines.provision.pool import WarmPool
from belljar.node.machines.provision.warm_clone import WarmClone


class Token:
    """Stands for a clone: it can die, and it is ended once."""

    numbers = itertools.count()

    def __init__(self) -> None:
        self.id = f"token{next(self.numbers)}"
        self.died = asyncio.Event()
        self.ended = 0

    async def death(self) -> str:
        await self.died.wait()
        return "dead"


class Maker:
    def __init__(self, memory_mb: float = 40) -> None:
        self.made: list[Token] = []
        self.memory_mb = memory_mb
        self.fails = False

    async def __call__(self) -> WarmClone:
        if self.fails:
            raise MachineDied("no luck")
        token = Token()
        stack = AsyncExitStack()

        async def end() -> None:
            token.ended += 1

        stack.push_async_callback(end)
        self.made.append(token)
        return WarmClone(cast(Clone, token), cast(Any, None), stack, self.memory_mb)

    @property
    def alive(self) -> list[Token]:
        return [token for token in self.made if not token.ended]


def a_pool(**more: Any) -> WarmPool:
    options: dict[str, Any] = {
        "fixed_size": None,
        "max_size": 4,
        "memory_mb": 1000,
        "has_spare_processor": lambda making: making < 2,
    }
    return WarmPool(**(options | more))


@asynccontextmanager
async def running(pool: WarmPool, free_memory_mb: float = 10_000) -> AsyncIterator[None]:
    task = asyncio.create_task(pool.run(lambda: free_memory_mb))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def settle(pool: WarmPool) -> None:
    """Wait until the pool has checked everything at least once more."""
    for _ in range(3):
        pool._changed.set()
        await asyncio.sleep(0.02)


async def test_one_clone_waits_after_the_first_demand_and_all_end_with_the_pool() -> None:
    pool, make = a_pool(), Maker()
    async with running(pool):
        pool.record_demand("a", make)
        await until(lambda: pool.counts() == {"a": 1})
        await settle(pool)
        assert len(make.made) == 1
    assert [token.ended for token in make.made] == [1]


async def test_a_taken_clone_is_replaced_and_belongs_to_the_taker() -> None:
    pool, make = a_pool(), Maker()
    async with running(pool):
        pool.record_demand("a", make)
        await until(lambda: pool.counts() == {"a": 1})
        taken = await pool.take("a")
        assert taken is not None
        await until(lambda: pool.counts() == {"a": 1})
    assert [token.ended for token in make.made] == [0, 1]
    await taken.end()
    assert await pool.take("a") is None


async def test_a_dead_clone_is_not_given_away_and_is_replaced() -> None:
    pool, make = a_pool(), Maker()
    async with running(pool):
        pool.record_demand("a", make)
        await until(lambda: pool.counts() == {"a": 1})
        make.made[0].died.set()
        await until(lambda: make.made[0].ended == 1)
        await until(lambda: pool.counts() == {"a": 1})
        taken = await pool.take("a")
        assert taken is not None and taken.clone is make.made[1]
        await taken.end()


async def test_an_old_clone_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, make = a_pool(), Maker()
    async with running(pool):
        pool.record_demand("a", make)
        await until(lambda: pool.counts() == {"a": 1})
        monkeypatch.setattr(warm_clone_module, "MAX_AGE_SECONDS", -1)
        assert await pool.take("a") is None
        await until(lambda: make.made[0].ended == 1)


async def test_the_budget_bounds_all_buckets_together() -> None:
    pool, make = a_pool(fixed_size=10, memory_mb=130), Maker(memory_mb=40)
    async with running(pool):
        for name in ("a", "b"):
            pool.record_demand(name, make)
        await until(lambda: sum(pool.counts().values()) == 3)
        await settle(pool)
        assert len(make.alive) == 3 and pool.memory_mb == 120


async def test_a_budget_smaller_than_one_clone_keeps_none() -> None:
    pool, make = a_pool(memory_mb=30), Maker(memory_mb=40)
    async with running(pool):
        pool.record_demand("a", make)
        await until(lambda: make.made and make.made[0].ended)
        await settle(pool)
        assert pool.counts() == {"a": 0} and len(make.made) == 1


async def test_jobs_reclaim_the_memory_of_clones() -> None:
    pool, make = a_pool(fixed_size=3), Maker(memory_mb=40)
    async with running(pool):
        pool.record_demand("a", make)
        await until(lambda: pool.counts() == {"a": 3})
        await pool.shrink_to(50)
        assert [token.ended for token in make.made] == [1, 1, 0]


async def test_no_clone_is_made_while_jobs_use_every_processor() -> None:
    busy = True
    pool, make = a_pool(has_spare_processor=lambda making: not busy), Maker()
    async with running(pool):
        pool.record_demand("a", make)
        await settle(pool)
        assert make.made == []
        busy = False
        await until(lambda: pool.counts() == {"a": 1})


async def test_a_bucket_that_cannot_be_filled_pauses() -> None:
    pool, make, other = a_pool(), Maker(), Maker()
    make.fails = True
    async with running(pool):
        pool.record_demand("a", make)
        pool.record_demand("b", other)
        await until(lambda: pool.counts() == {"a": 0, "b": 1})
        make.fails = False
        await settle(pool)
        assert make.made == []


async def test_clones_of_a_discarded_snapshot_are_ended() -> None:
    pool, make = a_pool(fixed_size=2), Maker()
    async with running(pool):
        pool.record_demand("a", make)
        await until(lambda: pool.counts() == {"a": 2})
        await pool.drop("a")
        assert make.alive == [] and await pool.take("a") is None


class SlowMaker(Maker):
    """Its clones take as long to end as the test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.may_end = asyncio.Event()
        self.ending = 0

    async def __call__(self) -> WarmClone:
        waiting = await super().__call__()

        async def wait() -> None:
            self.ending += 1
            await self.may_end.wait()

        waiting.stack.push_async_callback(wait)
        return waiting


@pytest.mark.parametrize("meanwhile", ["demand for another bucket", "take one"])
async def test_jobs_come_while_surplus_clones_are_being_ended(meanwhile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two minutes after a burst: its clones are ended one by one, which takes a moment for each."""
    pool, make, other = a_pool(), SlowMaker(), Maker()
    background = asyncio.create_task(pool.run(lambda: 10_000))
    try:
        for _ in range(3):
            pool.record_demand("a", make)
        await until(lambda: pool.counts() == {"a": 3})
        monkeypatch.setattr(WarmPool, "_target_size", lambda self, bucket: 1 if bucket.make is other else 0)
        pool._changed.set()
        await until(lambda: make.ending > 0)
        if meanwhile == "take one":
            taken = await pool.take("a")
            assert taken is None or taken.clone not in [token for token in make.made if token.ended]
        pool.record_demand("b", other)
        make.may_end.set()
        await until(lambda: pool.counts().get("b") == 1)
        assert not background.done()
    finally:
        make.may_end.set()
        background.cancel()
        await asyncio.gather(background, return_exceptions=True)
    assert [token.ended for token in make.made] == [1, 1, 1]


async def test_buckets_without_demand_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs may request as many shapes as there are numbers; the pool remembers recent ones."""
    pool, make = a_pool(memory_mb=0), Maker()
    async with running(pool):
        for number in range(500):
            pool.record_demand(f"bucket {number}", make)
        monkeypatch.setattr(Demand, "is_recent", lambda *_: False)
        pool._changed.set()
        await until(lambda: pool.counts() == {})


class GatedMaker(Maker):
    """Its clones are ready when the test lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.may_finish = asyncio.Semaphore(0)
        self.running = 0

    async def __call__(self) -> WarmClone:
        self.running += 1
        try:
            await self.may_finish.acquire()
        finally:
            self.running -= 1
        return await super().__call__()


def ask(pool: WarmPool, name: str, make: Maker, count: int) -> None:
    """Have `count` jobs come at once."""
    for _ in range(count):
        pool.record_demand(name, make)


async def test_several_clones_are_made_at_once_while_processors_are_idle() -> None:
    pool, make = a_pool(has_spare_processor=lambda making: making < 3), GatedMaker()
    async with running(pool):
        ask(pool, "a", make, 4)
        await until(lambda: make.running == 1)  # the first tells how much memory each takes
        make.may_finish.release()
        await until(lambda: make.running == 3)
        await settle(pool)
        assert make.running == 3
        for _ in range(3):
            make.may_finish.release()
        await until(lambda: pool.counts() == {"a": 4})


async def test_clones_that_are_being_made_end_with_the_pool() -> None:
    pool, make = a_pool(), GatedMaker()
    async with running(pool):
        ask(pool, "a", make, 1)
        await until(lambda: make.running == 1)
    assert (make.running, make.made) == (0, [])


async def test_memory_of_clones_that_are_being_made_counts() -> None:
    pool, make = a_pool(fixed_size=8, memory_mb=130, has_spare_processor=lambda making: True), GatedMaker()
    async with running(pool):
        ask(pool, "a", make, 1)
        make.may_finish.release()
        await until(lambda: make.running == 2)
        await settle(pool)
        assert make.running == 2


async def test_the_pool_rests_while_the_job_of_a_taken_clone_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_REST_SECONDS", 3600.0)
    pool, make = a_pool(fixed_size=2), Maker()
    async with running(pool):
        ask(pool, "a", make, 1)
        await until(lambda: pool.counts() == {"a": 2})
        first = await pool.take("a")
        await settle(pool)
        assert len(make.made) == 2
        assert first is not None
        await first.end()
        await until(lambda: pool.counts() == {"a": 2})


async def test_an_empty_bucket_is_filled_at_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_REST_SECONDS", 3600.0)
    pool, make = a_pool(fixed_size=1), Maker()
    async with running(pool):
        ask(pool, "a", make, 1)
        await until(lambda: pool.counts() == {"a": 1})
        taken = await pool.take("a")
        await until(lambda: pool.counts() == {"a": 1})
        assert taken is not None
        await taken.end()


async def test_memory_pressure_ends_clones_of_each_bucket_in_proportion_while_nine_wait() -> None:
    busy = False
    pool, large, small = a_pool(max_size=6, has_spare_processor=lambda making: not busy), Maker(), Maker()
    async with running(pool):
        ask(pool, "large", large, 6)
        ask(pool, "small", small, 3)
        await until(lambda: pool.counts() == {"large": 6, "small": 3})
        busy = True
        seen = []
        for memory_mb in range(9 * 40, -1, -40):
            await pool.shrink_to(memory_mb)
            seen.append(tuple(pool.counts().values()))
        assert seen == [(6, 3), (5, 3), (5, 2), (4, 2), (3, 2), (3, 1), (2, 1), (1, 1), (1, 0), (0, 0)]
        assert [token.ended for token in large.made] == [1] * 6


async def test_a_full_pool_makes_room_for_another_bucket() -> None:
    pool, first, second = a_pool(max_size=4, memory_mb=170), Maker(), Maker()
    async with running(pool):
        ask(pool, "a", first, 4)
        await until(lambda: pool.counts() == {"a": 4})
        ask(pool, "b", second, 4)
        # The first of another kind tells how much memory it takes; there is none for it.
        await until(lambda: second.made and second.made[0].ended == 1)
        pool._buckets["b"].not_before = 0.0
        pool._changed.set()
        await until(lambda: pool.counts() == {"a": 2, "b": 2})
        await settle(pool)
        assert pool.counts() == {"a": 2, "b": 2}


async def test_clones_over_the_target_wait_for_jobs_as_long_as_jobs_come(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, make = a_pool(), Maker()
    async with running(pool):
        ask(pool, "a", make, 3)
        await until(lambda: pool.counts() == {"a": 3})
        monkeypatch.setattr(WarmPool, "_target_size", lambda *_: 1)
        await settle(pool)
        assert pool.counts() == {"a": 3}
        monkeypatch.setattr(pool_module, "_SURPLUS_SECONDS", 0.0)
        pool._changed.set()
        await until(lambda: pool.counts() == {"a": 1})


async def test_memory_that_jobs_take_back_is_not_filled_again_at_once() -> None:
    free_mb = [1000.0]
    pool, make = a_pool(fixed_size=3), Maker()
    background = asyncio.create_task(pool.run(lambda: free_mb[0]))
    try:
        ask(pool, "a", make, 1)
        await until(lambda: pool.counts() == {"a": 3})
        free_mb[0] = 50.0
        await settle(pool)
        assert pool.counts() == {"a": 1}
        free_mb[0] = 1000.0
        await settle(pool)
        assert (pool.counts(), len(make.made)) == ({"a": 1}, 3)
    finally:
        background.cancel()
        await asyncio.gather(background, return_exceptions=True)


async def test_pauses_grow_while_a_bucket_cannot_be_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, make = a_pool(), Maker()
    make.fails = True
    async with running(pool):
        ask(pool, "a", make, 1)
        pauses = []
        for _ in range(6):
            await until(lambda: pool._buckets["a"].not_before > time.monotonic())
            pauses.append(round(pool._buckets["a"].not_before - time.monotonic()))
            pool._buckets["a"].not_before = 0.0
            pool._changed.set()
        assert pauses == [5, 10, 20, 40, 80, 80]
        make.fails = False
        pool._buckets["a"].not_before = 0.0
        await until(lambda: pool.counts() == {"a": 1})


async def test_a_pool_that_nobody_uses_does_nothing() -> None:
    looks = 0

    def free_memory_mb() -> float:
        nonlocal looks
        looks += 1
        return 1000.0

    pool = a_pool()
    background = asyncio.create_task(pool.run(free_memory_mb))
    await asyncio.sleep(0.05)
    assert pool._pause_seconds(is_missing=False) is None
    before = looks
    await asyncio.sleep(0.05)
    assert looks == before
    background.cancel()
    await asyncio.gather(background, return_exceptions=True)
