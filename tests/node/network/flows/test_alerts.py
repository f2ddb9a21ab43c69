"""Alert rules: each reports what it is for, once, and nothing else."""

from __future__ import annotations

import time
from ipaddress import IPv4Address

import pytest

from belljar.model.egress import parse_destination
from belljar.model.errors import InvalidOption
from belljar.node.network.flows.alerts import MAX_ALERTS, AlertRules, FlowAlerts, alert_rules
from belljar.node.network.flows.reading import FlowCounts, FlowKey, FlowReading
from belljar.node.network.flows.table import FlowTable, ListedFlow
from belljar.node.network.flows.verdicts import Verdict, Verdicts
from belljar.node.network.policy import Policy
from belljar.settings import Settings


def flow(
    address: str = "198.51.100.7",
    port: int = 443,
    *,
    name: str | None = None,
    answered: bool = True,
    seconds: float = 0,
    rule: str = "open",
) -> ListedFlow:
    now = time.monotonic_ns() + int(seconds * 1e9)
    counts = FlowCounts(now, now, 0, 0, 1, int(answered), 0, 0)
    return ListedFlow(FlowKey(int(IPv4Address(address)), port, 40_000, 6), Verdict(True, rule, name), None, counts)


def rules_of(alerts: FlowAlerts, *begun: ListedFlow, bytes_out: int = 0) -> list[str]:
    return [alert.rule for alert in alerts.check(begun, {}, bytes_out)]


def test_a_destination_outside_the_list_is_reported_once() -> None:
    listed = ("*.example.org:443", "203.0.113.0/24")
    alerts = FlowAlerts(AlertRules(destinations=tuple(map(parse_destination, listed))))
    inside = [flow(name="www.example.org"), flow("203.0.113.9", 22), flow("172.30.0.1", 53, rule="resolver")]
    assert rules_of(alerts, *inside) == []
    outside = flow(name="evil.example", port=443)
    assert rules_of(alerts, outside, flow(name="www.example.org", port=80)) == ["destination"] * 2
    assert rules_of(alerts, outside) == []
    assert "198.51.100.7:443 (evil.example)" in alerts.raised[0].message
    assert (alerts.raised[0].address, alerts.raised[0].action) == ("198.51.100.7", "notify")


def test_bytes_over_the_limit_are_reported_once() -> None:
    alerts = FlowAlerts(AlertRules(max_bytes_out=1e6, stops=frozenset({"bytes_out"})))
    assert rules_of(alerts, bytes_out=1_000_000) == []
    assert rules_of(alerts, bytes_out=1_000_001) == ["bytes_out"]
    assert rules_of(alerts, bytes_out=2_000_000) == []
    assert alerts.raised[0].action == "stop"


def test_many_ports_without_an_answer_are_a_scan_and_many_answers_are_not() -> None:
    alerts = FlowAlerts(AlertRules(scanned=50))
    assert rules_of(alerts, *(flow(port=port) for port in range(1, 200))) == []
    assert rules_of(alerts, *(flow(port=port, answered=False) for port in range(1, 50))) == []
    assert rules_of(alerts, *(flow(port=7, answered=False) for _ in range(50))) == []
    refused = flow(port=9999).key, flow(answered=False).counts
    assert [alert.rule for alert in alerts.check([], dict([refused]), 0)] == ["port_scan"]


def test_old_attempts_are_no_scan() -> None:
    alerts = FlowAlerts(AlertRules(scanned=50))
    assert rules_of(alerts, *(flow(port=port, answered=False, seconds=-61) for port in range(1, 100))) == []


def test_connections_at_equal_intervals_are_a_beacon() -> None:
    alerts = FlowAlerts(AlertRules(beacons=5))
    irregular = [flow(port=1, seconds=seconds) for seconds in (0, 10, 11, 35, 36, 80)]
    hasty = [flow(port=2, seconds=seconds / 10) for seconds in range(10)]
    assert rules_of(alerts, *irregular, *hasty) == []
    regular = [flow(port=3, seconds=10 * each + 0.2 * (each % 2)) for each in range(6)]
    assert rules_of(alerts, *regular[:4]) == []
    assert rules_of(alerts, *regular[4:]) == ["beacon"]
    assert "every 10.0 s" in alerts.raised[0].message


def test_the_number_of_alerts_is_bounded() -> None:
    alerts = FlowAlerts(AlertRules(destinations=(parse_destination("example.org"),)))
    for port in range(1, 5000):
        alerts.check([flow(port=port)], {}, 0)
    assert 0 < len(alerts.raised) <= MAX_ALERTS == 20


def test_many_alerts_of_one_rule_leave_the_other_rules_working() -> None:
    rules = AlertRules(
        destinations=(parse_destination("example.org"),), max_bytes_out=1, stops=frozenset({"bytes_out"})
    )
    alerts = FlowAlerts(rules)
    for port in range(1, 5000):
        alerts.check([flow(port=port)], {}, 0)
    assert [(alert.rule, alert.action) for alert in alerts.check([], {}, 2)] == [("bytes_out", "stop")]


def test_destinations_that_are_not_known_are_reported_as_outside_the_list() -> None:
    alerts = FlowAlerts(AlertRules(destinations=(parse_destination("example.org"),), stops=frozenset({"destination"})))
    assert alerts.check([], {}, 0, 0) == []
    assert [(alert.rule, alert.action) for alert in alerts.check([], {}, 0, 1)] == [("destination", "stop")]
    assert alerts.check([], {}, 0, 2) == []
    assert FlowAlerts(AlertRules()).check([], {}, 0, 1) == []


def test_an_alert_after_the_end_stops_nothing() -> None:
    alerts = FlowAlerts(AlertRules(max_bytes_out=1, stops=frozenset({"bytes_out"})))
    assert [alert.action for alert in alerts.check([], {}, 2, has_ended=True)] == ["notify"]


def test_a_beacon_from_one_port_is_a_beacon() -> None:
    """Each connection has the same key, and is one flow of the table."""
    alerts, now = FlowAlerts(AlertRules(beacons=4)), time.monotonic_ns()
    verdicts = Verdicts(policy=Policy(open=True), gateway=IPv4Address("172.30.0.1"), blocked=(), name_of=lambda _: None)
    table, key, raised = FlowTable(verdicts), flow().key, []
    for each in range(4):
        begin = now + each * 10_000_000_000
        counts = FlowCounts(begin, begin + 1000, 10, 10, 3, 3, 0, 0)
        begun = table.update(FlowReading(source="ebpf", allowed={key: counts}, attempts={}, ended=frozenset({key})))
        raised += alerts.check(begun, {}, 0)
    assert [alert.rule for alert in raised] == ["beacon"]


def test_rules_come_from_the_settings() -> None:
    settings = Settings(flow_alert_destinations=("example.org:443",), flow_alert_mb_out=5, flow_alert_beacons=6)
    rules = alert_rules(settings)
    assert (str(rules.destinations[0]), rules.max_bytes_out, rules.beacons) == ("example.org:443", 5e6, 6)
    with pytest.raises(InvalidOption, match="flow_alert_destinations"):
        alert_rules(Settings(flow_alert_destinations=("http://x",)))
    with pytest.raises(InvalidOption, match="flow_alert_beacons: 2; set 0, or at least 4"):
        alert_rules(Settings(flow_alert_beacons=2))
