"""A warm pool whose clones are tokens: they can die, and are ended once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

from belljar.model.errors import MachineDied
from belljar.node.machines.protocol import Clone
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


def request_clones(pool: WarmPool, name: str, make: Maker, count: int) -> None:
    """Have `count` jobs come at once."""
    for _ in range(count):
        pool.record_demand(name, make)
