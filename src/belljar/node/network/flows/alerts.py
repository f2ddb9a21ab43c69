"""Alert rules over one machine's flows. Each rule keeps a bounded memory, and reports a bounded number of times."""

from __future__ import annotations

import statistics
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Address
from itertools import chain, pairwise

from belljar.model.egress import Destination, parse_destination
from belljar.model.errors import InvalidOption
from belljar.model.flows import AlertRule, FlowAlert
from belljar.node.network.flows.reading import FlowCounts, FlowKey
from belljar.node.network.flows.table import ListedFlow
from belljar.settings.flows import FlowSettings

#: Alerts of one rule about one machine; the first are the ones that tell how it began. No rule takes another's place.
_MAX_PER_RULE: dict[AlertRule, int] = {"destination": 9, "bytes_out": 1, "port_scan": 1, "beacon": 9}
MAX_ALERTS = sum(_MAX_PER_RULE.values())
_MAX_DESTINATIONS = 1024
_SCAN_NS = 60_000_000_000
#: Intervals that differ by less than this part of their mean are equal; shorter ones are no beacon.
_BEACON_SPREAD = 0.1
_BEACON_MIN_SECONDS = 1.0
MIN_BEACONS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class AlertRules:
    """The operator's rules; the defaults report nothing."""

    #: What may be contacted without an alert; empty: anything.
    destinations: tuple[Destination, ...] = ()
    max_bytes_out: float | None = None
    #: Different destinations that did not answer within a minute; 0: off.
    scanned: int = 0
    #: Connections in a row to one destination at equal intervals; 0: off.
    beacons: int = 0
    #: Rules that end the job or sandbox.
    stops: frozenset[AlertRule] = frozenset()


NO_RULES = AlertRules()


def alert_rules(settings: FlowSettings) -> AlertRules:
    """Return the rules of the settings. Raises InvalidOption."""
    destinations = []
    for entry in settings.flow_alert_destinations:
        try:
            destinations.append(parse_destination(entry, private=True))
        except ValueError as error:
            raise InvalidOption(f"invalid setting flow_alert_destinations: {error}") from None
    if 0 < settings.flow_alert_beacons < MIN_BEACONS:
        count = settings.flow_alert_beacons
        raise InvalidOption(f"invalid setting flow_alert_beacons: {count}; set 0, or at least {MIN_BEACONS}")
    return AlertRules(
        destinations=tuple(destinations),
        max_bytes_out=settings.flow_alert_mb_out * 1e6 if settings.flow_alert_mb_out is not None else None,
        scanned=settings.flow_alert_scanned_ports,
        beacons=settings.flow_alert_beacons,
        stops=frozenset(settings.flow_alert_stops),
    )


@dataclass(slots=True)
class FlowAlerts:
    """The alerts of one machine."""

    rules: AlertRules
    raised: list[FlowAlert] = field(default_factory=list)
    _reported: dict[AlertRule, set[object]] = field(default_factory=dict)
    #: By destination, when it was last tried without an answer, the oldest first.
    _unanswered: OrderedDict[tuple[int, int], int] = field(default_factory=OrderedDict)
    #: By destination, when its last connections began.
    _begun: OrderedDict[tuple[int, int, int], deque[int]] = field(default_factory=OrderedDict)

    def check(
        self,
        begun: Iterable[ListedFlow],
        attempts: dict[FlowKey, FlowCounts],
        bytes_out: int,
        lost_packets: int = 0,
        *,
        has_ended: bool = False,
    ) -> list[FlowAlert]:
        """Return new alerts. A machine that has ended is not stopped by them.

        Takes the flows that were not there before, what is not let through, the sum sent, and how many packets were
        sent in flows that are not known.
        """
        begun = list(begun)
        found = (
            self._outside(begun),
            self._unknown(lost_packets),
            self._sent(bytes_out),
            self._scan(begun, attempts),
            self._beacons(begun),
        )
        new = [alert.model_copy(update={"action": "notify"}) if has_ended else alert for alert in chain(*found)]
        self.raised += new
        return new

    def _unknown(self, lost_packets: int) -> Iterator[FlowAlert]:
        """Report destinations that cannot be compared with the list, which a flood of flows would hide otherwise."""
        if self.rules.destinations and lost_packets and self._first("destination", None):
            yield self._alert(
                "destination", "sent packets in more flows than are counted at one time, to unknown destinations"
            )

    def _outside(self, begun: Iterable[ListedFlow]) -> Iterator[FlowAlert]:
        for flow in begun if self.rules.destinations else ():
            key, verdict = flow.key, flow.verdict
            if not verdict.allowed or verdict.rule in ("resolver", "gateway"):
                continue
            if any(_covers(each, key, verdict.dns_name) for each in self.rules.destinations):
                continue
            if self._first("destination", (key.address, key.port)):
                what = f"{key.peer}:{key.port}" + (f" ({verdict.dns_name})" if verdict.dns_name else "")
                yield self._alert("destination", f"contacted {what}, outside flow_alert_destinations", key)

    def _sent(self, bytes_out: int) -> Iterator[FlowAlert]:
        limit = self.rules.max_bytes_out
        if limit is not None and bytes_out > limit and self._first("bytes_out"):
            yield self._alert("bytes_out", f"sent {bytes_out / 1e6:.1f} MB; flow_alert_mb_out is {limit / 1e6:g}")

    def _scan(self, begun: Iterable[ListedFlow], attempts: dict[FlowKey, FlowCounts]) -> Iterator[FlowAlert]:
        if not self.rules.scanned:
            return
        now = time.monotonic_ns()
        silent = [(key, counts) for key, counts in attempts.items() if counts.last_ns > now - _SCAN_NS]
        silent += [(flow.key, flow.latest) for flow in begun if flow.verdict.allowed and not flow.latest.packets_in]
        for key, counts in silent:
            self._unanswered[key.address, key.port] = counts.last_ns
            self._unanswered.move_to_end((key.address, key.port))
        while self._unanswered:
            oldest = next(iter(self._unanswered))
            if len(self._unanswered) <= 10_000 and self._unanswered[oldest] > now - _SCAN_NS:
                break
            del self._unanswered[oldest]
        count = len(self._unanswered)
        if count >= self.rules.scanned and self._first("port_scan"):
            yield self._alert("port_scan", f"tried {count} addresses or ports without an answer in a minute")

    def _beacons(self, begun: Iterable[ListedFlow]) -> Iterator[FlowAlert]:
        for flow in begun if self.rules.beacons else ():
            key = flow.key
            if not flow.verdict.allowed or flow.verdict.rule in ("resolver", "gateway"):
                continue
            destination = key.destination
            times = self._begun.setdefault(destination, deque(maxlen=self.rules.beacons))
            self._begun.move_to_end(destination)
            if len(self._begun) > _MAX_DESTINATIONS:
                self._begun.popitem(last=False)
            times.append(flow.latest.first_ns)
            seconds = _interval(times)
            if seconds is not None and self._first("beacon", destination):
                message = f"contacted {key.peer}:{key.port} {len(times)} times, every {seconds:.1f} s"
                yield self._alert("beacon", message, key)

    def _first(self, rule: AlertRule, what: object = None) -> bool:
        """Return whether a rule reports this for the first time, and may still report."""
        reported = self._reported.setdefault(rule, set())
        if what in reported or len(reported) >= _MAX_PER_RULE[rule]:
            return False
        reported.add(what)
        return True

    def _alert(self, rule: AlertRule, message: str, key: FlowKey | None = None) -> FlowAlert:
        return FlowAlert(
            rule=rule,
            message=message,
            at=datetime.now(UTC),
            address=str(key.peer) if key is not None else None,
            port=(key.port or None) if key is not None else None,
            action="stop" if rule in self.rules.stops else "notify",
        )


def _interval(times: deque[int]) -> float | None:
    """Return the seconds between times that are equally far apart; None when they are not, or are too few."""
    if len(times) < (times.maxlen or 0):
        return None
    ordered = sorted(times)
    seconds = [(later - earlier) / 1e9 for earlier, later in pairwise(ordered)]
    mean = statistics.fmean(seconds)
    if mean < _BEACON_MIN_SECONDS or statistics.pstdev(seconds) > _BEACON_SPREAD * mean:
        return None
    return mean


def _covers(destination: Destination, key: FlowKey, name: str | None) -> bool:
    if destination.port not in (None, key.port):
        return False
    if destination.network is not None:
        return IPv4Address(key.address) in destination.network
    if name is None or destination.name is None:
        return False
    return name.endswith("." + destination.name) if destination.below else name == destination.name
