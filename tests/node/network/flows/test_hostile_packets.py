"""Packets that are many, malformed or in pieces: all are counted, in bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct

import pytest

from belljar.node.machines.host.namespace import run_in_namespace
from belljar.node.machines.protocol import GUEST_MAC
from belljar.node.network.flows.alerts import AlertRules
from belljar.node.network.layout import GATEWAY_MAC
from belljar.node.network.policy import Policy
from belljar.node.network.pool import SlotPool
from support.flows import watched
from support.internet import (
    INTERNET,
    NETNS,
    WEB,
    SimulatedInternet,
    ethernet,
    ipv4,
    listen,
    tcp_syn,
    udp,
)

pytestmark = pytest.mark.root

GUEST = "172.30.0.2"


async def test_a_hundred_thousand_destinations_are_counted_in_bounded_memory(
    pool: SlotPool, internet: SimulatedInternet
) -> None:
    total = 100_000
    async with watched(pool, Policy(), AlertRules(scanned=500)) as seen:

        def flood() -> None:
            for number in range(total):
                address = f"45.{number >> 16}.{number >> 8 & 255}.{number & 255}"
                packet = ipv4(GUEST, address, 6, tcp_syn(GUEST, address, 40_000, 80))
                seen.guest.send(ethernet(GUEST_MAC, GATEWAY_MAC, 0x0800, packet))

        await asyncio.to_thread(flood)
    report = seen.report
    assert report.totals.packets_out == total and report.totals.flows == total
    assert len(report.flows) <= 250 and report.left_out.flows == total - len(report.flows)
    assert all(flow.verdict == "refused" for flow in report.flows)
    assert len(report.model_dump_json()) < 200_000
    assert [alert.rule for alert in report.alerts] == ["port_scan"] and seen.alerts == list(report.alerts)


async def test_a_full_ring_loses_names_and_counts_them(pool: SlotPool, internet: SimulatedInternet) -> None:
    count = 150
    request = b"GET / HTTP/1.1\r\nHost: many.example.org\r\n\r\n"

    def connect() -> None:
        for _ in range(count):
            with socket.create_connection((WEB, 80), 5) as connection:
                connection.sendall(request)
                with contextlib.suppress(ConnectionResetError):  # the server reads no request
                    while connection.recv(1000):
                        pass

    async with watched(pool) as seen:
        seen.guest.run(connect)  # not in a thread: nothing reads the ring meanwhile
    named = sum(flow.http_host == "many.example.org" for flow in seen.report.flows)
    assert 0 < seen.report.lost.names == count - named < count
    assert seen.report.totals.bytes_out >= count * len(request)


async def test_packets_that_are_no_flow_are_counted_apart(pool: SlotPool, internet: SimulatedInternet) -> None:
    def frame(payload: bytes, kind: int = 0x0800) -> bytes:
        return ethernet(GUEST_MAC, GATEWAY_MAC, kind, payload)

    whole = ipv4(GUEST, WEB, 17, udp(5000, 6000, b"x" * 100))
    later_fragment = whole[:6] + struct.pack("!H", 185) + whole[8:]
    malformed = [
        whole[:19],
        b"\x65" + whole[1:],
        b"\x44" + whole[1:],
        whole[:2] + struct.pack("!H", 2000) + whole[4:],
        whole[:2] + struct.pack("!H", 10) + whole[4:],
        ipv4(GUEST, WEB, 17, b"\0" * 4),
        ipv4(GUEST, WEB, 6, b"\0" * 20),
        ipv4(GUEST, WEB, 6, b"\0" * 12 + b"\xf0" + b"\0" * 7),
    ]
    async with watched(pool) as seen:
        for each in malformed:
            seen.guest.send(frame(each))
        for _ in range(3):
            seen.guest.send(frame(b"\x60" + os.urandom(60), 0x86DD))
        seen.guest.send(frame(later_fragment))
        await asyncio.sleep(0.2)
        assert await asyncio.to_thread(seen.guest.get, WEB) == b"web"
    assert seen.report.lost.malformed == len(malformed)
    assert seen.report.lost.ipv6 >= 3  # the guest's kernel sends some of its own
    fragment = seen.flow(protocol="udp", address=WEB)
    assert (fragment.port, fragment.bytes_out) == (None, 108)


async def test_a_large_datagram_has_all_its_bytes(pool: SlotPool, internet: SimulatedInternet) -> None:
    with run_in_namespace(NETNS / INTERNET, lambda: listen(WEB, 7000, socket.SOCK_DGRAM)) as server:
        server.settimeout(10)
        async with watched(pool) as seen:

            def send() -> None:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.sendto(b"d" * 20_000, (WEB, 7000))

            await asyncio.to_thread(seen.guest.run, send)
            assert len(await asyncio.to_thread(server.recv, 70_000)) == 20_000
    flows = [flow for flow in seen.report.flows if flow.protocol == "udp" and flow.verdict == "allowed"]
    assert sorted(flow.port or 0 for flow in flows) == [0, 7000]
    assert sum(flow.bytes_out for flow in flows) == 20_000
