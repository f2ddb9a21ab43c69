"""Reports what an attempt's machine used over its life to the control plane: at intervals, and at its end.

A report that fails costs the job nothing but a part of this series.
"""

from __future__ import annotations

import asyncio

import structlog

from belljar.link.errors import LeaseLost
from belljar.link.interface import ControlLink
from belljar.link.leases import LeaseKey
from belljar.node.guest.usage_sampler import UsageSampler
from belljar.system.background import report_failure

log = structlog.get_logger()

#: From the first measurement to the first report, and between reports.
_FIRST_SECONDS = 2.0
_INTERVAL_SECONDS = 10.0
#: For the last report, which the job's end waits for.
_LAST_SECONDS = 5.0


class UsageReporter:
    """The reports of one attempt. `close` it."""

    def __init__(self, link: ControlLink, lease: LeaseKey) -> None:
        self._link = link
        self._lease = lease
        self._sampler: UsageSampler | None = None
        self._reporting: asyncio.Task[None] | None = None

    def note(self, sampler: UsageSampler) -> None:
        """Note that the series has grown."""
        self._sampler = sampler
        if self._reporting is None:
            self._reporting = asyncio.create_task(self._report_at_intervals(sampler))

    async def _report_at_intervals(self, sampler: UsageSampler) -> None:
        await asyncio.sleep(_FIRST_SECONDS)
        while True:
            await self._report(sampler)
            await asyncio.sleep(max(_INTERVAL_SECONDS, sampler.interval_seconds))

    async def _report(self, sampler: UsageSampler) -> None:
        try:
            await self._link.put_usage(self._lease, sampler.series())
        except LeaseLost:
            pass  # the lease's own clock ends the attempt
        except Exception as error:  # noqa: BLE001 (a plot for people who watch)
            report_failure("report_usage", error, job=self._lease.job_id, attempt=self._lease.attempt)

    async def finish(self) -> None:
        """Report the whole series, if there is any, within a bounded time."""
        await self._stop()
        if self._sampler is None:
            return
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await self._report(self._sampler)
        except TimeoutError:
            log.warning("usage_not_reported", job=self._lease.job_id, attempt=self._lease.attempt)

    async def _stop(self) -> None:
        if self._reporting is not None:
            self._reporting.cancel()
            await asyncio.wait({self._reporting})

    def close(self) -> None:
        """Report no more."""
        if self._reporting is not None:
            self._reporting.cancel()
