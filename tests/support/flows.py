"""A guest in a slot whose flows are watched, as a machine's are."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from belljar.model.flows import Flow, FlowAlert, FlowReport
from belljar.node.network.flows import libbpf
from belljar.node.network.flows.alerts import AlertRules
from belljar.node.network.policy import Policy
from belljar.node.network.pool import SlotPool
from support.internet import Guest, connected_guest

OPEN = Policy(open=True)


@dataclass
class Seen:
    """A machine's flows at the end of its block."""

    guest: Guest
    report: FlowReport = field(default_factory=FlowReport)
    alerts: list[FlowAlert] = field(default_factory=list)

    def on_report(self, report: FlowReport) -> None:
        self.report = report

    def on_alert(self, alert: FlowAlert) -> None:
        self.alerts.append(alert)

    def flow(self, **wanted: object) -> Flow:
        """The one flow with these fields."""
        found = [flow for flow in self.report.flows if all(getattr(flow, name) == wanted[name] for name in wanted)]
        assert len(found) == 1, (wanted, self.report)
        return found[0]


@asynccontextmanager
async def watched(pool: SlotPool, policy: Policy = OPEN, rules: AlertRules | None = None) -> AsyncIterator[Seen]:
    async with pool.with_network_slot() as slot:
        with connected_guest(slot) as guest:
            seen = Seen(guest)
            async with pool.with_policy(slot, policy, alert_rules=rules, listener=seen) as attachment:
                yield seen
                assert attachment.flows is not None
                seen.report = await attachment.flows.finish()


@contextlib.contextmanager
def in_background(work: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(30)
        assert not thread.is_alive()


def loaded_programs() -> set[int]:
    """The numbers of all BPF programs that the kernel has."""
    library, found, number = libbpf.library(), set(), ctypes.c_uint32(0)
    while library.bpf_prog_get_next_id(number, ctypes.byref(number)) == 0:
        found.add(number.value)
    return found
