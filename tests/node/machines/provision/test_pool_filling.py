"""When the pool makes clones, how many at once, and which it ends when memory is short. The clones are tokens."""

from __future__ import annotations

import asyncio
import time

import pytest

from belljar.node.machines.provision import pool as pool_module
from belljar.node.machines.provision.pool import WarmPool
from belljar.node.machines.provision.warm_clone import WarmClone
from support.pool_tokens import Maker, a_pool, request_clones, running, settle, until


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


async def test_several_clones_are_made_at_once_while_processors_are_idle() -> None:
    pool, make = a_pool(has_spare_processor=lambda making: making < 3), GatedMaker()
    async with running(pool):
        request_clones(pool, "a", make, 4)
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
        request_clones(pool, "a", make, 1)
        await until(lambda: make.running == 1)
    assert (make.running, make.made) == (0, [])


async def test_memory_of_clones_that_are_being_made_counts() -> None:
    pool, make = a_pool(fixed_size=8, memory_mb=130, has_spare_processor=lambda making: True), GatedMaker()
    async with running(pool):
        request_clones(pool, "a", make, 1)
        make.may_finish.release()
        await until(lambda: make.running == 2)
        await settle(pool)
        assert make.running == 2


async def test_the_pool_rests_while_the_job_of_a_taken_clone_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_REST_SECONDS", 3600.0)
    pool, make = a_pool(fixed_size=2), Maker()
    async with running(pool):
        request_clones(pool, "a", make, 1)
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
        request_clones(pool, "a", make, 1)
        await until(lambda: pool.counts() == {"a": 1})
        taken = await pool.take("a")
        await until(lambda: pool.counts() == {"a": 1})
        assert taken is not None
        await taken.end()


async def test_memory_pressure_ends_clones_of_each_bucket_in_proportion_while_nine_wait() -> None:
    busy = False
    pool, large, small = a_pool(max_size=6, has_spare_processor=lambda making: not busy), Maker(), Maker()
    async with running(pool):
        request_clones(pool, "large", large, 6)
        request_clones(pool, "small", small, 3)
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
        request_clones(pool, "a", first, 4)
        await until(lambda: pool.counts() == {"a": 4})
        request_clones(pool, "b", second, 4)
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
        request_clones(pool, "a", make, 3)
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
        request_clones(pool, "a", make, 1)
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
        request_clones(pool, "a", make, 1)
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
