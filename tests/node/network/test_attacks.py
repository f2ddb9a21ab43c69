"""Attacks of a hostile machine on its network, with real packets. docs/network.md lists them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import IPv4Network

import pytest
from pyroute2.netlink.nfnetlink.nfctsocket import AsyncNFCTSocket

from belljar.node.machines.host.namespace import run_in_namespace
from belljar.node.machines.protocol import GUEST_MAC
from belljar.node.network.layout import GATEWAY_MAC, HOST_PREFIX
from belljar.node.network.policy import NetworkRule, Policy
from belljar.node.network.pool import SlotPool
from belljar.settings import Settings
from node.network.test_policies import attached, run
from support.internet import (
    METADATA,
    NETNS,
    WEB,
    RecordingServer,
    SimulatedInternet,
    arp_request,
    connected_guest,
    ethernet,
    ip,
    ipv4,
    listen,
    mac,
    tcp_syn,
    udp,
)

pytestmark = pytest.mark.root

GATEWAY, GUEST = "172.30.0.1", "172.30.0.2"
BROADCAST_MAC = "ff:ff:ff:ff:ff:ff"
OPEN = Policy(open=True)
WEB_ONLY = Policy(networks=(NetworkRule(IPv4Network(f"{WEB}/32")),))


def syn(target: str, port: int, source: str = GUEST, source_mac: str = GUEST_MAC, source_port: int = 40000) -> bytes:
    segment = tcp_syn(source, target, source_port, port)
    return ethernet(source_mac, GATEWAY_MAC, 0x0800, ipv4(source, target, 6, segment))


@contextlib.contextmanager
def serving_on_host(port: int) -> Iterator[RecordingServer]:
    """Run a server on all addresses of the host."""
    stop = threading.Event()
    with listen("0.0.0.0", port) as server:
        answering = RecordingServer(server, b"host")
        thread = threading.Thread(target=answering.serve, args=(stop,))
        thread.start()
        try:
            yield answering
        finally:
            stop.set()
            thread.join(5)


def host_addresses() -> list[str]:
    return [line.split()[3].partition("/")[0] for line in ip("-o", "-4", "addr", "show").splitlines()]


async def seen_by_web(internet: SimulatedInternet) -> None:
    await asyncio.sleep(0.3)
    assert internet.web.peers == [], "a packet went through"


async def test_another_address_than_its_own(pool: SlotPool, internet: SimulatedInternet) -> None:
    async with attached(pool, OPEN) as attachment:
        with connected_guest(attachment.slot) as machine:
            ip("-n", "bjtest-guest", "addr", "add", "172.30.0.77/24", "dev", "eth0")
            ip("-n", "bjtest-guest", "addr", "del", attachment.slot.guest_address, "dev", "eth0")
            ip("-n", "bjtest-guest", "route", "replace", "default", "via", GATEWAY)
            with pytest.raises(TimeoutError):
                await run(machine.get, WEB, timeout=1)
            machine.send(syn(WEB, 80, source="198.51.100.1"))
            machine.send(syn(WEB, 80, source=METADATA))
            await seen_by_web(internet)
    assert attachment.traffic is not None and attachment.traffic.forged_count >= 2


async def test_another_mac_than_its_own(pool: SlotPool, internet: SimulatedInternet) -> None:
    async with attached(pool, OPEN) as attachment:
        with connected_guest(attachment.slot) as machine:
            for number in range(20):
                machine.send(syn(WEB, 80, source_mac="02:00:00:00:00:66", source_port=41000 + number))
            machine.send(syn(WEB, 80, source_mac=GATEWAY_MAC))
            await seen_by_web(internet)
            assert await run(machine.get, WEB) == b"web"
    assert attachment.traffic is not None and attachment.traffic.forged_count == 21


async def test_an_arp_flood_changes_nothing_and_is_hardly_answered(pool: SlotPool, internet: SimulatedInternet) -> None:
    async with attached(pool, OPEN) as attachment:
        with connected_guest(attachment.slot) as machine:
            before = ip("-n", attachment.slot.namespace.name, "neigh", "show")
            for number in range(5000):
                sender = f"172.30.{number >> 8 & 255}.{number & 255}"
                machine.send(ethernet(GUEST_MAC, BROADCAST_MAC, 0x0806, arp_request(GUEST_MAC, sender, GATEWAY)))
                request = arp_request("02:00:00:00:00:66", GUEST, GATEWAY)
                machine.send(ethernet(GUEST_MAC, BROADCAST_MAC, 0x0806, request))
            for _ in range(500):
                machine.send(ethernet(GUEST_MAC, BROADCAST_MAC, 0x0806, arp_request(GUEST_MAC, GUEST, GATEWAY)))
            await asyncio.sleep(0.3)
            answers = [frame for frame in machine.received if frame[12:14] == b"\x08\x06"]
            assert len(answers) <= 60
            assert ip("-n", attachment.slot.namespace.name, "neigh", "show") == before
            assert await run(machine.get, WEB) == b"web"


async def test_raw_packets_with_forged_sources_never_leave(pool: SlotPool, internet: SimulatedInternet) -> None:
    sources = ["127.0.0.1", "0.0.0.0", "255.255.255.255", "10.99.0.1", "192.168.1.1", WEB, "198.19.0.0", "198.19.0.1"]
    async with attached(pool, OPEN) as attachment:
        with connected_guest(attachment.slot) as machine:
            for source in sources:
                machine.send(syn(WEB, 80, source=source))
                datagram = ipv4(source, WEB, 17, udp(53, 53, b"x" * 12))
                machine.send(ethernet(GUEST_MAC, GATEWAY_MAC, 0x0800, datagram))
            await seen_by_web(internet)
    assert attachment.traffic is not None and attachment.traffic.forged_count == 2 * len(sources)


async def test_scanning_the_hosts_addresses_finds_nothing(pool: SlotPool, internet: SimulatedInternet) -> None:
    async with attached(pool, OPEN) as attachment:
        with serving_on_host(28080) as server, connected_guest(attachment.slot) as machine:
            addresses = host_addresses()
            assert any(address.startswith("198.19.") for address in addresses)
            for address in [*addresses, GATEWAY]:
                if address.startswith("127."):
                    continue
                assert await run(machine.refused, address, 28080), address
                assert await run(machine.refused, address, 22), address
            # Loopback addresses never leave a guest's kernel; a hostile one sends them all the same.
            machine.send(syn("127.0.0.1", 28080))
            await asyncio.sleep(0.3)
        assert server.peers == []
    assert attachment.traffic is not None and attachment.traffic.refused_count >= 2 * (len(addresses) - 1)


async def test_a_neighbour_is_out_of_reach(internet: SimulatedInternet, network_settings: Settings) -> None:
    async with (
        SlotPool(network_settings) as pool,
        SlotPool(network_settings) as another,
        attached(pool, OPEN) as first,
        attached(pool, OPEN) as second,
        attached(another, OPEN) as third,
    ):
        with (
            connected_guest(first.slot, "bjtest-guest") as attacker,
            connected_guest(second.slot, "bjtest-guest2") as victim,
            connected_guest(third.slot, "bjtest-guest3") as stranger,
        ):
            for each in (victim, stranger):
                each.run(lambda: None)
            numbers = [int(each.slot.namespace.name.rpartition(".")[2]) for each in (first, second, third)]
            assert len(set(numbers)) == 3
            for number in numbers[1:]:
                for last in (2 * number, 2 * number + 1):
                    assert await run(attacker.refused, f"198.19.0.{last}", 80)
                    attacker.send(syn(f"198.19.0.{last}", 80))
            attacker.send(
                ethernet(GUEST_MAC, BROADCAST_MAC, 0x0800, ipv4(GUEST, "255.255.255.255", 17, udp(1, 1, b"")))
            )
            attacker.send(
                ethernet(GUEST_MAC, "01:00:5e:00:00:fb", 0x0800, ipv4(GUEST, "224.0.0.251", 17, udp(1, 1, b"")))
            )
            await asyncio.sleep(0.3)
            from_attacker = [f for each in (victim, stranger) for f in each.received if mac(GUEST_MAC) == f[6:12]]
            assert from_attacker == []
            assert [f for each in (victim, stranger) for f in each.received if f[12:14] == b"\x08\x00"] == []


async def test_even_without_its_own_rules_a_slot_reaches_neither_host_nor_neighbour(
    internet: SimulatedInternet, network_settings: Settings
) -> None:
    """The host's table does not depend on the slot's: here the slot's filters are deleted."""
    async with (
        SlotPool(network_settings) as pool,
        attached(pool, OPEN) as attachment,
        attached(pool, OPEN) as second,
    ):
        subprocess.run(
            [
                "ip",
                "netns",
                "exec",
                attachment.slot.namespace.name,
                "nft",
                "delete",
                "chain",
                "inet",
                "belljar",
                "forward",
            ],
            check=True,
        )
        number = int(second.slot.namespace.name.rpartition(".")[2])
        with serving_on_host(28080) as server, connected_guest(attachment.slot) as machine:
            with pytest.raises(TimeoutError):
                await run(machine.get, f"198.19.0.{2 * number + 1}", timeout=0.5)
            for address in (*host_addresses(), METADATA, "10.77.0.10"):
                if not address.startswith("127."):
                    with pytest.raises(TimeoutError):
                        await run(
                            machine.get, address, 28080 if address not in (METADATA, "10.77.0.10") else 80, timeout=0.5
                        )
            assert await run(machine.get, WEB) == b"web"
        assert server.peers == [] and internet.metadata.peers == [] and internet.private.peers == []


async def test_the_metadata_address_by_every_spelling(pool: SlotPool, internet: SimulatedInternet) -> None:
    async with attached(pool, OPEN) as attachment:
        with connected_guest(attachment.slot) as machine:

            def mapped() -> None:
                with socket.socket(socket.AF_INET6) as connection:
                    connection.settimeout(3)
                    connection.connect((f"::ffff:{METADATA}", 80))

            assert await run(machine.refused, METADATA)
            for host in (
                "2852039166",
                "0xa9fea9fe",
                "0251.0376.0251.0376",
            ):  # the same number, as inet_aton(3) reads it
                assert await run(machine.refused, host)
            with pytest.raises(OSError):
                await run(machine.run, mapped)

            def real_ipv6() -> None:
                with socket.socket(socket.AF_INET6) as connection:
                    connection.settimeout(1)
                    connection.connect(("fd00:ec2::254", 80))

            with pytest.raises(OSError):
                await run(machine.run, real_ipv6)
    assert internet.metadata.peers == []


async def test_ipv6_goes_nowhere(pool: SlotPool, internet: SimulatedInternet) -> None:
    async with attached(pool, OPEN) as attachment:
        with connected_guest(attachment.slot) as machine:
            packet = bytes([0x60]) + b"\0" * 3 + b"\0\x08" + bytes([17, 64])
            packet += socket.inet_pton(socket.AF_INET6, "fe80::1") + socket.inet_pton(socket.AF_INET6, "ff02::1")
            for _ in range(10):
                machine.send(ethernet(GUEST_MAC, "33:33:00:00:00:01", 0x86DD, packet + udp(1, 1, b"")))
                machine.send(ethernet(GUEST_MAC, GATEWAY_MAC, 0x86DD, packet + udp(1, 1, b"")))
            await asyncio.sleep(0.2)
            name = attachment.slot.namespace.name
            assert "inet6" not in ip("-n", name, "addr", "show", "dev", "tap0")
            assert "inet6" not in ip("-n", name, "addr", "show", "dev", "up0")
            number = name.rpartition(".")[2]
            assert "inet6" not in ip("addr", "show", "dev", f"{HOST_PREFIX}{number}")
            assert [
                frame for frame in machine.received if frame[12:14] == b"\x86\xdd" and frame[6:12] == mac(GATEWAY_MAC)
            ] == []
    assert attachment.traffic is not None and attachment.traffic.forged_count >= 10


async def test_other_protocols_and_fragments_do_not_pass_a_list(pool: SlotPool, internet: SimulatedInternet) -> None:
    async with attached(pool, Policy(networks=(NetworkRule(IPv4Network(f"{WEB}/32"), 80),))) as attachment:
        with connected_guest(attachment.slot) as machine:
            for protocol in (2, 4, 41, 47, 50):  # IGMP, IPIP, 6in4, GRE, ESP
                machine.send(ethernet(GUEST_MAC, GATEWAY_MAC, 0x0800, ipv4(GUEST, WEB, protocol, b"\0" * 32)))
            before = attachment.slot.namespace.name
            await asyncio.sleep(0.3)
            assert [line for line in run_in_namespace(NETNS / before, tracked_flows) if f"dst={WEB}" in line] == []
            assert await run(machine.get, WEB) == b"web"
    assert attachment.traffic is not None and attachment.traffic.refused_count == 5


def tracked_flows() -> list[str]:
    """Return the tracked flows of the calling thread's namespace, one line each."""

    async def read() -> list[str]:
        lines = []
        async with AsyncNFCTSocket() as connections:
            async for entry in await connections.dump():
                orig = entry.get_attr("CTA_TUPLE_ORIG").get_attr("CTA_TUPLE_IP")
                lines.append(f"src={orig.get_attr('CTA_IP_V4_SRC')} dst={orig.get_attr('CTA_IP_V4_DST')} ")
        return lines

    return asyncio.run(read())
