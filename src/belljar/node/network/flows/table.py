"""The flows of one machine, summed up over many looks at its counters, in bounded memory.

What the table has no room for is summed up in `left_out`: nothing that was counted is dropped from the totals.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
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

    def count(self, counts: FlowCounts) -> bool:
        """Take the kernel's counters, which only grow unless they began again; return whether they did."""
        fewer = counts.packets_out < self.latest.packets_out or counts.packets_in < self.latest.packets_in
        began_again = fewer or counts.first_ns > self.latest.last_ns
        if began_again:
            self.settle()
        self.latest = counts
        return began_again

    def settle(self) -> None:
        """Keep what was counted: the kernel's counters begin again."""
        self.base = self.counts
        self.latest = _NOTHING._replace(first_ns=self.base.last_ns, last_ns=self.base.last_ns)


@dataclass(slots=True)
class _Sums:
    """Sums over flows. Not FlowTotals, whose validation would cost more than the sums do."""

    flows: int = 0
    packets_out: int = 0
    packets_in: int = 0
    bytes_out: int = 0
    bytes_in: int = 0

    def add(self, counts: FlowCounts, flows: int = 1) -> None:
        """Add the counters of a flow."""
        self.flows += flows
        self.packets_out += counts.packets_out
        self.packets_in += counts.packets_in
        self.bytes_out += counts.bytes_out
        self.bytes_in += counts.bytes_in

    def totals(self) -> FlowTotals:
        """Return them as a report has them."""
        return FlowTotals(**{each.name: getattr(self, each.name) for each in fields(self)})


class FlowTable:
    """The table of one machine. Belongs to one task.

    Many connections to one destination do not hide another: a destination that is not listed takes the place of the
    newest flow of the one with the most.
    """

    def __init__(self, verdicts: Verdicts) -> None:
        self._verdicts = verdicts
        self._listed: dict[tuple[bool, FlowKey], ListedFlow] = {}
        #: The flows of each destination that were let through and are listed.
        self._by_destination: dict[tuple[int, int, int], list[ListedFlow]] = {}
        self._allowed_count = 0
        #: Sums of flows without a place that the kernel has forgotten, and the flows that it still has.
        self._settled = _Sums()
        self._unlisted: dict[FlowKey, FlowCounts] = {}
        self._reading: FlowReading | None = None
        self._updated_at: datetime | None = None

    def update(self, reading: FlowReading) -> list[ListedFlow]:
        """Take a reading; return the flows that began since the last one, also those that get no place."""
        self._reading, self._updated_at = reading, datetime.now(UTC)
        before, self._unlisted = self._unlisted, {}
        for key, counts in before.items():
            if key not in reading.allowed:
                self._settled.add(counts)
        begun = [*self._take_allowed(reading.allowed, before), *self._take_attempts(reading.attempts)]
        for key in reading.ended:
            listed = self._listed.get((True, key))
            if listed is not None:
                listed.settle()
            elif key in self._unlisted:
                self._settled.add(self._unlisted.pop(key))
        for key, payload in reading.payloads:
            listed = self._listed.get((True, key))
            if listed is not None and listed.claimed is None:
                listed.claimed = claimed_name(payload)
        return begun

    def _take_allowed(
        self, counted: dict[FlowKey, FlowCounts], before: dict[FlowKey, FlowCounts]
    ) -> Iterator[ListedFlow]:
        """Count what was let through. `before` are the flows of the last reading that had no place."""
        unknown = []
        for key, counts in counted.items():
            listed = self._listed.get((True, key))
            if listed is None:
                unknown.append((key, counts))
            elif listed.count(counts):
                yield listed
        for key, counts in unknown:
            has_place = self._allowed_count < MAX_ALLOWED or self._make_room(key, counted)
            if not has_place:
                self._unlisted[key] = counts
                if key in before:
                    continue
            begun = ListedFlow(key, self._verdicts.of_allowed(key), None, counts)
            if has_place:
                self._listed[(True, key)] = begun
                self._by_destination.setdefault(key.destination, []).append(begun)
                self._allowed_count += 1
            yield begun

    def _make_room(self, key: FlowKey, counted: dict[FlowKey, FlowCounts]) -> bool:
        """Take the place of another flow if this one's destination has none; return whether there is a place."""
        has_one_each = len(self._by_destination) == self._allowed_count
        if has_one_each or key.destination in self._by_destination:
            return False
        longest = max(self._by_destination.values(), key=len)
        displaced = longest.pop()
        del self._listed[(True, displaced.key)]
        self._allowed_count -= 1
        if displaced.key not in counted:
            self._settled.add(displaced.counts)
            return True
        if displaced.base is not None:
            self._settled.add(displaced.base, flows=0)
        self._unlisted[displaced.key] = displaced.latest
        return True

    def _take_attempts(self, counted: dict[FlowKey, FlowCounts]) -> Iterator[ListedFlow]:
        """Count what was not let through, or was for the gateway."""
        for key, counts in counted.items():
            listed = self._listed.get((False, key))
            if listed is not None:
                listed.count(counts)
            elif len(self._listed) - self._allowed_count < MAX_REFUSED:
                begun = ListedFlow(key, self._verdicts.of_attempt(key), None, counts)
                self._listed[(False, key)] = begun
                yield begun

    def left_out(self) -> FlowTotals:
        """Return the sums of what is in no listed flow."""
        return self._left_out().totals()

    def _left_out(self) -> _Sums:
        sums = replace(self._settled)
        for counts in self._unlisted.values():
            sums.add(counts)
        if self._reading is not None:
            refused = [listed.counts for (through, _), listed in self._listed.items() if not through]
            sums.flows += max(0, self._reading.attempt_flows - len(refused))
            sums.packets_out += max(0, self._reading.attempt_packets - sum(each.packets_out for each in refused))
            sums.bytes_out += max(0, self._reading.attempt_bytes - sum(each.bytes_out for each in refused))
        return sums

    def totals(self) -> FlowTotals:
        """Return the sums of everything."""
        sums = self._left_out()
        for listed in self._listed.values():
            sums.add(listed.counts)
        return sums.totals()

    def allowed_bytes_out(self) -> int:
        """Return the bytes that were let out, also those of flows without a place, and of no flow."""
        listed = sum(each.counts.bytes_out for (through, _), each in self._listed.items() if through)
        unlisted = sum(counts.bytes_out for counts in self._unlisted.values())
        lost = self._reading.lost.bytes if self._reading is not None else 0
        return listed + self._settled.bytes_out + unlisted + lost

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
