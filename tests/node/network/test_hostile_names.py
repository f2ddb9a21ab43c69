"""Attacks by DNS, with real queries to the slot's resolver and past it."""

from __future__ import annotations

import contextlib
import socket
import time

import dns.message
import dns.rcode
import pytest

from belljar.node.network.policy import NameRule, Policy
from belljar.node.network.pool import SlotPool
from node.network.test_attacks import GATEWAY, host_addresses
from node.network.test_policies import attached, run
from support.internet import (
    METADATA,
    OTHER_NAMESERVER,
    WEB,
    SimulatedInternet,
    connected_guest,
)

pytestmark = pytest.mark.root

OPEN = Policy(open=True)


async def test_rebinding_a_listed_name_to_a_private_address(pool: SlotPool, internet: SimulatedInternet) -> None:
    policy = Policy(names=(NameRule("evil.example.org"),))
    async with attached(pool, policy) as attachment:
        with connected_guest(attachment.slot) as machine:
            private = (METADATA, "10.77.0.10", "127.0.0.1", "198.19.0.0", "0.0.0.0", "224.0.0.1")
            for address in (*private, *host_addresses()):
                internet.nameserver.zone["evil.example.org"] = [address]
                assert (await run(machine.lookup, "evil.example.org")).rcode() == dns.rcode.REFUSED
            internet.nameserver.zone |= {"evil.example.org": "inner.example.org", "inner.example.org": [METADATA]}
            assert (await run(machine.lookup, "evil.example.org")).rcode() == dns.rcode.REFUSED
            # Of a mixed answer the public addresses are returned.
            internet.nameserver.zone["evil.example.org"] = [METADATA, WEB]
            assert await run(machine.addresses, "evil.example.org") == [WEB]
            assert await run(machine.refused, METADATA)
    assert internet.metadata.peers == []
    assert attachment.traffic is not None
    assert ("evil.example.org", METADATA) in {(each.name, str(each.address)) for each in attachment.traffic.refused}


@pytest.mark.parametrize("policy", [OPEN, Policy(names=(NameRule("allowed.example.org"),))])
async def test_ten_thousand_names(pool: SlotPool, internet: SimulatedInternet, policy: Policy) -> None:
    internet.nameserver.zone["allowed.example.org"] = [WEB]
    async with attached(pool, policy) as attachment:
        with connected_guest(attachment.slot) as machine:

            def flood() -> None:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                    asking.connect((GATEWAY, 53))
                    for number in range(10_000):
                        asking.send(dns.message.make_query(f"n{number}.example.com", "A").to_wire())

            await run(machine.run, flood)
            deadline = time.monotonic() + 20
            while True:  # the limit on questions lets it in again by and by
                with contextlib.suppress(TimeoutError):
                    if await run(machine.addresses, "allowed.example.org") == [WEB]:
                        break
                assert time.monotonic() < deadline
    assert attachment.traffic is not None and len(attachment.traffic.refused) <= 20


async def test_a_resolver_of_its_own(pool: SlotPool, internet: SimulatedInternet) -> None:
    async with attached(pool, Policy(names=(NameRule("www.example.org"),))) as attachment:
        with connected_guest(attachment.slot) as machine:
            with pytest.raises((OSError, TimeoutError)):
                await run(machine.lookup, "www.example.org", server=OTHER_NAMESERVER, timeout=1)
            for port in (53, 853, 443):
                assert await run(machine.refused, OTHER_NAMESERVER, port)
            with pytest.raises((OSError, TimeoutError)):
                await run(machine.lookup, "www.example.org", server="198.51.100.53", timeout=1)
    assert internet.foreign_dns.peers == [] and internet.nameserver.queries == []


async def test_tunnelling_through_queries_for_unlisted_names(pool: SlotPool, internet: SimulatedInternet) -> None:
    secret = "gq3tcmv0"
    async with attached(pool, Policy(names=(NameRule("www.example.org"),))) as attachment:
        with connected_guest(attachment.slot) as machine:
            for name in (f"{secret}.evil.test", f"{secret}.www.example.org", f"www.example.org.{secret}.test"):
                for kind in ("A", "AAAA", "TXT", "CNAME", "NULL", "MX", "SRV"):
                    assert (await run(machine.lookup, name, kind)).rcode() == dns.rcode.REFUSED
            # For a listed name only addresses are queried upstream.
            for kind in ("TXT", "NULL", "MX", "SRV", "HTTPS", "ANY"):
                assert (await run(machine.lookup, "www.example.org", kind)).answer == []
    assert internet.nameserver.queries == []
    assert attachment.traffic is not None
    assert {each.name for each in attachment.traffic.refused} == {
        f"{secret}.evil.test",
        f"{secret}.www.example.org",
        f"www.example.org.{secret}.test",
    }


async def test_malformed_queries_are_dropped_and_the_resolver_keeps_working(
    pool: SlotPool, internet: SimulatedInternet
) -> None:
    internet.nameserver.zone["www.example.org"] = [WEB]
    good = dns.message.make_query("www.example.org", "A").to_wire()
    bad = [
        b"",
        b"\0",
        good[:12],
        good[:-3],
        good[:4] + b"\xff\xff" + good[6:],
        good[:12] + b"\xc0\x0c" * 8,
        b"\xff" * 1200,
    ]
    bad += [good[:2] + bytes([good[2] | 0x80]) + good[3:], good[:2] + b"\x28\0" + good[4:], good + b"\0" * 3000]
    async with attached(pool, Policy(names=(NameRule("www.example.org"),))) as attachment:
        with connected_guest(attachment.slot) as machine:

            def send() -> None:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                    asking.settimeout(0.5)
                    asking.connect((GATEWAY, 53))
                    for wire in bad:
                        asking.send(wire)
                    with pytest.raises(TimeoutError):
                        asking.recv(4096)
                for wire in bad:
                    with socket.create_connection((GATEWAY, 53), 3) as connection, contextlib.suppress(OSError):
                        connection.sendall(len(wire).to_bytes(2, "big") + wire)

            await run(machine.run, send)
            assert await run(machine.addresses, "www.example.org") == [WEB]
