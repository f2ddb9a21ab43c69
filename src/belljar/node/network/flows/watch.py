"""Watches one machine's flows: reads its counters at intervals, keeps the table, raises alerts, reports.

A reading that fails is logged, and the next one makes up for it: a machine never fails because of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from belljar.model.flows import FlowAlert, FlowReport
from belljar.node.network.flows.alerts import AlertRules, FlowAlerts
from belljar.node.network.flows.reading import FlowReading
from belljar.node.network.flows.table import FlowTable
from belljar.node.network.flows.verdicts import Verdicts
from belljar.system.background import Backoff, supervise

log = structlog.get_logger()

#: Seconds between readings of BPF maps, which take microseconds, and of connection tracking, which take milliseconds.
_READ_SECONDS = {"ebpf": 1.0, "conntrack": 5.0}
#: Seconds between reports of flows that changed.
REPORT_SECONDS = 30.0
_FIRST_REPORT_SECONDS = 2.0


class FlowListener(Protocol):
    """Who wants to know. Its methods are called in the event loop, and must return at once."""

    def on_report(self, report: FlowReport) -> None:
        """Take the flows so far."""
        ...

    def on_alert(self, alert: FlowAlert) -> None:
        """Take a new alert."""
        ...


class FlowWatch:
    """The watch over one machine's flows, from its policy to its end: an async context manager of one event loop."""

    def __init__(
        self,
        read: Callable[[], Awaitable[FlowReading]],
        verdicts: Verdicts,
        rules: AlertRules,
        listener: FlowListener | None = None,
    ) -> None:
        self._read = read
        self._table = FlowTable(verdicts)
        self._alerts = FlowAlerts(rules)
        self._listener = listener
        self._task: asyncio.Task[None] | None = None
        self._reading = asyncio.Lock()

    async def __aenter__(self) -> FlowWatch:
        self._task = asyncio.create_task(supervise("flow_watch", self._watch))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def finish(self) -> FlowReport:
        """Read for the last time, and return all flows: the machine has ended."""
        await self._stop()
        await self._look(has_ended=True)
        return self._table.report(tuple(self._alerts.raised), is_final=True)

    async def _stop(self) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        try:
            async with self._reading:  # a reading resets counters: one that is cut off would lose them
                task.cancel()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        report_at, reported_packets, pause_seconds = loop.time() + _FIRST_REPORT_SECONDS, 0, 1.0
        failing = Backoff(first_seconds=1.0)
        while True:
            await asyncio.sleep(pause_seconds)
            reading = await self._look()
            if reading is None:
                pause_seconds = failing.next()
                continue
            failing.reset()
            pause_seconds = _READ_SECONDS[reading.source]
            if loop.time() < report_at:
                continue
            report = self._table.report(tuple(self._alerts.raised), is_final=False)
            packets = report.totals.packets_out + report.totals.packets_in
            if packets != reported_packets and self._listener is not None:
                reported_packets = packets
                self._listener.on_report(report)
            report_at = loop.time() + REPORT_SECONDS

    async def _look(self, *, has_ended: bool = False) -> FlowReading | None:
        """Read the counters once, and raise what alerts there are. None when they cannot be read."""
        async with self._reading:
            try:
                reading = await self._read()
            except Exception as error:  # noqa: BLE001 (these numbers cost no machine its end, nor its other numbers)
                log.warning("flows_read_failed", error=str(error) or type(error).__name__)
                return None
            begun = self._table.update(reading)
            bytes_out, lost = self._table.allowed_bytes_out(), reading.lost.packets
            new = self._alerts.check(begun, reading.attempts, bytes_out, lost, has_ended=has_ended)
        if self._listener is not None:
            for alert in new:
                self._listener.on_alert(alert)
        return reading
