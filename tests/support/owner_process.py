"""A belljar process with networks, for test_host.py to kill: it creates slots, prints a namespace, and waits."""

from __future__ import annotations

import asyncio
import sys

from belljar.node.network.policy import Policy
from belljar.node.network.pool import SlotPool
from belljar.settings import Settings


async def main() -> None:
    async with SlotPool(Settings(network_slots=2)) as pool, pool.with_network(Policy(open=True)) as attachment:
        while pool.ready < 2:
            await asyncio.sleep(0.01)
        print(attachment.slot.namespace, flush=True)
        await asyncio.to_thread(sys.stdin.read)


asyncio.run(main())
