"""Sends what one machine talked to: reports at intervals, and the last one at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from belljar.link.errors import LeaseLost
from belljar.model.flows import FlowReport

log = structlog.get_logger()

_SECONDS = 10.0


class FlowReports:
    """The reports of one machine. Each is sent once: the next one has all that it had, and no job waits for it."""

    def __init__(self, send: Callable[[FlowReport], Awaitable[None]], ids: dict[str, object]) -> None:
        """`ids` are fields for the log."""
        self._send = send
        self._ids = ids
        self._sending: asyncio.Task[None] | None = None

    def offer(self, report: FlowReport) -> None:
        """Send a report in the background, unless another is on its way."""
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._try(report))

    async def finish(self, report: FlowReport | None) -> None:
        """Send the last report, if there is one, after what is on its way."""
        if self._sending is not None:
            await asyncio.wait({self._sending})
        if report is not None:
            await self._try(report)

    def close(self) -> None:
        """Give up what is on its way."""
        if self._sending is not None:
            self._sending.cancel()

    async def _try(self, report: FlowReport) -> None:
        try:
            async with asyncio.timeout(_SECONDS):
                await self._send(report)
        except LeaseLost:
            return  # the lease's own clock ends the machine
        except Exception as error:  # noqa: BLE001 (the end of the job or sandbox is what counts)
            log.warning("flows_not_written", **self._ids, error=str(error) or type(error).__name__)
