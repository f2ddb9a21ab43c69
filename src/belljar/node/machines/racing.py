"""Work with a machine that may die meanwhile: then the death says why, not the broken stream."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from belljar.model.errors import MachineDied
from belljar.node.machines.protocol import Death, Machine

T = TypeVar("T")

#: How a machine died may be known a moment after its streams ended.
_LAST_WORDS_SECONDS = 1.0


class MachineDead(MachineDied):
    """The machine is dead, and it is known how it died."""

    def __init__(self, death: Death) -> None:
        super().__init__(death.message)
        self.death = death


async def unless_dead(machine: Machine, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns. Raises what it raises, but MachineDead when the machine dies first or meanwhile."""
    working, dying = asyncio.create_task(work), asyncio.create_task(machine.death())
    try:
        await asyncio.wait({working, dying}, return_when=asyncio.FIRST_COMPLETED)
        if working.done() and type(working.exception()) is not MachineDied:  # a subclass knows the reason already
            return working.result()
        await asyncio.wait({dying}, timeout=_LAST_WORDS_SECONDS)
        if dying.done():
            raise MachineDead(dying.result())
        return working.result()
    finally:
        working.cancel()
        dying.cancel()
        await asyncio.gather(working, dying, return_exceptions=True)
