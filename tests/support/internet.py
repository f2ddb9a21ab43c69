"""A simulated internet, and guests with real network stacks, in network namespaces.

The internet is a namespace behind the host, with addresses of RFC 5737, HTTP servers and a name server. A guest is a
namespace whose device is connected to a slot's TAP, as a machine's is: it can send everything that a machine can, by
its kernel or as raw frames.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import dns.message
import dns.rcode
import dns.rrset

from belljar.node.machines.host.namespace import run_in_namespace
from belljar.node.machines.host.tap import attach_tap, open_tap
from belljar.node.machines.protocol import NetworkSlot

T = TypeVar("T")

NETNS = Path("/run/netns")
HEADER = b"\0" * 10  # struct virtio_net_hdr of a plain frame
INTERNET = "bjtest-internet"
WEB = "198.51.100.10"
OTHER_WEB = "198.51.100.20"
NAMESERVER = "198.51.100.53"
OTHER_NAMESERVER = "198.51.100.99"
METADATA = "169.254.169.254"
PRIVATE_WEB = "10.77.0.10"
#: Single addresses, since the host that runs the tests may use the whole networks.
ROUTED = (WEB, OTHER_WEB, NAMESERVER, OTHER_NAMESERVER, METADATA, PRIVATE_WEB)


_OURS = re.compile(r"belljar-\d+-\d+-\d+\.\d+|belljar\d+|bjtest")


def ip(*args: str) -> str:
    """Run ip(8) and return its output."""
    return subprocess.run(["ip", *args], check=True, capture_output=True, text=True, timeout=20).stdout


def host_state() -> dict[str, str]:
    """Return the state of the host's networking that a test must restore.

    Of namespaces, links and addresses only those of belljar and the tests: others may change at any time.
    """
    commands = {
        "rules": ["nft", "list", "ruleset"],
        "namespaces": ["ip", "netns", "list"],
        "links": ["ip", "-o", "link", "show"],
        "addresses": ["ip", "-o", "-4", "addr", "show"],
        "routes": ["ip", "route", "show", "table", "all"],
        "policy routing": ["ip", "rule", "show"],
        "forwarding": ["sysctl", "net.ipv4.ip_forward", "net.ipv4.conf.all.forwarding"],
    }
    state = {
        name: subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
        for name, command in commands.items()
    }
    for name in ("namespaces", "links", "addresses"):
        state[name] = "".join(line for line in state[name].splitlines(keepends=True) if _OURS.search(line))
    return state


def quiet(interface: str) -> None:
    """Disable IPv6 on an interface of the tests, which would get link-local addresses some time later."""
    with contextlib.suppress(FileNotFoundError):
        Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").write_text("1")


def listen(host: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """Return a bound socket; a stream socket listens."""
    server = socket.socket(socket.AF_INET, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((host, port))
    if kind == socket.SOCK_STREAM:
        server.listen(512)
    return server


@dataclass
class RecordingServer:
    """A TCP server that sends its name to each client and records the client's address."""

    socket: socket.socket
    name: bytes
    peers: list[str] = field(default_factory=list)

    def serve(self, stop: threading.Event) -> None:
        self.socket.settimeout(0.1)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError, OSError):
                connection, peer = self.socket.accept()
                with connection:
                    self.peers.append(peer[0])
                    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + self.name)


@dataclass
class NameServer:
    """A name server that answers from `zone` (name → addresses, or an alias) and records the queried names."""

    udp: socket.socket
    zone: dict[str, list[str] | str] = field(default_factory=dict)
    ttl: int = 60
    queries: list[str] = field(default_factory=list)

    def serve(self, stop: threading.Event) -> None:
        self.udp.settimeout(0.1)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError, OSError):
                wire, peer = self.udp.recvfrom(4096)
                self.udp.sendto(self._answer(wire), peer)

    def _answer(self, wire: bytes) -> bytes:
        query = dns.message.from_wire(wire)
        response = dns.message.make_response(query, recursion_available=True)
        name = query.question[0].name.to_text(omit_final_dot=True).lower()
        self.queries.append(name)
        for _ in range(20):
            entry = self.zone.get(name)
            if isinstance(entry, str):
                response.answer.append(dns.rrset.from_text(f"{name}.", self.ttl, "IN", "CNAME", f"{entry}."))
                name = entry
                continue
            if entry is not None:
                response.answer.append(dns.rrset.from_text(f"{name}.", self.ttl, "IN", "A", *entry))
            elif not response.answer:
                response.set_rcode(dns.rcode.NXDOMAIN)
            break
        return response.to_wire()


@dataclass
class SimulatedInternet:
    """The servers of the simulated internet."""

    web: RecordingServer
    other_web: RecordingServer
    tls: RecordingServer
    metadata: RecordingServer
    private: RecordingServer
    foreign_dns: RecordingServer
    nameserver: NameServer


@contextmanager
def simulated_internet() -> Iterator[SimulatedInternet]:
    """Create the namespace, the routes to it on the host, and its servers; remove them at the end."""
    ip("netns", "add", INTERNET)
    stop = threading.Event()
    threads: list[threading.Thread] = []
    sockets: list[socket.socket] = []
    try:
        ip("link", "add", "bjtest0", "type", "veth", "peer", "name", "eth0", "netns", INTERNET)
        quiet("bjtest0")
        ip("addr", "add", "10.99.0.1/30", "dev", "bjtest0")
        ip("link", "set", "bjtest0", "up")
        for args in (
            ("addr", "add", "10.99.0.2/30", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
            *(("addr", "add", f"{each}/32", "dev", "lo") for each in (WEB, OTHER_WEB, NAMESERVER, OTHER_NAMESERVER)),
            *(("addr", "add", f"{each}/32", "dev", "lo") for each in (METADATA, PRIVATE_WEB)),
            ("route", "add", "default", "via", "10.99.0.1"),
        ):
            ip("-n", INTERNET, *args)
        for address in ROUTED:
            ip("route", "add", f"{address}/32", "via", "10.99.0.2")
        namespace = NETNS / INTERNET

        def start_server(host: str, port: int, name: bytes) -> RecordingServer:
            server = RecordingServer(run_in_namespace(namespace, lambda: listen(host, port)), name)
            sockets.append(server.socket)
            threads.append(threading.Thread(target=server.serve, args=(stop,)))
            return server

        nameserver = NameServer(run_in_namespace(namespace, lambda: listen(NAMESERVER, 53, socket.SOCK_DGRAM)))
        sockets.append(nameserver.udp)
        threads.append(threading.Thread(target=nameserver.serve, args=(stop,)))
        internet = SimulatedInternet(
            web=start_server(WEB, 80, b"web"),
            other_web=start_server(OTHER_WEB, 80, b"other"),
            tls=start_server(WEB, 443, b"tls"),
            metadata=start_server(METADATA, 80, b"secrets"),
            private=start_server(PRIVATE_WEB, 80, b"private"),
            foreign_dns=start_server(OTHER_NAMESERVER, 53, b"dns"),
            nameserver=nameserver,
        )
        for thread in threads:
            thread.start()
        yield internet
    finally:
        stop.set()
        for thread in threads:
            thread.join(5)
        for each in sockets:
            each.close()
        subprocess.run(["ip", "link", "del", "bjtest0"], check=False, capture_output=True, timeout=20)
        ip("netns", "del", INTERNET)


@dataclass
class Guest:
    """A guest: a namespace with its own network stack, connected to a slot's TAP."""

    namespace: Path
    slot: NetworkSlot
    #: Descriptor of the slot's TAP, as a hypervisor has it.
    tap: int
    #: Frames that the guest received.
    received: list[bytes] = field(default_factory=list)

    def run(self, work: Callable[[], T]) -> T:
        """Return the result of `work` inside the guest."""
        return run_in_namespace(self.namespace, work)

    def get(self, host: str, port: int = 80, timeout: float = 3) -> bytes:
        """Return the body of a server's response. Raises as connect(2) does."""

        def request() -> bytes:
            with socket.create_connection((host, port), timeout) as connection:
                return connection.makefile("rb").read().partition(b"\r\n\r\n")[2]

        return self.run(request)

    def refused(self, host: str, port: int = 80, timeout: float = 3) -> bool:
        """Return whether a connection is refused at once, rather than after a timeout."""
        try:
            self.get(host, port, timeout)
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
        raise AssertionError(f"{host}:{port} was reached")

    def lookup(self, name: str, kind: str = "A", server: str | None = None, timeout: float = 3) -> dns.message.Message:
        """Send one query to a name server, by default the gateway's, and return its response."""
        query = dns.message.make_query(name, kind)

        def send_query() -> dns.message.Message:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(timeout)
                client.connect((server or self.slot.gateway, 53))
                client.send(query.to_wire())
                return dns.message.from_wire(client.recv(4096))

        return self.run(send_query)

    def addresses(self, name: str) -> list[str]:
        """Return the addresses in the answer for a name."""
        answer = self.lookup(name).answer
        return [record.address for rrset in answer for record in rrset if hasattr(record, "address")]

    def send(self, frame: bytes) -> None:
        """Send a raw frame."""
        os.write(self.tap, HEADER + frame)


@contextmanager
def connected_guest(slot: NetworkSlot, name: str = "bjtest-guest") -> Iterator[Guest]:
    """Create a guest connected to a slot and configured as the agent would."""
    ip("netns", "add", name)
    namespace = NETNS / name
    stop_read, stop_write = os.pipe()
    try:
        ours = run_in_namespace(namespace, lambda: attach_tap("eth0"))
        for args in (
            ("link", "set", "lo", "up"),
            ("link", "set", "eth0", "address", slot.guest_mac, "mtu", str(slot.mtu), "up"),
            ("addr", "add", slot.guest_address, "dev", "eth0"),
            ("route", "add", "default", "via", slot.gateway),
        ):
            ip("-n", name, *args)
        tap = open_tap(slot)
        guest = Guest(namespace, slot, tap)

        def copy() -> None:
            while True:
                readable, _, _ = select.select([ours, tap, stop_read], [], [])
                if stop_read in readable:
                    return
                for source, sink in ((ours, tap), (tap, ours)):
                    if source in readable:
                        with contextlib.suppress(BlockingIOError):
                            frame = os.read(source, 70000)
                            if source == tap and len(guest.received) < 10_000:
                                guest.received.append(frame[len(HEADER) :])
                            os.write(sink, frame)

        thread = threading.Thread(target=copy)
        thread.start()
        try:
            yield guest
        finally:
            os.write(stop_write, b"x")
            thread.join(5)
            os.close(tap)
            os.close(ours)
    finally:
        os.close(stop_read)
        os.close(stop_write)
        ip("netns", "del", name)


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ethernet(source: str, target: str, kind: int, payload: bytes) -> bytes:
    return mac(target) + mac(source) + struct.pack("!H", kind) + payload


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def ipv4(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    def header(check: int) -> bytes:
        length = 20 + len(payload)
        addresses = socket.inet_aton(source) + socket.inet_aton(target)
        return struct.pack("!BBHHHBBH", 0x45, 0, length, 1, 0, 64, protocol, check) + addresses

    return header(checksum(header(0))) + payload


def udp(source_port: int, target_port: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", source_port, target_port, 8 + len(payload), 0) + payload


def tcp_syn(source: str, target: str, source_port: int, target_port: int) -> bytes:
    def segment(check: int) -> bytes:
        return struct.pack("!HHIIBBHHH", source_port, target_port, 1, 0, 5 << 4, 0x02, 64240, check, 0)

    pseudo = socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!BBH", 0, 6, 20)
    return segment(checksum(pseudo + segment(0)))


def arp_request(sender_mac: str, sender: str, target: str) -> bytes:
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    return body + mac(sender_mac) + socket.inet_aton(sender) + b"\0" * 6 + socket.inet_aton(target)
