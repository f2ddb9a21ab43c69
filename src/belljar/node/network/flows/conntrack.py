"""Flows without BPF: the entries of a slot's connection tracking, and the refusals that its rules record.

Bytes are those of whole IP packets here. Names of TLS and HTTP are not known, and what begins and ends between two
looks, and leaves no entry, is missed. Source: ctnetlink of the kernel (nf_conntrack_netlink.c).
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Any

import structlog
from pyroute2.netlink.nfnetlink.nfctsocket import AsyncNFCTSocket

from belljar.node.network.flows.reading import (
    ACK,
    FIN,
    ICMP,
    RST,
    SYN,
    TCP,
    UDP,
    FlowCounts,
    FlowKey,
    FlowReading,
    LossCounts,
)
from belljar.node.network.netlink import set_sysctl
from belljar.node.network.traffic import RefusedDestination

log = structlog.get_logger()

#: An answer for the helper of a user who is not root fits in one message.
MAX_FLOWS = 1500
#: The number that is reserved.
_UNKNOWN = 255
_PROTOCOLS = {"tcp": TCP, "udp": UDP, "icmp": ICMP}
#: TCP flags by the kernel's state of a connection (enum tcp_conntrack), each way.
_FLAGS = {
    1: (SYN, 0),  # SYN_SENT
    2: (SYN, SYN | ACK),  # SYN_RECV
    3: (SYN | ACK, SYN | ACK),  # ESTABLISHED
    4: (SYN | ACK | FIN, SYN | ACK),  # FIN_WAIT
    5: (SYN | ACK, SYN | ACK | FIN),  # CLOSE_WAIT
    6: (SYN | ACK | FIN, SYN | ACK | FIN),  # LAST_ACK
    7: (SYN | ACK | FIN, SYN | ACK | FIN),  # TIME_WAIT
    8: (SYN | ACK | RST, SYN | ACK | RST),  # CLOSE
}


def enable_accounting() -> None:
    """Have the calling thread's namespace count the bytes of its connections, and note when they began.

    A kernel that cannot has flows without bytes, or that began when they were first seen.
    """
    for name in ("acct", "timestamp"):
        try:
            set_sysctl(f"net/netfilter/nf_conntrack_{name}", "1")
        except OSError as error:
            log.warning("flows_incomplete", sysctl=f"nf_conntrack_{name}", error=str(error))


class ConnectionCounter:
    """The counters of one slot. It remembers when refusals were seen, which the rules do not: they are bounded."""

    def __init__(self, reason: str) -> None:
        """`reason` is why BPF does not count."""
        self._reason = reason
        self._attempts: dict[FlowKey, FlowCounts] = {}
        #: When the connections of the last reading were first seen, for a kernel that does not note it.
        self._first_ns: dict[FlowKey, int] = {}

    def read(self, guest: IPv4Address, refused: Iterable[RefusedDestination]) -> FlowReading:
        """Return the connections of the calling thread's namespace. Blocks. Raises NetlinkError, OSError."""
        entries = asyncio.run(_dump())
        now_ns, clock_ns = time.monotonic_ns(), time.time_ns() - time.monotonic_ns()
        parsed = [
            each
            for entry in entries
            if (each := _parse(entry, str(guest), now_ns, clock_ns, self._first_ns)) is not None
        ]
        self._first_ns = {key: counts.first_ns for key, counts in parsed}
        parsed.sort(key=lambda each: -each[1].bytes_out)
        lost = [counts for _, counts in parsed[MAX_FLOWS:]]
        for destination in refused:
            self._note(destination, now_ns)
        return FlowReading(
            source="conntrack",
            source_reason=self._reason,
            allowed=dict(parsed[:MAX_FLOWS]),
            attempts=dict(self._attempts),
            attempt_flows=len(self._attempts),
            attempt_packets=sum(counts.packets_out for counts in self._attempts.values()),
            lost=LossCounts(
                packets=sum(counts.packets_out for counts in lost), bytes=sum(counts.bytes_out for counts in lost)
            ),
        )

    def _note(self, refused: RefusedDestination, now_ns: int) -> None:
        if refused.address is None:
            return
        key = FlowKey(int(refused.address), refused.port or 0, 0, _protocol_number(refused.protocol))
        known = self._attempts.get(key)
        if known is None:
            self._attempts[key] = FlowCounts(now_ns, now_ns, 0, 0, refused.count, 0, 0, 0)
        elif refused.count > known.packets_out:
            self._attempts[key] = known._replace(last_ns=now_ns, packets_out=refused.count)


def _protocol_number(name: str) -> int:
    """Return the number of a protocol, of which nftables prints the name if the host knows one."""
    try:
        return _PROTOCOLS.get(name) or (int(name) if name.isdecimal() else socket.getprotobyname(name))
    except OSError:
        return _UNKNOWN


async def _dump() -> list[Any]:
    async with AsyncNFCTSocket() as connections:
        return [entry async for entry in await connections.dump()]


def _parse(
    entry: Any, guest: str, now_ns: int, clock_ns: int, known_ns: Mapping[FlowKey, int]
) -> tuple[FlowKey, FlowCounts] | None:
    """Return the flow of an entry; None for one that the guest did not open. `known_ns` is when flows began."""
    origin = entry.get_attr("CTA_TUPLE_ORIG")
    addresses, ports = origin.get_attr("CTA_TUPLE_IP"), origin.get_attr("CTA_TUPLE_PROTO")
    if addresses.get_attr("CTA_IP_V4_SRC") != guest:
        return None
    guest_port = ports.get_attr("CTA_PROTO_SRC_PORT") or ports.get_attr("CTA_PROTO_ICMP_ID") or 0
    key = FlowKey(
        int(IPv4Address(addresses.get_attr("CTA_IP_V4_DST"))),
        ports.get_attr("CTA_PROTO_DST_PORT") or 0,
        guest_port,
        ports.get_attr("CTA_PROTO_NUM"),
    )
    (packets_out, bytes_out), (packets_in, bytes_in) = (
        _counters(entry.get_attr(f"CTA_COUNTERS_{way}")) for way in ("ORIG", "REPLY")
    )
    times = entry.get_attr("CTA_TIMESTAMP")
    started = times.get_attr("CTA_TIMESTAMP_START") if times is not None else None
    first_ns = started - clock_ns if started else known_ns.get(key, now_ns)
    info = entry.get_attr("CTA_PROTOINFO")
    tcp = info.get_attr("CTA_PROTOINFO_TCP") if info is not None else None
    state = tcp.get_attr("CTA_PROTOINFO_TCP_STATE") if tcp is not None else None
    flags_out, flags_in = _FLAGS.get(state or 0, (0, 0))
    return key, FlowCounts(first_ns, now_ns, bytes_out, bytes_in, packets_out, packets_in, flags_out, flags_in)


def _counters(counters: Any) -> tuple[int, int]:
    if counters is None:
        return 0, 0
    return counters.get_attr("CTA_COUNTERS_PACKETS") or 0, counters.get_attr("CTA_COUNTERS_BYTES") or 0
