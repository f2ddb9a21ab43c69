"""The pool's arithmetic: its size by demand and by memory, and the clones that it ends. The clones are tokens."""

from __future__ import annotations

import asyncio

import pytest

from belljar.node.machines.provision import pool as pool_module
from belljar.node.machines.provision import warm_clone as warm_clone_module
from belljar.node.machines.provision.demand import Demand
from belljar.node.machines.provision.pool import WarmPool
from belljar.node.machines.provision.warm_clone import WarmClone
from belljar.system.counters import counter_value
from support.pool_tokens import Maker, a_pool, running, settle, until


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
    evicted = counter_value("belljar_evictions", kind="clone")
    async with running(pool):
        pool.record_demand("a", make)
        await until(lambda: pool.counts() == {"a": 3})
        await pool.shrink_to(50)
        assert [token.ended for token in make.made] == [1, 1, 0]
        assert counter_value("belljar_evictions", kind="clone") - evicted == 2


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


async def test_a_bucket_is_filled_at_once_when_its_snapshot_is_there() -> None:
    pool, make, has_snapshot = a_pool(fixed_size=1), Maker(), False

    async def make_if_possible() -> WarmClone | None:
        return await make() if has_snapshot else None

    async with running(pool):
        pool.record_demand("a", make_if_possible)
        await settle(pool)
        assert pool.counts() == {"a": 0}
        has_snapshot = True
        pool.retry("a")
        await until(lambda: pool.counts() == {"a": 1})


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


async def test_many_shapes_displace_the_least_recent_that_has_no_clone() -> None:
    pool, make = a_pool(memory_mb=50), Maker(memory_mb=40)
    async with running(pool):
        pool.record_demand("kept", make)
        await until(lambda: pool.counts() == {"kept": 1})
        for number in range(100):
            pool.record_demand(f"shape {number}", make)
        assert len(pool.counts()) == pool_module._MAX_BUCKETS
        assert {"kept", "shape 99", "shape 50"} <= pool.counts().keys()
        assert "shape 0" not in pool.counts()
