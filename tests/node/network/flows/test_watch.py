"""The watch over a machine's flows: what was counted is in the last report, whatever readings do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import IPv4Address

from belljar.node.network.flows.alerts import AlertRules
from belljar.node.network.flows.reading import FlowCounts, FlowKey, FlowReading
from belljar.node.network.flows.verdicts import Verdicts
from belljar.node.network.flows.watch import FlowWatch
from belljar.node.network.policy import Policy

KEY = FlowKey(int(IPv4Address("198.51.100.7")), 443, 40_000, 6)
ONE = FlowReading(
    source="ebpf", allowed={KEY: FlowCounts(1, 2, 10, 0, 1, 0, 0, 0)}, attempts={}, ended=frozenset({KEY})
)
NONE = FlowReading(source="ebpf", allowed={}, attempts={})


class Counters:
    """What the kernel has: a reading takes it away."""

    def __init__(self, *readings: Callable[[], FlowReading]) -> None:
        self._readings = list(readings)
        self.reading = asyncio.Event()
        self.go_on = asyncio.Event()

    async def read(self) -> FlowReading:
        found = self._readings.pop(0)() if self._readings else NONE
        self.reading.set()
        await self.go_on.wait()
        return found


def watch_over(counters: Counters) -> FlowWatch:
    verdicts = Verdicts(policy=Policy(open=True), gateway=IPv4Address("172.30.0.1"), blocked=(), name_of=lambda _: None)
    return FlowWatch(counters.read, verdicts, AlertRules())


async def test_a_reading_that_the_end_interrupts_is_in_the_last_report() -> None:
    counters = Counters(lambda: ONE)
    async with asyncio.timeout(30), watch_over(counters) as watch:
        await counters.reading.wait()
        finishing = asyncio.create_task(watch.finish())
        await asyncio.sleep(0)
        counters.go_on.set()
        report = await finishing
    assert (report.totals.flows, report.totals.bytes_out) == (1, 10)


async def test_a_reading_that_fails_in_any_way_leaves_what_was_counted() -> None:
    def fail() -> FlowReading:
        raise ValueError("invalid literal")

    counters = Counters(lambda: ONE, fail)
    counters.go_on.set()
    async with asyncio.timeout(30), watch_over(counters) as watch:
        await counters.reading.wait()
        report = await watch.finish()
    assert (report.totals.bytes_out, report.is_final) == (10, True)
