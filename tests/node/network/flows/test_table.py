"""The table of flows: what is counted is in the totals, whatever the kernel forgets and the table has no room for."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

from belljar.model.flows import FlowReport
from belljar.node.network.flows.reading import (
    ACK,
    FIN,
    RST,
    SYN,
    FlowCounts,
    FlowKey,
    FlowReading,
    LossCounts,
    reading_from_json,
    reading_to_json,
)
from belljar.node.network.flows.table import MAX_ALLOWED, MAX_REFUSED, FlowTable
from belljar.node.network.flows.verdicts import Verdicts
from belljar.node.network.policy import NameRule, NetworkRule, Policy

GATEWAY = IPv4Address("172.30.0.1")
NAMES = {IPv4Address("198.51.100.7"): "www.example.org"}


def verdicts(policy: Policy = Policy(open=True)) -> Verdicts:  # noqa: B008
    blocked = (IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12"))
    return Verdicts(policy=policy, gateway=GATEWAY, blocked=blocked, name_of=NAMES.get)


def key(address: str = "198.51.100.7", port: int = 443, guest_port: int = 40_000, protocol: int = 6) -> FlowKey:
    return FlowKey(int(IPv4Address(address)), port, guest_port, protocol)


def counts(packets: int = 1, *, bytes_out: int = 10, first: int = 1, flags: tuple[int, int] = (0, 0)) -> FlowCounts:
    return FlowCounts(first, first + packets, bytes_out, 0, packets, 0, *flags)


Counted = dict[FlowKey, FlowCounts]


def reading(allowed: Counted | None = None, attempts: Counted | None = None, **fields: Any) -> FlowReading:
    return FlowReading(source="ebpf", allowed=allowed or {}, attempts=attempts or {}, **fields)


def report_of(*readings: FlowReading, policy: Policy = Policy(open=True)) -> FlowReport:  # noqa: B008
    table = FlowTable(verdicts(policy))
    for each in readings:
        table.update(each)
    return table.report((), is_final=True)


def test_a_flow_that_the_kernel_forgot_goes_on_where_it_was() -> None:
    first, again = counts(4, bytes_out=400), counts(2, bytes_out=20, first=100)
    report = report_of(reading({key(): first}, ended=frozenset({key()})), reading(), reading({key(): again}))
    assert [(flow.packets_out, flow.bytes_out) for flow in report.flows] == [(6, 420)]
    assert report.totals.flows == 1


def test_counters_that_begin_again_are_added() -> None:
    report = report_of(reading({key(): counts(5, bytes_out=50)}), reading({key(): counts(2, bytes_out=20, first=3)}))
    assert [(flow.packets_out, flow.bytes_out) for flow in report.flows] == [(7, 70)]


def test_a_hundred_thousand_destinations_are_summed_up_without_loss() -> None:
    table, seen = FlowTable(verdicts()), 0
    for batch in range(50):
        addresses = range(batch * 2000, batch * 2000 + 2000)
        flows = {FlowKey(0x2D000000 + at, 80, 40_000, 6): counts(3, bytes_out=7) for at in addresses}
        table.update(reading(flows, ended=frozenset(flows)))
        seen += len(flows)
    report = table.report((), is_final=True)
    assert seen == 100_000 and len(report.flows) == MAX_ALLOWED
    assert (report.totals.flows, report.totals.packets_out, report.totals.bytes_out) == (100_000, 300_000, 700_000)
    assert (report.left_out.flows, report.left_out.bytes_out) == (99_000, 693_000)
    assert table.allowed_bytes_out() == 700_000


def test_many_connections_to_one_destination_hide_no_other() -> None:
    crowd = {key(guest_port=port): counts(2, bytes_out=5) for port in range(1, MAX_ALLOWED + 500)}
    other = {key("203.0.113.66", port=port): counts(1, bytes_out=7) for port in range(1, 4)}
    table = FlowTable(verdicts())
    assert len(table.update(reading(crowd))) == len(crowd)
    assert {each.key for each in table.update(reading({**crowd, **other}))} == set(other)
    assert table.update(reading({**crowd, **other})) == []
    report = table.report((), is_final=True)
    assert {flow.port for flow in report.flows if flow.address == "203.0.113.66"} == {1, 2, 3}
    assert len(report.flows) == MAX_ALLOWED and report.left_out.flows == len(crowd) + 3 - MAX_ALLOWED
    assert report.totals.bytes_out == 5 * len(crowd) + 21 == table.allowed_bytes_out()


def test_a_displaced_flow_stays_in_the_sums() -> None:
    crowd = {key(guest_port=port): counts(2, bytes_out=5) for port in range(1, MAX_ALLOWED + 1)}
    again = {each: counts(1, bytes_out=3, first=50) for each in crowd}
    table = FlowTable(verdicts())
    table.update(reading(crowd, ended=frozenset(crowd)))
    table.update(reading({**again, key(port=1): counts()}))
    table.update(reading({key(port=2): counts()}))
    report = table.report((), is_final=True)
    assert (report.totals.flows, report.totals.bytes_out) == (len(crowd) + 2, 8 * len(crowd) + 20)


def test_flows_without_a_place_that_are_not_seen_again_stay_in_the_sums() -> None:
    crowd = {key(guest_port=port): counts(2, bytes_out=5) for port in range(1, MAX_ALLOWED + 500)}
    assert report_of(reading(crowd), reading()).totals.bytes_out == 5 * len(crowd)


def test_every_flow_that_begins_is_returned_whether_or_not_it_has_a_place() -> None:
    flows = [{FlowKey(0x2D000000 + at, 80, 40_000, 6): counts()} for at in range(MAX_ALLOWED + 10)]
    table = FlowTable(verdicts())
    assert [len(table.update(reading(each))) for each in flows] == [1] * len(flows)


def test_refused_attempts_leave_room_for_what_was_let_through() -> None:
    attempts = {FlowKey(0x2D000000 + at, 80, 40_000, 6): counts(1, bytes_out=0) for at in range(1000)}
    sums = {"attempt_flows": 5000, "attempt_packets": 5000, "attempt_bytes": 0}
    report = report_of(reading(attempts=attempts, **sums), reading({key(): counts(9)}, attempts, **sums))
    assert sum(flow.verdict == "refused" for flow in report.flows) == MAX_REFUSED
    assert sum(flow.verdict == "allowed" for flow in report.flows) == 1
    assert (report.left_out.flows, report.left_out.packets_out) == (5000 - MAX_REFUSED, 5000 - MAX_REFUSED)
    assert report.totals.flows == 5001


def test_verdicts_name_the_entry_of_the_policy() -> None:
    policy = Policy(
        names=(NameRule("example.org", True, 443),), networks=(NetworkRule(IPv4Network("203.0.113.0/24"), 80),)
    )
    allowed = {key(): counts(), key("203.0.113.9", 80): counts()}
    attempts = {
        key("203.0.113.9", 22): counts(),
        key("203.0.113.9", 80, guest_port=41_000): counts(),
        key("10.1.2.3", 22): counts(),
        key("203.0.113.9", 0, protocol=47): counts(),
        key(str(GATEWAY), 53, 0, 17): counts(),
        key(str(GATEWAY), 22): counts(),
        key(port=80): counts(),
    }
    report = report_of(reading(allowed, attempts), policy=policy)
    found = {(flow.address, flow.port, flow.protocol, flow.guest_port): flow for flow in report.flows}
    assert {place[:3]: (flow.verdict, flow.rule) for place, flow in found.items() if place[3] != 41_000} == {
        ("198.51.100.7", 443, "tcp"): ("allowed", "*.example.org:443"),
        ("203.0.113.9", 80, "tcp"): ("allowed", "203.0.113.0/24:80"),
        ("203.0.113.9", 22, "tcp"): ("refused", "egress"),
        ("10.1.2.3", 22, "tcp"): ("refused", "private"),
        ("203.0.113.9", None, "47"): ("refused", "protocol"),
        (str(GATEWAY), 53, "udp"): ("allowed", "resolver"),
        (str(GATEWAY), 22, "tcp"): ("refused", "private"),
        ("198.51.100.7", 80, "tcp"): ("refused", "egress"),
    }
    assert found["203.0.113.9", 80, "tcp", 41_000].rule == "limit"
    named = found["198.51.100.7", 443, "tcp", 40_000]
    assert (named.name, named.name_source) == ("www.example.org", "dns")


def test_the_state_of_a_connection_comes_from_its_flags() -> None:
    states = {
        (SYN, 0): "syn_sent",
        (SYN | ACK, SYN | ACK): "established",
        (SYN | ACK | FIN, SYN | ACK): "closing",
        (SYN | ACK | FIN, SYN | ACK | FIN): "closed",
        (SYN, RST): "reset",
        (0, 0): None,
    }
    for flags, state in states.items():
        assert counts(flags=flags).tcp_state() == state


def test_a_reading_passes_through_json() -> None:
    sent = reading(
        {key(): counts(3, flags=(2, 18))},
        {key(port=1): counts()},
        ended=frozenset({key()}),
        attempt_flows=4,
        attempt_packets=5,
        lost=LossCounts(malformed=1, names=2),
    )
    assert reading_from_json(reading_to_json(sent)) == sent
