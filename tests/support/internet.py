"""A small internet and guests with real network stacks, in namespaces of the tests' own.

The internet is a namespace behind the host, with public-looking addresses (RFC 5737), HTTP servers and a name server.
A guest is a namespace whose device is wired to a slot's TAP, frame by frame, as a machine's is: it may send whatever a
machine could, by its kernel or as raw frames.
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

from belljar.node.machines.host.namespace import inside
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
#: Single addresses, since whole networks may be somebody's on the host that the tests run on.
ROUTED = (WEB, OTHER_WEB, NAMESERVER, OTHER_NAMESERVER, METADATA, PRIVATE_WEB)


_OURS = re.compile(r"belljar-\d+-\d+-\d+\.\d+|belljar\d+|bjtest")


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20).stdout


def host_state() -> dict[str, str]:
    """What of the host's networking must be as it was. Of namespaces and interfaces only belljar's and these tests'
    own: other things on a host may come and go by themselves."""
    commands = {
        "rules": ["nft", "list", "ruleset"],
        "namespaces": ["ip", "netns", "list"],
        "links": ["ip", "-o", "link", "show"],
        "addresses": ["ip", "-o", "-4", "addr", "show"],
        "routes": ["ip", "route", "show", "table", "all"],
        "policy routing": ["ip", "rule", "show"],
        "forwarding": ["sysctl", "net.ipv4.ip_forward", "net.ipv4.conf.all.forwarding"],
    }
    found = {
        name: subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
        for name, command in commands.items()
    }
    for name in ("namespaces", "links", "addresses"):
        found[name] = "".join(line for line in found[name].splitlines(keepends=True) if _OURS.search(line))
    return found


def quiet(interface: str) -> None:
    """No IPv6 on an interface of the tests: the addresses that it gives itself come late."""
    with contextlib.suppress(FileNotFoundError):
        Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").write_text("1")


def listen(host: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    server = socket.socket(socket.AF_INET, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((host, port))
    if kind == socket.SOCK_STREAM:
        server.listen(512)
    return server


@dataclass
class Answering:
    """A TCP server that says its name to whoever connects, and remembers who that was."""

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
    """Answers from `zone`: name → addresses, or another name as its alias. Remembers what it was asked."""

    udp: socket.socket
    zone: dict[str, list[str] | str] = field(default_factory=dict)
    ttl: int = 60
    asked: list[str] = field(default_factory=list)

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
        self.asked.append(name)
        for _ in range(20):
            found = self.zone.get(name)
            if isinstance(found, str):
                response.answer.append(dns.rrset.from_text(f"{name}.", self.ttl, "IN", "CNAME", f"{found}."))
                name = found
                continue
            if found is not None:
                response.answer.append(dns.rrset.from_text(f"{name}.", self.ttl, "IN", "A", *found))
            elif not response.answer:
                response.set_rcode(dns.rcode.NXDOMAIN)
            break
        return response.to_wire()


@dataclass
class Internet:
    web: Answering
    other_web: Answering
    tls: Answering
    metadata: Answering
    private: Answering
    foreign_dns: Answering
    nameserver: NameServer


@contextmanager
def internet() -> Iterator[Internet]:
    """The namespace, its routes on the host, and its servers; all gone at the end."""
    ip("netns", "add", INTERNET)
    stop = threading.Event()
    threads: list[threading.Thread] = []
    sockets: list[socket.socket] = []
    try:
        ip("link", "add", "bjtest0", "type", "veth", "peer", "name", "eth0", "netns", INTERNET)
        quiet("bjtest0")
        ip("addr", "add", "10.99.0.1/30", "dev", "bjtest0")
        ip("link", "set", "bjtest0", "up")
        for words in (
            ("addr", "add", "10.99.0.2/30", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
            *(("addr", "add", f"{each}/32", "dev", "lo") for each in (WEB, OTHER_WEB, NAMESERVER, OTHER_NAMESERVER)),
            *(("addr", "add", f"{each}/32", "dev", "lo") for each in (METADATA, PRIVATE_WEB)),
            ("route", "add", "default", "via", "10.99.0.1"),
        ):
            ip("-n", INTERNET, *words)
        for address in ROUTED:
            ip("route", "add", f"{address}/32", "via", "10.99.0.2")
        place = NETNS / INTERNET

        def answering(host: str, port: int, name: bytes) -> Answering:
            server = Answering(inside(place, lambda: listen(host, port)), name)
            sockets.append(server.socket)
            threads.append(threading.Thread(target=server.serve, args=(stop,)))
            return server

        nameserver = NameServer(inside(place, lambda: listen(NAMESERVER, 53, socket.SOCK_DGRAM)))
        sockets.append(nameserver.udp)
        threads.append(threading.Thread(target=nameserver.serve, args=(stop,)))
        world = Internet(
            web=answering(WEB, 80, b"web"),
            other_web=answering(OTHER_WEB, 80, b"other"),
            tls=answering(WEB, 443, b"tls"),
            metadata=answering(METADATA, 80, b"secrets"),
            private=answering(PRIVATE_WEB, 80, b"private"),
            foreign_dns=answering(OTHER_NAMESERVER, 53, b"dns"),
            nameserver=nameserver,
        )
        for thread in threads:
            thread.start()
        yield world
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
    """A guest's own kernel, and its wire."""

    place: Path
    slot: NetworkSlot
    #: The slot's TAP, as the hypervisor has it.
    wire: int
    #: Frames that came to the guest.
    received: list[bytes] = field(default_factory=list)

    def do(self, work: Callable[[], T]) -> T:
        """What `work` returns inside the guest."""
        return inside(self.place, work)

    def get(self, host: str, port: int = 80, timeout: float = 3) -> bytes:
        """What a server says; raises as connect(2) does."""

        def talk() -> bytes:
            with socket.create_connection((host, port), timeout) as connection:
                return connection.makefile("rb").read().partition(b"\r\n\r\n")[2]

        return self.do(talk)

    def refused(self, host: str, port: int = 80, timeout: float = 3) -> bool:
        """Whether a connection is refused at once, rather than left to time out."""
        try:
            self.get(host, port, timeout)
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
        raise AssertionError(f"{host}:{port} was reached")

    def lookup(self, name: str, kind: str = "A", server: str | None = None, timeout: float = 3) -> dns.message.Message:
        """One question to a name server, by default the gateway's."""
        query = dns.message.make_query(name, kind)

        def ask() -> dns.message.Message:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.settimeout(timeout)
                asking.connect((server or self.slot.gateway, 53))
                asking.send(query.to_wire())
                return dns.message.from_wire(asking.recv(4096))

        return self.do(ask)

    def addresses(self, name: str) -> list[str]:
        answer = self.lookup(name).answer
        return [record.address for rrset in answer for record in rrset if hasattr(record, "address")]

    def send(self, frame: bytes) -> None:
        """A raw frame, as no kernel would send it."""
        os.write(self.wire, HEADER + frame)


@contextmanager
def guest(slot: NetworkSlot, name: str = "bjtest-guest") -> Iterator[Guest]:
    """A guest that is plugged into a slot and set up as the agent would do it."""
    ip("netns", "add", name)
    place = NETNS / name
    stop_read, stop_write = os.pipe()
    try:
        ours = inside(place, lambda: attach_tap("eth0"))
        for words in (
            ("link", "set", "lo", "up"),
            ("link", "set", "eth0", "address", slot.guest_mac, "mtu", str(slot.mtu), "up"),
            ("addr", "add", slot.guest_address, "dev", "eth0"),
            ("route", "add", "default", "via", slot.gateway),
        ):
            ip("-n", name, *words)
        wire = open_tap(slot)
        made = Guest(place, slot, wire)

        def copy() -> None:
            while True:
                readable, _, _ = select.select([ours, wire, stop_read], [], [])
                if stop_read in readable:
                    return
                for source, sink in ((ours, wire), (wire, ours)):
                    if source in readable:
                        with contextlib.suppress(BlockingIOError):
                            frame = os.read(source, 70000)
                            if source == wire and len(made.received) < 10_000:
                                made.received.append(frame[len(HEADER) :])
                            os.write(sink, frame)

        thread = threading.Thread(target=copy)
        thread.start()
        try:
            yield made
        finally:
            os.write(stop_write, b"x")
            thread.join(5)
            os.close(wire)
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
