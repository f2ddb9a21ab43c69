"""Flows of real packets, compared byte for byte with what the test's own servers counted."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Network

import dns.message
import dns.rrset
import pytest

from belljar.node.machines.host.namespace import run_in_namespace
from belljar.node.machines.protocol import GUEST_MAC
from belljar.node.network.flows import watch
from belljar.node.network.flows.alerts import AlertRules
from belljar.node.network.flows.libbpf import BpfUnavailable
from belljar.node.network.layout import GATEWAY_MAC
from belljar.node.network.netlink import set_sysctl
from belljar.node.network.policy import NameRule, NetworkRule, Policy
from belljar.node.network.pool import SlotPool
from belljar.settings import Settings
from support.flows import OPEN, in_background, loaded_programs, watched
from support.internet import (
    INTERNET,
    METADATA,
    NETNS,
    OTHER_NAMESERVER,
    OTHER_WEB,
    WEB,
    SimulatedInternet,
    ethernet,
    ipv4,
    listen,
)

pytestmark = pytest.mark.root

#: Offset of tcpi_bytes_retrans in struct tcp_info (linux/tcp.h).
_RETRANSMITTED = 208


def retransmitted(connection: socket.socket) -> int:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("Q", info, _RETRANSMITTED)[0])


@dataclass
class CountingServer:
    """A TCP server that counts what each client sends, and sends as many bytes as the first four say."""

    socket: socket.socket
    #: By the client's port, what was received and what was sent, without and with retransmissions.
    counted: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def serve(self, clients: int) -> None:
        self.socket.settimeout(20)
        for _ in range(clients):
            connection, peer = self.socket.accept()
            with connection:
                connection.settimeout(20)
                (wanted,) = struct.unpack("!I", connection.recv(4, socket.MSG_WAITALL))
                received = 4
                while data := connection.recv(65536):
                    received += len(data)
                connection.sendall(b"a" * wanted)
                connection.shutdown(socket.SHUT_WR)
                with contextlib.suppress(OSError):
                    connection.recv(1)  # until the client has it all
                self.counted[peer[1]] = (received, wanted, retransmitted(connection))


def exchange(port: int, out: int, back: int) -> tuple[int, int]:
    """Send and receive so many bytes; return the client's port, and what it sent again."""
    with socket.create_connection((WEB, port), 20) as connection:
        connection.sendall(struct.pack("!I", back) + b"b" * (out - 4))
        connection.shutdown(socket.SHUT_WR)
        received = 0
        while data := connection.recv(65536):
            received += len(data)
        assert received == back
        return connection.getsockname()[1], retransmitted(connection)


async def test_flows_have_the_bytes_that_the_servers_counted(pool: SlotPool, internet: SimulatedInternet) -> None:
    sizes = [(4, 0), (5, 1), (100, 70_000), (90_000, 3), (1448, 1449), (40_000, 40_000)]
    namespace = NETNS / INTERNET
    with (
        run_in_namespace(namespace, lambda: listen(WEB, 8000)) as tcp,
        run_in_namespace(namespace, lambda: listen(WEB, 8000, socket.SOCK_DGRAM)) as datagrams,
    ):
        server, received = CountingServer(tcp), []

        def echo() -> None:
            datagrams.settimeout(20)
            for _ in range(20):
                data, peer = datagrams.recvfrom(70_000)
                received.append(len(data))
                datagrams.sendto(data[: len(data) // 2], peer)

        def send_datagrams() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(20)
                client.connect((WEB, 8000))
                for size in range(20):
                    client.send(b"u" * (size * 70))
                    client.recv(70_000)

        async with watched(pool) as seen:
            with in_background(lambda: server.serve(len(sizes))), in_background(echo):
                clients = [
                    await asyncio.to_thread(seen.guest.run, lambda pair=pair: exchange(8000, *pair)) for pair in sizes
                ]
                await asyncio.to_thread(seen.guest.run, send_datagrams)
    assert seen.report.source == "ebpf", seen.report.source_reason
    compared = 0
    for (port, again), (out, back) in zip(clients, sizes, strict=True):
        flow = seen.flow(protocol="tcp", guest_port=port)
        from_client, from_server, server_again = server.counted[port]
        assert (from_client, from_server) == (out, back)
        if again or server_again:  # on a busy host; what is sent again may have been lost before or after the count
            continue
        compared += 1
        assert (flow.bytes_out, flow.bytes_in) == (from_client, from_server)
        assert (flow.address, flow.port, flow.verdict, flow.rule) == (WEB, 8000, "allowed", "open")
        assert flow.tcp_state in ("closed", "reset")  # the answer to what comes after the end
        assert flow.first_seen <= flow.last_seen
    assert compared >= 3
    datagram_flow = seen.flow(protocol="udp", port=8000)
    assert (datagram_flow.bytes_out, datagram_flow.packets_out) == (sum(received), 20)
    assert (datagram_flow.bytes_in, datagram_flow.packets_in) == (sum(size // 2 for size in received), 20)
    assert seen.report.lost.packets == seen.report.left_out.flows == 0
    assert seen.report.totals.bytes_out == sum(flow.bytes_out for flow in seen.report.flows)


async def test_names_come_from_the_resolver_and_from_what_the_machine_claims(
    pool: SlotPool, internet: SimulatedInternet
) -> None:
    internet.nameserver.zone["www.example.org"] = [WEB]

    def handshake() -> None:
        context = ssl.create_default_context()
        with contextlib.suppress(OSError, ssl.SSLError), socket.create_connection((OTHER_WEB, 80), 5) as plain:
            context.wrap_socket(plain, server_hostname="tls.example.net")

    def request(head: bytes) -> None:
        with socket.create_connection((OTHER_WEB, 80), 5) as connection:
            connection.sendall(head)
            connection.recv(100)

    def spoof() -> None:
        """A server of another address answers for a name, as under `open` any may."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.sendto(b"?", (OTHER_NAMESERVER, 5353))
            client.recv(2000)

    async with watched(pool) as seen:
        with run_in_namespace(NETNS / INTERNET, lambda: listen(OTHER_NAMESERVER, 5353, socket.SOCK_DGRAM)) as liar:

            def lie() -> None:
                _, peer = liar.recvfrom(2000)
                answer = dns.message.make_response(dns.message.make_query("bank.example.", "A"))
                answer.answer.append(dns.rrset.from_text("bank.example.", 60, "IN", "A", OTHER_WEB))
                liar.sendto(answer.to_wire(), peer)

            with in_background(lie):
                await asyncio.to_thread(seen.guest.run, spoof)
        assert await asyncio.to_thread(seen.guest.addresses, "www.example.org") == [WEB]
        assert await asyncio.to_thread(seen.guest.get, WEB) == b"web"
        await asyncio.to_thread(seen.guest.run, handshake)
        await asyncio.to_thread(seen.guest.run, lambda: request(b"GET / HTTP/1.1\r\nHost: Http.Example.NET:80\r\n\r\n"))
        hostile = b"GET / HTTP/1.1\r\nHost: \x1b]0;a\x07" + b"x" * 5000 + b"\r\n\r\n"
        await asyncio.to_thread(seen.guest.run, lambda: request(hostile))
    looked_up = seen.flow(address=WEB)
    assert (looked_up.name, looked_up.name_source) == ("www.example.org", "dns")
    claims = {(flow.tls_name, flow.http_host) for flow in seen.report.flows if flow.address == OTHER_WEB}
    assert claims == {("tls.example.net", None), (None, "http.example.net"), (None, None)}
    assert all(flow.dns_name is None for flow in seen.report.flows if flow.address == OTHER_WEB)
    assert seen.flow(address="172.30.0.1", port=53).rule == "resolver"


async def test_refused_destinations_have_their_reason(pool: SlotPool, internet: SimulatedInternet) -> None:
    internet.nameserver.zone["www.example.org"] = [WEB]
    policy = Policy(
        names=(NameRule("www.example.org", port=80),), networks=(NetworkRule(IPv4Network(f"{OTHER_WEB}/32")),)
    )
    async with watched(pool, policy) as seen:
        assert await asyncio.to_thread(seen.guest.addresses, "www.example.org") == [WEB]
        assert await asyncio.to_thread(seen.guest.get, WEB) == b"web"
        for address, port in ((WEB, 443), (METADATA, 80)):
            assert await asyncio.to_thread(seen.guest.refused, address, port)
        assert await asyncio.to_thread(seen.guest.get, OTHER_WEB) == b"other"
    verdicts = {(flow.address, flow.port): (flow.verdict, flow.rule, flow.tcp_state) for flow in seen.report.flows}
    assert verdicts[WEB, 80][:2] == ("allowed", "www.example.org:80")
    assert verdicts[OTHER_WEB, 80][:2] == ("allowed", OTHER_WEB)
    assert verdicts[WEB, 443] == ("refused", "egress", "reset")
    assert verdicts[METADATA, 80] == ("refused", "private", "reset")
    assert seen.flow(address=WEB, port=443).packets_out == 1


async def test_an_alert_is_raised_while_the_machine_runs(pool: SlotPool, internet: SimulatedInternet) -> None:
    async with watched(pool, rules=AlertRules(max_bytes_out=10_000, stops=frozenset({"bytes_out"}))) as seen:

        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                for _ in range(20):
                    client.sendto(b"e" * 1000, (WEB, 9))

        await asyncio.to_thread(seen.guest.run, send)
        async with asyncio.timeout(20):
            while not seen.alerts:
                await asyncio.sleep(0.05)
    assert [(alert.rule, alert.action) for alert in seen.alerts] == [("bytes_out", "stop")]


@pytest.mark.parametrize("has_times", [True, False])
async def test_without_bpf_connection_tracking_counts(
    internet: SimulatedInternet, network_settings: Settings, monkeypatch: pytest.MonkeyPatch, has_times: bool
) -> None:
    reason = "cannot load the BPF program: Operation not permitted"

    def unavailable() -> None:
        raise BpfUnavailable(reason)

    monkeypatch.setattr("belljar.node.network.flows.program.library", unavailable)
    monkeypatch.setitem(watch._READ_SECONDS, "conntrack", 0.2)
    monkeypatch.setattr(watch, "_FIRST_REPORT_SECONDS", 0.1)
    monkeypatch.setattr(watch, "REPORT_SECONDS", 0.1)
    if not has_times:

        def missing(name: str, value: str) -> None:
            if name.endswith("timestamp"):
                raise FileNotFoundError(name)
            set_sysctl(name, value)

        monkeypatch.setattr("belljar.node.network.flows.conntrack.set_sysctl", missing)
    policy = Policy(networks=(NetworkRule(IPv4Network(f"{WEB}/32"), 80), NetworkRule(IPv4Network(f"{WEB}/32"), 7000)))
    async with SlotPool(network_settings) as pool:
        with run_in_namespace(NETNS / INTERNET, lambda: listen(WEB, 7000, socket.SOCK_DGRAM)) as server:
            server.settimeout(10)
            async with watched(pool, policy) as seen:

                def send() -> None:
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                        for _ in range(5):
                            client.sendto(b"d" * 100, (WEB, 7000))

                await asyncio.to_thread(seen.guest.run, send)
                for _ in range(5):
                    await asyncio.to_thread(server.recv, 1000)
                assert await asyncio.to_thread(seen.guest.get, WEB) == b"web"
                assert await asyncio.to_thread(seen.guest.refused, OTHER_WEB)
                for protocol in (50, 47, 200):  # of some, nftables prints the name
                    seen.guest.send(
                        ethernet(GUEST_MAC, GATEWAY_MAC, 0x0800, ipv4("172.30.0.2", WEB, protocol, b"\0" * 12))
                    )
                async with asyncio.timeout(30):  # what is read more than once is counted once
                    while not {"tcp", "50"} <= {flow.protocol for flow in seen.report.flows if flow.rule != "open"}:
                        await asyncio.sleep(0.05)
    report = seen.report
    assert (report.source, report.source_reason) == (
        "conntrack",
        "cannot load the BPF program: Operation not permitted",
    )
    datagrams = seen.flow(protocol="udp", port=7000)
    assert (datagrams.bytes_out, datagrams.packets_out, datagrams.verdict) == (5 * 128, 5, "allowed")
    web = seen.flow(protocol="tcp", address=WEB)
    assert web.bytes_in > 60 and web.tcp_state in ("closed", "reset")
    refused = seen.flow(address=OTHER_WEB)
    assert (refused.verdict, refused.rule, refused.packets_out) == ("refused", "egress", 1)
    for protocol in ("50", "47", "200"):
        assert (seen.flow(protocol=protocol).rule, seen.flow(protocol=protocol).packets_out) == ("protocol", 1)


async def test_flows_that_are_off_are_not_counted(internet: SimulatedInternet, network_settings: Settings) -> None:
    settings = network_settings.model_copy(update={"network_flows": "off"})
    async with SlotPool(settings) as pool, pool.with_network(OPEN) as attachment:
        assert attachment.flows is None


async def test_a_removed_slot_leaves_no_program(internet: SimulatedInternet, network_settings: Settings) -> None:
    before = loaded_programs()
    async with SlotPool(network_settings) as pool, watched(pool) as seen:
        assert await asyncio.to_thread(seen.guest.get, WEB) == b"web"
        assert len(loaded_programs() - before) >= 3
    async with asyncio.timeout(30):  # the kernel frees them some time later
        while loaded_programs() - before:
            await asyncio.sleep(0.1)
