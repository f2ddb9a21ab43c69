"""Boots a machine, and replaces one whose kernel found no clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import structlog

from belljar.node.machines.boot import NoClock, open_connection
from belljar.node.machines.protocol import Machine
from belljar.node.machines.provision.request import ProvisionedMachine

log = structlog.get_logger()

_MAX_TRIES = 3


async def boot_machine(
    start: Callable[[], AbstractAsyncContextManager[Machine]], boot_timeout_seconds: float, stack: AsyncExitStack
) -> ProvisionedMachine:
    """Boot a machine, which ends with `stack`. One without a clock is replaced, twice at most. Raises MachineError."""
    for tries in range(1, _MAX_TRIES + 1):
        async with AsyncExitStack() as attempt:
            machine = await attempt.enter_async_context(start())
            started = time.monotonic()
            try:
                connection = await open_connection(machine, boot_timeout_seconds)
            except NoClock as error:
                if tries == _MAX_TRIES:
                    raise
                log.warning("machine_replaced", machine=machine.id, reason=error.message)
                continue
            machine.phases["boot"] = round((time.monotonic() - started) * 1000, 3)
            await stack.enter_async_context(attempt.pop_all())
            return ProvisionedMachine(machine, connection, "boot", machine.phases)
    raise AssertionError("the last try returns or raises")
