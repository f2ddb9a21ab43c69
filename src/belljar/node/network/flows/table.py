"""The flows of one machine, summed up over many looks at its counters, in bounded memory.

What the table has no room for is summed up in `left_out`: nothing that was counted is dropped from the totals.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from belljar.model.flows import Flow, FlowAlert, FlowReport, FlowTotals, LostFlows
from belljar.node.network.flows.names import ClaimedName, claimed_name
from belljar.node.network.flows.reading import TCP, FlowCounts, FlowKey, FlowReading
from belljar.node.network.flows.verdicts import Verdict, Verdicts

#: A machine that is refused everywhere cannot hide what it reaches, nor the other way round.
MAX_ALLOWED = 1000
MAX_REFUSED = 250
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}
_NOTHING = FlowCounts(0, 0, 0, 0, 0, 0, 0, 0)


@dataclass(slots=True)
class ListedFlow:
    """One flow of the table."""

    key: FlowKey
    verdict: Verdict
    #: What was counted before the kernel's counters last began at zero.
    base: FlowCounts | None
    latest: FlowCounts
    claimed: ClaimedName | None = None

    @property
    def counts(self) -> FlowCounts:
        """Return all that was counted."""
        return self.latest if self.base is None else self.base.plus(self.latest)

    def count(self, counts: FlowCounts) -> None:
        """Take the kernel's counters, which only grow unless they began again."""
        began_again = counts.packets_out < self.latest.packets_out or counts.packets_in < self.latest.packets_in
        if began_again or counts.first_ns > self.latest.last_ns:
            self.settle()
        self.latest = counts

    def settle(self) -> None:
        """Keep what was counted: the kernel's counters begin again."""
        self.base = self.counts
        self.latest = _NOTHING._replace(first_ns=self.base.last_ns, last_ns=self.base.last_ns)


class FlowTable:
    """The table of one machine. Belongs to one task."""

    def __init__(self, verdicts: Verdicts) -> None:
        self._verdicts = verdicts
        self._listed: dict[tuple[bool, FlowKey], ListedFlow] = {}
        self._allowed_count = 0
        #: Sums of flows without a place that the kernel has forgotten; and of those that it still has.
        self._settled = FlowTotals()
        self._unlisted = FlowTotals()
        self._reading: FlowReading | None = None
        self._updated_at: datetime | None = None

    def update(self, reading: FlowReading) -> list[ListedFlow]:
        """Take a reading; return the flows that were not there before."""
        self._reading, self._updated_at = reading, datetime.now(UTC)
        self._unlisted = FlowTotals()
        begun = [*self._take(reading.allowed, through=True), *self._take(reading.attempts, through=False)]
        for key in reading.ended:
            listed = self._listed.get((True, key))
            if listed is not None:
                listed.settle()
            else:
                self._settled = _sum(self._settled, reading.allowed[key])
                self._unlisted = _sum(self._unlisted, reading.allowed[key], sign=-1)
        for key, payload in reading.payloads:
            listed = self._listed.get((True, key))
            if listed is not None and listed.claimed is None:
                listed.claimed = claimed_name(payload)
        return begun

    def _take(self, counted: dict[FlowKey, FlowCounts], *, through: bool) -> Iterator[ListedFlow]:
        for key, counts in counted.items():
            listed = self._listed.get((through, key))
            if listed is not None:
                listed.count(counts)
            elif (begun := self._list(key, counts, through=through)) is not None:
                yield begun
            elif through:
                self._unlisted = _sum(self._unlisted, counts)

    def _list(self, key: FlowKey, counts: FlowCounts, *, through: bool) -> ListedFlow | None:
        """Give a flow a place; None when there is none."""
        refused_count = len(self._listed) - self._allowed_count
        if (self._allowed_count >= MAX_ALLOWED) if through else (refused_count >= MAX_REFUSED):
            return None
        verdict = self._verdicts.of_allowed(key) if through else self._verdicts.of_attempt(key)
        listed = ListedFlow(key, verdict, None, counts)
        self._listed[(through, key)] = listed
        self._allowed_count += through
        return listed

    def left_out(self) -> FlowTotals:
        """Return the sums of what is in no listed flow."""
        sums = _add(self._settled, self._unlisted)
        if self._reading is None:
            return sums
        refused = [listed for (through, _), listed in self._listed.items() if not through]
        attempts = FlowTotals(
            flows=max(0, self._reading.attempt_flows - len(refused)),
            packets_out=max(0, self._reading.attempt_packets - sum(each.counts.packets_out for each in refused)),
            bytes_out=max(0, self._reading.attempt_bytes - sum(each.counts.bytes_out for each in refused)),
        )
        return _add(sums, attempts)

    def totals(self) -> FlowTotals:
        """Return the sums of everything."""
        sums = self.left_out()
        for listed in self._listed.values():
            sums = _sum(sums, listed.counts)
        return sums

    def allowed_bytes_out(self) -> int:
        """Return the bytes that were let out, also those of flows without a place, and of no flow."""
        listed = sum(each.counts.bytes_out for (through, _), each in self._listed.items() if through)
        lost = self._reading.lost.bytes if self._reading is not None else 0
        return listed + self._settled.bytes_out + self._unlisted.bytes_out + lost

    def report(self, alerts: tuple[FlowAlert, ...], *, is_final: bool) -> FlowReport:
        """Return the flows so far."""
        reading = self._reading
        if reading is None:
            return FlowReport(alerts=alerts, is_final=is_final)
        to_wall_ns = time.time_ns() - time.monotonic_ns()
        flows = [_flow(listed, to_wall_ns) for listed in self._listed.values()]
        flows.sort(key=lambda flow: (-flow.bytes_out - flow.bytes_in, flow.first_seen))
        return FlowReport(
            source=reading.source,
            source_reason=reading.source_reason,
            updated_at=self._updated_at,
            is_final=is_final,
            totals=self.totals(),
            left_out=self.left_out(),
            lost=LostFlows(**asdict(reading.lost)),
            flows=tuple(flows),
            alerts=alerts,
        )


def _flow(listed: ListedFlow, to_wall_ns: int) -> Flow:
    key, counts, claimed = listed.key, listed.counts, listed.claimed
    return Flow(
        protocol=_PROTOCOLS.get(key.protocol, str(key.protocol)),
        address=str(key.peer),
        port=key.port or None,
        guest_port=key.guest_port or None,
        verdict="allowed" if listed.verdict.allowed else "refused",
        rule=listed.verdict.rule,
        dns_name=listed.verdict.dns_name,
        tls_name=claimed.name if claimed is not None and claimed.source == "tls" else None,
        http_host=claimed.name if claimed is not None and claimed.source == "http" else None,
        tcp_state=counts.tcp_state() if key.protocol == TCP else None,
        bytes_out=counts.bytes_out,
        bytes_in=counts.bytes_in,
        packets_out=counts.packets_out,
        packets_in=counts.packets_in,
        first_seen=_time(counts.first_ns + to_wall_ns),
        last_seen=_time(counts.last_ns + to_wall_ns),
    )


def _time(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds // 1000 / 1e6, UTC)


def _sum(sums: FlowTotals, counts: FlowCounts, sign: int = 1) -> FlowTotals:
    """Return the sums with one flow more, or one less."""
    return FlowTotals(
        flows=sums.flows + sign,
        packets_out=sums.packets_out + sign * counts.packets_out,
        packets_in=sums.packets_in + sign * counts.packets_in,
        bytes_out=sums.bytes_out + sign * counts.bytes_out,
        bytes_in=sums.bytes_in + sign * counts.bytes_in,
    )


def _add(first: FlowTotals, second: FlowTotals) -> FlowTotals:
    return FlowTotals(**{name: getattr(first, name) + getattr(second, name) for name in FlowTotals.model_fields})
