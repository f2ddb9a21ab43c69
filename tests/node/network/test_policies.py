"""The destinations that each kind of policy allows, with real packets from a guest to a simulated internet."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network

import dns.rcode
import pytest

from belljar.node.machines.protocol import NetworkSlot
from belljar.node.network.policy import NameRule, NetworkRule, Policy
from belljar.node.network.pool import SlotPool
from belljar.node.network.traffic import RefusedDestination, Traffic
from support.internet import METADATA, OTHER_WEB, PRIVATE_WEB, WEB, SimulatedInternet, connected_guest

pytestmark = pytest.mark.root


@dataclass
class Watched:
    """A slot, and its traffic at the end of its block."""

    slot: NetworkSlot
    traffic: Traffic | None = None


@asynccontextmanager
async def attached(pool: SlotPool, policy: Policy) -> AsyncIterator[Watched]:
    async with pool.with_network(policy) as attachment:
        watched = Watched(attachment.slot)
        yield watched
        watched.traffic = await attachment.traffic()


async def run(work, *arguments, **named):  # type: ignore[no-untyped-def]
    """Run a guest's blocking work in a thread, since the resolver runs on this loop."""
    return await asyncio.to_thread(work, *arguments, **named)


async def test_open_reaches_the_internet_and_counts_the_bytes(pool: SlotPool, internet: SimulatedInternet) -> None:
    internet.nameserver.zone["www.example.org"] = [WEB]
    async with attached(pool, Policy(open=True)) as attachment:
        with connected_guest(attachment.slot) as machine:
            assert await run(machine.get, WEB) == b"web"
            assert await run(machine.addresses, "www.example.org") == [WEB]
            assert await run(machine.get, OTHER_WEB) == b"other"
    assert attachment.traffic is not None
    assert attachment.traffic.rx_bytes > 200 and attachment.traffic.tx_bytes > 200
    assert (attachment.traffic.refused_count, attachment.traffic.forged_count) == (0, 0)


async def test_under_open_private_and_metadata_addresses_are_refused_although_the_host_reaches_them(
    pool: SlotPool, internet: SimulatedInternet
) -> None:
    for address in (METADATA, PRIVATE_WEB):
        with socket.create_connection((address, 80), 3):
            pass
    async with attached(pool, Policy(open=True)) as attachment:
        with connected_guest(attachment.slot) as machine:
            for address in (METADATA, PRIVATE_WEB):
                assert await run(machine.refused, address)
    assert internet.metadata.peers == ["10.99.0.1"] and internet.private.peers == ["10.99.0.1"]
    found = {(str(each.address), each.port, each.protocol) for each in tried(attachment)}
    assert found == {(METADATA, 80, "tcp"), (PRIVATE_WEB, 80, "tcp")}


async def test_a_list_of_networks_and_ports_lets_exactly_those_through(
    pool: SlotPool, internet: SimulatedInternet
) -> None:
    policy = Policy(networks=(NetworkRule(IPv4Network(f"{WEB}/32"), 80),))
    async with attached(pool, policy) as attachment:
        with connected_guest(attachment.slot) as machine:
            assert await run(machine.get, WEB) == b"web"
            assert await run(machine.refused, WEB, 443)
            assert await run(machine.refused, OTHER_WEB)
    assert internet.tls.peers == [] and internet.other_web.peers == []
    assert attachment.traffic is not None and attachment.traffic.refused_count == 2


async def test_a_listed_name_allows_its_addresses_once_it_was_queried(
    pool: SlotPool, internet: SimulatedInternet
) -> None:
    internet.nameserver.zone |= {"www.example.org": "cdn.example.net", "cdn.example.net": [WEB]}
    async with attached(pool, Policy(names=(NameRule("www.example.org", port=80),))) as attachment:
        with connected_guest(attachment.slot) as machine:
            assert await run(machine.refused, WEB)
            assert await run(machine.addresses, "www.example.org") == [WEB]
            assert await run(machine.get, WEB) == b"web"
            assert await run(machine.refused, WEB, 443)
    names = {(each.name, each.port) for each in tried(attachment)}
    assert names == {("www.example.org", 80), ("www.example.org", 443)}


async def test_wildcards_are_the_names_below_and_case_does_not_matter(
    pool: SlotPool, internet: SimulatedInternet
) -> None:
    internet.nameserver.zone |= {"a.b.example.org": [WEB], "example.org": [OTHER_WEB], "badexample.org": [OTHER_WEB]}
    async with attached(pool, Policy(names=(NameRule("example.org", subdomains=True),))) as attachment:
        with connected_guest(attachment.slot) as machine:
            assert await run(machine.addresses, "A.b.EXAMPLE.org") == [WEB]
            assert await run(machine.get, WEB, 443) == b"tls"
            for name in ("example.org", "badexample.org", "example.org.evil.test"):
                assert (await run(machine.lookup, name)).rcode() == dns.rcode.REFUSED
            assert await run(machine.refused, OTHER_WEB)
    assert set(internet.nameserver.queries) == {"a.b.example.org"}


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address stays open a second longer than its name says."""
    monkeypatch.setattr("belljar.node.network.resolver._GRACE_SECONDS", 1)


async def test_addresses_of_a_name_are_refused_after_their_ttl(
    pool: SlotPool, internet: SimulatedInternet, short_grace: None
) -> None:
    internet.nameserver.zone["www.example.org"] = [WEB]
    internet.nameserver.ttl = 1
    async with attached(pool, Policy(names=(NameRule("www.example.org"),))) as attachment:
        with connected_guest(attachment.slot) as machine:
            assert await run(machine.addresses, "www.example.org") == [WEB]
            assert await run(machine.get, WEB) == b"web"
            await asyncio.sleep(1 + 1 + 1.5)  # the TTL, the grace, and the collector's leisure
            assert await run(machine.refused, WEB)
            assert await run(machine.addresses, "www.example.org") == [WEB]
            assert await run(machine.get, WEB) == b"web"


async def test_another_query_keeps_an_address_allowed(
    pool: SlotPool, internet: SimulatedInternet, short_grace: None
) -> None:
    internet.nameserver.zone["www.example.org"] = [WEB]
    internet.nameserver.ttl = 2
    async with attached(pool, Policy(names=(NameRule("www.example.org"),))) as attachment:
        with connected_guest(attachment.slot) as machine:
            for _ in range(4):  # longer in all than the TTL and the grace
                assert await run(machine.addresses, "www.example.org") == [WEB]
                assert await run(machine.get, WEB) == b"web"
                await asyncio.sleep(1)


async def test_a_private_mirror_is_reached_only_where_the_operator_allows_it(
    internet: SimulatedInternet, network_settings: object
) -> None:
    rule = NetworkRule(IPv4Network(f"{PRIVATE_WEB}/32"), 80)
    internet.nameserver.zone["mirror.example.org"] = [PRIVATE_WEB]
    names = (NameRule("mirror.example.org", port=80),)
    async with SlotPool(network_settings, [rule]) as pool:  # type: ignore[arg-type]
        async with attached(pool, Policy(names=names, exceptions=(rule,))) as attachment:
            with connected_guest(attachment.slot) as machine:
                assert await run(machine.addresses, "mirror.example.org") == [PRIVATE_WEB]
                assert await run(machine.get, PRIVATE_WEB) == b"private"
                assert await run(machine.refused, METADATA)
        async with attached(pool, Policy(names=names)) as attachment:
            with connected_guest(attachment.slot) as machine:
                assert (await run(machine.lookup, "mirror.example.org")).rcode() == dns.rcode.REFUSED
                assert await run(machine.refused, PRIVATE_WEB)


async def test_the_resolver_answers_over_tcp_as_well(pool: SlotPool, internet: SimulatedInternet) -> None:
    import dns.message
    import dns.query

    internet.nameserver.zone["www.example.org"] = [WEB]
    async with attached(pool, Policy(open=True)) as attachment:
        with connected_guest(attachment.slot) as machine:
            query = dns.message.make_query("www.example.org", "A")
            answer = await run(machine.run, lambda: dns.query.tcp(query, attachment.slot.gateway, timeout=3))
            assert answer.answer[0][0].address == WEB


async def test_a_slot_is_never_given_to_a_second_machine(pool: SlotPool, internet: SimulatedInternet) -> None:
    policy = Policy(networks=(NetworkRule(IPv4Network(f"{WEB}/32"), None),))
    async with attached(pool, policy) as first:
        with connected_guest(first.slot) as machine:
            assert await run(machine.get, WEB) == b"web"
            inode = first.slot.namespace.stat().st_ino
    async with attached(pool, Policy()) as second:
        assert second.slot.namespace.stat().st_ino != inode
        with connected_guest(second.slot) as machine:
            assert await run(machine.refused, WEB)
    assert second.traffic is not None and second.traffic.refused_count == 1


def tried(attachment: Watched) -> list[RefusedDestination]:
    assert attachment.traffic is not None
    return [each for each in attachment.traffic.refused if each.address is not None]


async def test_a_job_that_requests_less_bandwidth_gets_no_more(pool: SlotPool) -> None:
    async with pool.with_network(Policy(open=True), mbit=2.5) as attachment:
        command = ["ip", "netns", "exec", attachment.slot.namespace.name, "tc", "qdisc", "show"]
        shown = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    rates = [line for line in shown.stdout.splitlines() if " tbf " in line]
    assert len(rates) == 2 and all("rate 2500Kbit" in line for line in rates)
