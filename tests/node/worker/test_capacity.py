"""Room on a node: never promised twice, and nobody waits for it for ever."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from belljar.model.job import Resources
from belljar.node.worker.capacity import MACHINE_OVERHEAD_MB, Capacity
from belljar.system.idle_processors import IdleProcessors
from support.examples import examples

SMALL, BUILDER = Resources(vcpus=1, memory_mb=128), Resources(vcpus=2, memory_mb=1024)


def room_for(count: int, memory_mb: int = 128) -> Capacity:
    return Capacity(vcpus=16, memory_mb=count * (memory_mb + MACHINE_OVERHEAD_MB))


def never() -> asyncio.Event:
    return asyncio.Event()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_builder_waits_until_there_is_room_and_no_job_comes_before_it() -> None:
    capacity = room_for(1, 1024)
    capacity.hold("job", SMALL)
    building = asyncio.create_task(capacity.acquire("builder", BUILDER, never()))
    await settle()
    assert not building.done()
    assert capacity.free() == (0, 0)
    capacity.release("job")
    assert await building
    assert capacity.free()[1] == 0
    capacity.release("builder")
    assert capacity.free() == (16, 1024)


async def test_jobs_that_all_wait_for_builders_do_not_wait_for_each_other() -> None:
    """As many as there is room for: none of them leaves any for a builder."""
    capacity, order = room_for(6), []
    keys = [f"job{number}" for number in range(6)]
    for key in keys:
        capacity.hold(key, SMALL)

    async def provide(key: str) -> None:
        async with capacity.lent(key, never()), capacity.held(f"{key} builder", BUILDER, never()) as admitted:
            assert admitted
            assert sum(held.memory_mb for held in capacity._held.values()) <= capacity.memory_mb
            order.append(key)
            await asyncio.sleep(0.001)
        assert capacity._held[key] == SMALL

    async with asyncio.timeout(10):
        await asyncio.gather(*(provide(key) for key in keys))
    assert order == keys
    assert capacity.jobs == 6


async def test_what_a_job_gave_up_for_now_is_not_given_to_a_new_one() -> None:
    capacity = room_for(2)
    capacity.hold("one", SMALL)
    before = capacity.free()
    async with capacity.lent("one", never()):
        assert capacity.free() == before
    assert capacity.free() == before


async def test_a_builder_larger_than_the_node_runs_alone() -> None:
    capacity = room_for(2)
    capacity.hold("job", SMALL)
    building = asyncio.create_task(capacity.acquire("builder", BUILDER, never()))
    await settle()
    assert not building.done()
    capacity.release("job")
    assert await building


async def test_one_that_is_cancelled_while_it_waits_holds_nothing_and_lets_others_pass() -> None:
    capacity, cancel = room_for(2), asyncio.Event()
    capacity.hold("job", SMALL)
    large = asyncio.create_task(capacity.acquire("large", BUILDER, cancel))
    small = asyncio.create_task(capacity.acquire("small", SMALL, never()))
    await settle()
    assert not small.done()
    cancel.set()
    assert not await large and await small
    assert capacity.jobs == 2
    large, capacity.vcpus = asyncio.create_task(capacity.acquire("large", BUILDER, never())), 1
    await settle()
    large.cancel()
    with pytest.raises(asyncio.CancelledError):
        await large
    capacity.release("job")
    capacity.release("small")
    assert capacity.jobs == 0 and capacity.free()[0] == 1


@pytest.mark.parametrize("steps", range(6))
async def test_one_that_is_cancelled_in_the_moment_of_its_turn_holds_nothing(steps: int) -> None:
    capacity = room_for(1)

    async def build() -> None:
        async with capacity.held("builder", SMALL, never()):
            await asyncio.sleep(60)

    building = asyncio.create_task(build())
    for _ in range(steps):
        await asyncio.sleep(0)
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert capacity.jobs == 0


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(64, 900), st.booleans(), st.integers(0, 3)), min_size=1, max_size=12
    )
)
async def test_whatever_is_asked_for_everybody_is_served_and_no_more_is_promised_than_there_is(
    requests: list[tuple[int, int, bool, int]],
) -> None:
    capacity = Capacity(vcpus=4, memory_mb=1000)

    async def use(number: int, vcpus: int, memory_mb: int, lends: bool, pauses: int) -> None:
        resources = Resources(vcpus=vcpus, memory_mb=memory_mb)
        async with capacity.held(f"job{number}", resources, never()):
            for _ in range(pauses):
                held = list(capacity._held.values())
                assert len(held) == 1 or sum(each.vcpus for each in held) <= 4
                assert len(held) == 1 or sum(each.memory_mb + MACHINE_OVERHEAD_MB for each in held) <= 1000
                await asyncio.sleep(0)
            if lends:
                async with capacity.lent(f"job{number}", never()), capacity.held(f"b{number}", BUILDER, never()):
                    await asyncio.sleep(0)

    async with asyncio.timeout(10):
        await asyncio.gather(*(use(number, *each) for number, each in enumerate(requests)))
    assert capacity.jobs == 0 and capacity.free()[0] == 4


class Idle(IdleProcessors):
    """As many idle processors as the test says."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def take(self) -> bool:
        self.count -= 1
        return self.count >= 0


def test_background_work_gets_the_processors_that_jobs_do_not_hold_or_do_not_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    idle = Idle(0)
    capacity = Capacity(8, 10_000, idle_processors=idle)
    assert [capacity.has_spare_processor(used) for used in (0, 3, 4)] == [True, True, False]
    capacity.hold("a", Resources(vcpus=3, memory_mb=128))
    assert [capacity.has_spare_processor(used) for used in (0, 1)] == [True, False]
    capacity.hold("b", Resources(vcpus=3, memory_mb=128))
    assert not capacity.has_spare_processor(0)
    idle.count = 1
    assert [capacity.has_spare_processor(0), capacity.has_spare_processor(1)] == [True, False]
    idle.count = 9
    assert [capacity.has_spare_processor(used) for used in (3, 4)] == [True, False]
