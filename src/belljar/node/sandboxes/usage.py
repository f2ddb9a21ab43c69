"""Samples the usage of a sandbox's machine, and reports the series to the control plane: seldom, and at its end.

Callers of a running sandbox read the series of its machine; what is reported is for the time after that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from belljar.link.errors import LeaseLost
from belljar.link.sandboxes import SandboxLink
from belljar.node.sandboxes.held import HeldSandbox
from belljar.node.sandboxes.machine import HeldMachine
from belljar.system.background import report_failure

_INTERVAL_SECONDS = 60.0
#: For the last report, which the sandbox's end waits for.
_LAST_SECONDS = 2.0


@contextlib.asynccontextmanager
async def sampled(link: SandboxLink, held: HeldSandbox, machine: HeldMachine) -> AsyncIterator[None]:
    """Sample while the block runs; report at intervals, and at the end of a block that raises nothing."""
    tasks = [asyncio.create_task(machine.sample()), asyncio.create_task(_report_at_intervals(link, held, machine))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                report_failure("sample_sandbox", result, **held.ids)
    await report_last(link, held, machine)


async def report_last(link: SandboxLink, held: HeldSandbox, machine: HeldMachine) -> None:
    """Report the series of a machine that ends or is paused, while its lease is held; raise nothing."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LAST_SECONDS):
            await _report(link, held, machine)


async def _report_at_intervals(link: SandboxLink, held: HeldSandbox, machine: HeldMachine) -> None:
    while True:
        await asyncio.sleep(_INTERVAL_SECONDS)
        await _report(link, held, machine)


async def _report(link: SandboxLink, held: HeldSandbox, machine: HeldMachine) -> None:
    series = await machine.usage_series()
    if not series.seconds:
        return
    try:
        await link.put_sandbox_usage(held.key, series)
    except LeaseLost:
        pass  # whoever watches over the lease ends the sandbox
    except Exception as error:  # noqa: BLE001 (a plot for people who watch)
        report_failure("report_sandbox_usage", error, **held.ids)
