"""Work with a machine that may die meanwhile: the reason of the death replaces the error of the broken stream."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from belljar.model.errors import MachineDied
from belljar.node.machines.protocol import Death, Machine

T = TypeVar("T")

#: The reason of a death may become known a moment after the machine's streams ended.
_DEATH_SECONDS = 1.0


class MachineDead(MachineDied):
    """The machine is dead, and the reason is known."""

    def __init__(self, death: Death) -> None:
        super().__init__(death.message)
        self.death = death


async def run_unless_dead(machine: Machine, work: Coroutine[Any, Any, T], *, drain_seconds: float = 0.0) -> T:
    """Return the result of `work`, which uses the machine; raise MachineDead when the machine dies first.

    `drain_seconds`: how long `work` may go on after the death, to read what the machine sent before it. A plain
    MachineDied of `work` says only that a stream broke, so the death's reason is awaited for a second; every other
    exception of `work` is raised as it is.
    """
    task, death = asyncio.create_task(work), asyncio.create_task(machine.death())
    try:
        await asyncio.wait({task, death}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({task}, timeout=drain_seconds)
        if task.done() and type(task.exception()) is not MachineDied:  # a subclass knows the reason already
            return task.result()
        await asyncio.wait({death}, timeout=_DEATH_SECONDS)
        if death.done():
            raise MachineDead(death.result())
        return task.result()
    finally:
        task.cancel()
        death.cancel()
        await asyncio.gather(task, death, return_exceptions=True)
